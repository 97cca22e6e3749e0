"""The order of an epoch over rows of unequal length and weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebeam.data.order import Rows, epoch_order, grouped, read_rows
from stagebeam.data.writing import write_shards
from stagebeam.recipe import DataConfig
from stagebeam.records import Example, Message

Make = Callable[..., Example]


def rows(*weights: float) -> Rows:
    return Rows(np.arange(len(weights)), np.array(weights, np.float64))


def test_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    orders = {
        (seed, epoch): tuple(epoch_order(seed, epoch, 50)) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 4
    epoch_order.cache_clear()
    assert tuple(epoch_order(0, 1, 50)) == orders[0, 1]
    assert not epoch_order(0, 1, 50).flags.writeable


def test_order_is_the_same_in_every_release() -> None:
    # A checkpoint's ledger means these rows; another order would train on some of them twice.
    assert epoch_order(7, 2, 10).tolist() == [0, 3, 5, 1, 8, 4, 9, 2, 6, 7]
    assert epoch_order(7, 2, rows(*[1.0] * 5, *[1.5] * 4)).tolist() == [
        *(4, 5, 6, 2, 8, 3, 8, 1, 0, 7, 5)
    ]


def test_a_whole_weight_reads_a_row_so_often_and_nought_never() -> None:
    drawn = Counter(epoch_order(0, 0, rows(0, 1, 2, 3)).tolist())
    assert drawn == {1: 1, 2: 2, 3: 3}
    assert rows(0, 1, 2, 3).epoch_length == 6


def test_a_broken_weight_reads_that_share_of_the_rows_and_other_ones_each_epoch() -> None:
    mixed = rows(*[0.25] * 40, *[1.5] * 10)
    assert mixed.epoch_length == 10 + 15
    chosen = []
    for epoch in range(4):
        drawn = Counter(epoch_order(0, epoch, mixed).tolist())
        quarter = [row for row in drawn if row < 40]
        assert len(quarter) == 10 and all(drawn[row] == 1 for row in quarter)
        assert sorted(drawn[row] for row in range(40, 50)) == [1] * 5 + [2] * 5
        chosen.append(frozenset(quarter))
    assert len(set(chosen)) == 4


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=120),
    st.integers(1, 8),
    st.integers(1, 5),
    st.integers(0, 7),
)
def test_grouping_moves_rows_inside_their_window_and_keeps_each(
    sizes: list[int], batch: int, window: int, head: int
) -> None:
    order = epoch_order(0, 0, len(sizes))
    head = min(head, batch - 1, len(sizes))
    made = grouped(order, np.array(sizes), batch, window, head, (0, 0))
    assert made[:head].tolist() == order[:head].tolist()
    for start in range(head, len(sizes), window * batch):
        end = start + window * batch
        assert sorted(made[start:end]) == sorted(order[start:end])
    assert np.array_equal(made, grouped(order, np.array(sizes), batch, window, head, (0, 0)))


def test_grouped_batches_pad_less_and_neither_long_nor_short_ones_come_first() -> None:
    sizes = np.random.default_rng(0).lognormal(5, 0.6, 4096).astype(np.int64)
    order = epoch_order(0, 0, len(sizes))

    def padding(rows: np.ndarray) -> float:
        batches = sizes[rows].reshape(-1, 32)
        return 1 - batches.sum() / (batches.max(axis=1).sum() * 32)

    made = grouped(order, sizes, 32, 16, 0, (0, 0))
    assert padding(made) < 0.25 * padding(order)
    longest = sizes[made].reshape(-1, 32).max(axis=1)
    assert abs(np.corrcoef(np.arange(len(longest)), longest)[0, 1]) < 0.25


@pytest.fixture
def shards(make_example: Make, tmp_path: Path) -> Path:
    """Six rows of three sources, one of them held out."""
    named = ["a/x", "a/y", "b", "ab", "a", "a/x"]
    examples = [
        make_example(
            n,
            source=name,
            split="test" if n == 5 else "train",
            images=() if n == 3 else make_example(n).images * (2 if n == 2 else 1),
            messages=(Message("user", "\u00e9" * n + "?"), make_example(n).messages[1]),
        )
        for n, name in enumerate(named)
    ]
    config = DataConfig(shards=tmp_path / "shards", rows_per_shard=2)
    write_shards(examples, config.shards, config)
    return config.shards


def test_sizes_count_bytes_of_text_and_images(shards: Path, make_example: Make) -> None:
    found = read_rows(shards, "train", {})
    answer = len(make_example().messages[1].text)
    image = 4 * 576
    assert found.sizes.tolist() == [
        1 + answer + image,
        3 + answer + image,
        5 + answer + 2 * image,
        7 + answer,
        9 + answer + image,
    ]
    assert found.weights.tolist() == [1.0] * 5
    assert len(read_rows(shards, "test", {})) == 1


def test_a_weight_is_that_of_the_longest_name_that_a_source_begins_with(shards: Path) -> None:
    found = read_rows(shards, "train", {"a": 2.0, "a/x": 0.5, "b": 0.0})
    assert found.weights.tolist() == [0.5, 2.0, 0.0, 1.0, 2.0]


def test_a_weight_for_a_source_that_is_not_there_is_a_users_mistake(shards: Path) -> None:
    with pytest.raises(ValueError, match=r"names c; the rows' sources are a, a/x, a/y, ab, b\."):
        read_rows(shards, "train", {"a": 1.0, "c": 1.0})


def test_the_fingerprint_changes_with_any_size_and_weight() -> None:
    plain = rows(1, 1, 1)
    assert plain.fingerprint == rows(1, 1, 1).fingerprint
    assert plain.fingerprint != rows(1, 1, 2).fingerprint
    longer = Rows(np.array([0, 1, 3]), plain.weights)
    assert plain.fingerprint != longer.fingerprint
