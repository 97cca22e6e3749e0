"""Batches for a judge: gold answers, each with a pair of which the better text is known."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from stagebeam.data.preferences import Preference, Preferences
from stagebeam.models.encoder import IGNORE, Arrays, EncodedRow, RowEncoder
from stagebeam.records import Example
from stagebeam.training.objectives import CHOSEN, GOLD, REJECTED


class PreferenceEncoder:
    """Turns a batch of gold examples into one with pairs added, `pairs_per_row` for each.

    Which pairs come along follows from the examples' ids, so a resumed run sees the same batches.
    Pickles as paths; files are read where they are used.
    """

    def __init__(self, encoder: RowEncoder, pairs: Path, pairs_per_row: float) -> None:
        self.encoder, self.pairs, self.pairs_per_row = encoder, pairs, pairs_per_row

    def __reduce__(self) -> tuple[type[PreferenceEncoder], tuple[RowEncoder, Path, float]]:
        return PreferenceEncoder, (self.encoder, self.pairs, self.pairs_per_row)

    @cached_property
    def _preferences(self) -> Preferences:
        return Preferences(self.pairs)

    def __call__(self, examples: Sequence[Example]) -> tuple[Arrays, dict[str, str]]:
        """Arrays of `RowEncoder.collate`, rows gold, chosen, rejected, and their `role` [B];
        and why examples were refused, by id."""
        rng = random.Random("".join(example.id for example in examples))
        drawn = rng.choices(self._preferences, k=max(1, round(len(examples) * self.pairs_per_row)))
        rows, refused = self.encoder.training_rows(examples)
        rows += [self._row(pair, pair.chosen) for pair in drawn]
        rows += [self._row(pair, pair.rejected) for pair in drawn]
        counts = (len(examples), len(drawn), len(drawn))
        role = np.repeat(np.array((GOLD, CHOSEN, REJECTED), np.int64), counts)
        return {**self.encoder.collate(rows), "role": role}, refused

    def _row(self, pair: Preference, text: str) -> EncodedRow:
        images = tuple(self.encoder.image(image.bytes) for image in pair.images)
        known = self.encoder.prompt_ids(pair.messages, images) + self.encoder.text_ids(pair.prefix)
        ids = self.encoder.text_ids(text)
        return EncodedRow(known + ids, [IGNORE] * len(known) + ids, images)
