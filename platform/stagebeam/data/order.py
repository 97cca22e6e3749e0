"""In which order an epoch reads its rows.

It follows from the seed, the epoch and the rows themselves, never from the number of ranks. Random
bits come from a counter-based generator: NumPy keeps those the same between its releases, which it
does not promise of `permutation`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pyarrow.compute as pc

from stagebeam.data.manifest import read_manifest
from stagebeam.storage import Place, open_parquet, place_of

# What an image counts beside text, in bytes: about the tokens that one adds where a model reads it
# in its sequence (LLaVA-1.5: 576 of some four bytes). It also keeps rows of equally many images
# together where a model reads them elsewhere.
_IMAGE_SIZE = 4 * 576

_COLUMNS = ["split", "source", "conversations.list.element.text", "images.list.element.path"]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What the order of an epoch depends on, row by row. Compared by identity: arrays are large."""

    sizes: np.ndarray  # [rows] int64: about how long a row is, in bytes of text
    weights: np.ndarray  # [rows] float64: how often an epoch reads it
    # Rows that an epoch reads, one that it reads twice counted twice.
    epoch_length: int = field(init=False)

    def __post_init__(self) -> None:
        classes, counts = np.unique(self.weights, return_counts=True)
        length = sum(_copies(w, int(n)) for w, n in zip(classes, counts, strict=True))
        object.__setattr__(self, "epoch_length", length)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change with any size or weight."""
        digest = hashlib.sha256(self.sizes.astype("<i8").tobytes())
        digest.update(self.weights.astype("<f8").tobytes())
        return digest.hexdigest()[:16]


def _copies(weight: float, rows: int) -> int:
    """How many times an epoch reads one of `rows` rows of this weight, together."""
    return int(weight) * rows + round((weight - int(weight)) * rows)


def read_rows(shards: str | Place, split: str, weights: Mapping[str, float]) -> Rows:
    """Sizes and weights of the rows of one split, in the order in which `ShardReader` counts them.

    A row's weight is that of the longest name in `weights` which its `source` is or begins with
    (whole parts of it, as in a path), and 1 without one. Reads the text columns, not the images.

    Raises ValueError as `read_manifest` does, and for a name that no row goes by.
    """
    sizes: list[np.ndarray] = []
    sources: list[np.ndarray] = []
    for shard in read_manifest(shards).shards:
        with open_parquet(place_of(shards) / shard.file) as file:
            table = file.read(_COLUMNS)
        table = table.filter(pc.equal(table["split"], split))
        texts = pc.list_flatten(table["conversations"])
        lengths = np.asarray(pc.binary_length(pc.struct_field(texts, "text")), np.int64)
        turns = np.asarray(pc.list_value_length(table["conversations"]), np.int64)
        images = np.asarray(pc.list_value_length(table["images"]), np.int64)
        ends = np.cumsum(turns)
        total = np.concatenate([[0], np.cumsum(lengths)])
        sizes.append(total[ends] - total[ends - turns] + _IMAGE_SIZE * images)
        sources.append(np.asarray(table["source"].to_pylist(), dtype=object))
    names = np.concatenate(sources) if sources else np.array([], dtype=object)
    return Rows(np.concatenate(sizes) if sizes else np.array([], np.int64), _weigh(names, weights))


def _weigh(sources: np.ndarray, weights: Mapping[str, float]) -> np.ndarray:
    """The weight of each row ([rows] float64)."""
    kinds, inverse = np.unique(sources.astype(str), return_inverse=True)
    found = [[n for n in weights if f"{kind}/".startswith(f"{n}/")] for kind in kinds]
    if unknown := set(weights) - {name for names in found for name in names}:
        raise ValueError(
            f"data.weights names {sorted(unknown)[0]}; the rows' sources are {', '.join(kinds)}."
        )
    by_kind = [weights[max(names, key=len)] if names else 1.0 for names in found]
    return np.array(by_kind, np.float64)[inverse]


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, rows: Rows | int) -> np.ndarray:
    """The row numbers that an epoch reads, at random ([epoch_length], int64, read-only).

    A plain number of rows gives each of them once.
    """
    bits = np.random.Philox(np.random.SeedSequence([seed % 2**64, epoch]))
    if isinstance(rows, int):
        order = np.argsort(bits.random_raw(rows), kind="stable")
    else:
        drawn = _draw(rows, bits)
        order = drawn[np.argsort(bits.random_raw(len(drawn)), kind="stable")]
    order.setflags(write=False)
    return order


def _draw(rows: Rows, bits: np.random.Philox) -> np.ndarray:
    """Which rows an epoch reads, in their own order: of a weight of 2.3 each twice, and three in
    ten, at random, once more."""
    luck = bits.random_raw(len(rows))
    copies = np.floor(rows.weights).astype(np.int64)
    for weight in np.unique(rows.weights[rows.weights % 1 > 0]):
        members = np.flatnonzero(rows.weights == weight)
        more = _copies(weight - int(weight), len(members))
        copies[members[np.argsort(luck[members], kind="stable")[:more]]] += 1
    return np.repeat(np.arange(len(rows)), copies)


def grouped(
    order: np.ndarray, sizes: np.ndarray, batch: int, window: int, head: int, seed: tuple[int, int]
) -> np.ndarray:
    """The order with rows of like size moved into one batch.

    The batches of each window of `window` are filled anew with the window's rows by size, and come
    in random order, so that neither long nor short rows come first. The first `head` rows belong to
    a batch that begins in the epoch before; they stay, and so do the last ones, fewer than a batch.

    `order` and the result: row numbers [epoch_length]; `sizes` [rows]; `seed` (seed, epoch).
    """
    bits = np.random.Philox(np.random.SeedSequence([seed[0] % 2**64, seed[1], 1]))
    made = order.copy()
    whole = head + (len(order) - head) // batch * batch
    for start in range(head, whole, window * batch):
        end = min(start + window * batch, whole)
        piece = order[start:end]
        batches = piece[np.argsort(sizes[piece], kind="stable")].reshape(-1, batch)
        shuffled = np.argsort(bits.random_raw(len(batches)), kind="stable")
        made[start:end] = batches[shuffled].reshape(-1)
    return made
