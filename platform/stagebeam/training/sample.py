"""A sample of a recipe's rows as the family's encoder makes them: lengths, images, padding, FLOPs.

The rows are spread evenly over the shards, the same ones each time, and put into micro-batches as
the plan would if there were no others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import AutoConfig

from stagebeam.data.layout import TRAIN_SPLIT
from stagebeam.data.ledger import Plan
from stagebeam.data.order import Rows, read_rows
from stagebeam.data.shards import ShardReader
from stagebeam.models.encoder import IGNORE, Arrays, EncodedRow, RowEncoder
from stagebeam.models.family import Family
from stagebeam.recipe import Recipe
from stagebeam.train_config import TrainConfig
from stagebeam.training.answers import Reworder


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """What a sample of rows is like. Arrays are by usable row, [rows]."""

    of: int  # rows of the split
    refused: dict[str, str]  # ids and reasons
    numbers: np.ndarray  # the row's number in the split
    lengths: np.ndarray  # tokens
    learnt: np.ndarray  # tokens with loss
    images: np.ndarray
    tiles: np.ndarray  # one an image where a family has none
    padding: float  # share of the batches' places
    forward_flops: dict[str, float]  # of one row on average, by group

    def row_at(self, share: float) -> int:
        """Which usable row is as long as the given share of them at most, 1 for the longest."""
        order = np.argsort(self.lengths, kind="stable")
        return int(order[max(0, int(np.ceil(share * len(order))) - 1)])


class Sampler:
    """Reads and encodes rows of the training split.

    Raises ValueError where the shards are not complete or have no such row.
    """

    def __init__(self, recipe: Recipe, train: TrainConfig, folder: str, family: Family) -> None:
        self._data, self._train, self._family = recipe.data, train, family
        self._seed = recipe.seed
        self._config = AutoConfig.from_pretrained(folder)
        self._encoder: RowEncoder = family.encoder(folder, recipe.data.max_length)
        self._reword = Reworder(recipe.data.answers)
        self._reader = ShardReader(recipe.data.shards, TRAIN_SPLIT)
        if not len(self._reader):
            raise ValueError(f"{recipe.data.shards} has no rows of the split {TRAIN_SPLIT}.")
        share = train.num_workers * train.gradient_accumulation_steps
        self._micro = train.global_batch_size // share

    def draw(self, rows: int) -> Sample:
        """So many rows, 0 for all of them.

        Raises ValueError where none of them can be trained on.
        """
        there = len(self._reader)
        count = min(rows or there, there)
        chosen = np.arange(count) * there // count + there // count // 2
        sizes = read_rows(self._data.shards, TRAIN_SPLIT, {}).sizes[chosen]
        refused: dict[str, str] = {}
        seen: list[tuple[int, ...]] = []
        flops: Counter[str] = Counter()
        tokens = places = 0
        for batch in self._micro_batches(sizes):
            examples = [self._reword(e) for e in self._reader.rows(chosen[batch])]
            encoded, wrong = self._encoder.training_rows(examples)
            refused |= wrong
            usable = [e.id not in wrong for e in examples]
            for number, row in zip(chosen[batch][usable], _pick(encoded, usable), strict=True):
                seen.append((int(number), *_counts(row)))
            arrays = self.arrays(encoded)
            tokens += sum(len(row.input_ids) for row in encoded)
            places += arrays["input_ids"].size
            counted = self._family.flops(self._config, arrays)
            flops.update({group: getattr(counted, group) for group in counted.__slots__})
        if not seen:
            first = next(iter(refused.values()))
            raise ValueError(f"None of {count} rows can be trained on; the first: {first}")
        numbers, lengths, learnt, images, tiles = np.array(seen, np.int64).T
        return Sample(
            of=there,
            refused=refused,
            numbers=numbers,
            lengths=lengths,
            learnt=learnt,
            images=images,
            tiles=tiles,
            padding=1 - tokens / places,
            forward_flops={group: total / count for group, total in flops.items()},
        )

    def batch_like(self, sample: Sample, share: float) -> Arrays:
        """A micro-batch of rows about as long as the given share of the sample, 1 for its
        longest; the longest of them has that length."""
        order = np.argsort(sample.lengths, kind="stable")
        last = int(np.flatnonzero(order == sample.row_at(share))[0]) + 1
        rows = sample.numbers[order[max(0, last - self._micro) : last]]
        rows = np.resize(rows, self._micro)
        return self.arrays([self._encoder.encode(self._reword(e)) for e in self._reader.rows(rows)])

    def arrays(self, rows: Sequence[EncodedRow]) -> Arrays:
        """A micro-batch as it is trained on."""
        if self._train.packing and self._family.packs:
            encoder: Any = self._encoder
            return dict(encoder.collate_packed(rows, self._data.max_length))
        return self._encoder.collate(rows)

    def _micro_batches(self, sizes: np.ndarray) -> Iterator[np.ndarray]:
        """Places in the sample, each once: in the plan's order, and the rest at the end."""
        whole = len(sizes) // self._micro
        batch = min(self._train.global_batch_size // self._micro, whole) * self._micro
        done = np.array([], np.int64)
        if batch:
            rows = Rows(sizes, np.ones(len(sizes)))
            window = self._data.length_window
            plan = Plan(rows, batch, 1, batch // self._micro, seed=self._seed, window=window)
            for step in range(plan.total_steps):
                yield from plan.step_rows(step).reshape(-1, self._micro)
            done = plan.read(0, plan.total_steps * batch)
        left = np.setdiff1d(np.arange(len(sizes)), done)
        left = left[np.argsort(sizes[left], kind="stable")]
        for start in range(0, len(left), self._micro):
            yield left[start : start + self._micro]


def _pick(rows: Sequence[EncodedRow], usable: Sequence[bool]) -> list[EncodedRow]:
    return [row for row, good in zip(rows, usable, strict=True) if good]


def _counts(row: EncodedRow) -> tuple[int, int, int, int]:
    """Tokens, those with loss, images and tiles."""
    pixels = [image["pixel_values"] for image in row.images]
    tiles = sum(len(array) if array.ndim == 4 else 1 for array in pixels)
    learnt = sum(label != IGNORE for label in row.labels)
    return len(row.input_ids), learnt, len(pixels), tiles
