"""A rank's share of a step as a row of an Arrow table, without a copy of its arrays.

Micro-batches are padded to different lengths, so no tensor column would fit them all. A parcel is
pickled with its arrays out of band: the pickle, which is small, is one column, and each array's
bytes are another, in place. Arrow tables enter Ray's object store by one copy and are mapped from
there by whoever reads them.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one rank computes on at a time: arrays as `encode` made them, why it refused some of
    the rows, and the ids of all."""

    step: int
    micro: int
    arrays: Arrays
    refused: dict[str, str]
    row_ids: list[str]


@dataclass(frozen=True, slots=True)
class Parcel:
    """All that one rank reads for one optimiser step."""

    step: int
    rank: int
    micro_batches: list[MicroBatch]


def pack(parcel: Parcel) -> pa.Table:
    """A table of one row. Parcels of equally many arrays have the same columns."""
    for batch in parcel.micro_batches:  # only what lies in one piece can stay out of the pickle
        batch.arrays.update({k: np.asarray(v, order="C") for k, v in batch.arrays.items()})
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(parcel, protocol=5, buffer_callback=buffers.append)
    columns = {"head": _cell(pa.py_buffer(head))}
    for number, buffer in enumerate(buffers):
        columns[f"array_{number}"] = _cell(pa.py_buffer(buffer.raw()))
    return pa.table(columns)


def unpack(table: pa.Table) -> Parcel:
    """The opposite. The arrays look into the table's memory and are read-only."""
    head, *arrays = map(_data, table.columns)
    return pickle.loads(head, buffers=arrays)


def _data(column: pa.ChunkedArray) -> pa.Buffer:
    """The bytes of a column's one value, in place (`as_buffer` of the value copies them)."""
    (chunk,) = column.chunks
    _, ends, data = chunk.buffers()
    start, end = np.frombuffer(ends, np.int64)[chunk.offset : chunk.offset + 2]
    return data.slice(start, end - start)


def _cell(data: pa.Buffer) -> pa.Array:
    """One value, in place."""
    ends = pa.py_buffer(np.array([0, data.size], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, data])
