"""Arrays travel in an Arrow table as they are."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest

from stagebeam.data.parcel import MicroBatch, Parcel, pack, unpack


def parcel(step: int = 3, width: int = 5) -> Parcel:
    random = np.random.default_rng(step)
    micro_batches = [
        MicroBatch(
            step,
            micro,
            {
                "input_ids": random.integers(0, 99, (2, width + micro)),
                "pixel_values": random.integers(0, 256, (3, 3, 8, 8), np.uint8),
                "empty": np.zeros((0, 4), np.float32),
            },
            {"a": "too long"} if micro else {},
            ["a", "b"],
        )
        for micro in range(2)
    ]
    return Parcel(step, 1, micro_batches)


def assert_same(ours: Parcel, theirs: Parcel) -> None:
    assert (ours.step, ours.rank) == (theirs.step, theirs.rank)
    for mine, other in zip(ours.micro_batches, theirs.micro_batches, strict=True):
        assert (mine.step, mine.micro) == (other.step, other.micro)
        assert (mine.refused, mine.row_ids) == (other.refused, other.row_ids)
        assert list(mine.arrays) == list(other.arrays)
        for name, array in mine.arrays.items():
            assert array.dtype == other.arrays[name].dtype
            assert np.array_equal(array, other.arrays[name])


def test_a_parcel_comes_out_as_it_went_in() -> None:
    assert_same(unpack(pack(parcel())), parcel())


def test_parcels_of_other_widths_share_a_schema_and_lie_in_one_table() -> None:
    tables = [pack(parcel(step, width)) for step, width in ((3, 5), (4, 9))]
    assert tables[0].schema == tables[1].schema
    whole = pa.concat_tables(tables).combine_chunks()
    for number, (step, width) in enumerate(((3, 5), (4, 9))):
        assert_same(unpack(whole.slice(number, 1)), parcel(step, width))


def addresses(parcel: Parcel) -> list[int]:
    return [
        array.__array_interface__["data"][0]
        for batch in parcel.micro_batches
        for array in batch.arrays.values()
        if array.size
    ]


def test_neither_packing_nor_unpacking_copies_an_array() -> None:
    made = parcel()
    came = unpack(pack(made))
    assert addresses(came) == addresses(made)
    with pytest.raises(ValueError, match="read-only"):
        came.micro_batches[0].arrays["input_ids"][0, 0] = 1


def test_an_array_that_is_not_contiguous_still_has_its_column() -> None:
    plain = MicroBatch(0, 0, {"x": np.arange(6).reshape(2, 3)}, {}, [])
    turned = MicroBatch(0, 0, {"x": np.arange(6).reshape(3, 2).T}, {}, [])
    strided = MicroBatch(0, 0, {"x": np.arange(12).reshape(2, 6)[:, ::2]}, {}, [])
    tables = [pack(Parcel(0, 0, [batch])) for batch in (plain, turned, strided)]
    assert len({table.num_columns for table in tables}) == 1
    for table, batch in zip(tables, (plain, turned, strided), strict=True):
        assert_same(unpack(table), Parcel(0, 0, [batch]))
    assert len(pickle.dumps(tables[0])) < 4000
