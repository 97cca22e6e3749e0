"""What can be trained: a generator on shards, and a judge on gold answers and preferences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from stagebeam.data.ledger import Plan
from stagebeam.data.stream import Encode, training_dataset, worker_batches
from stagebeam.models.encoder import RowEncoder
from stagebeam.models.family import Family
from stagebeam.storage import Place
from stagebeam.training.answers import AnswerEncoder, Form, Reworder
from stagebeam.training.contracts import Objective, OnRefused, Step
from stagebeam.training.objectives import Preference, Supervised
from stagebeam.training.preference import PreferenceEncoder


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedTask:
    """Answers of the shards, in the order that the plan's seed gives."""

    shards: Place
    plan: Plan
    encoder: RowEncoder
    answers: Form = "stages"
    pack_to: int | None = None  # tokens; several rows may then share a sequence

    def at(self, world_size: int) -> Self:
        return replace(self, plan=self.plan.at(world_size))

    def dataset(self, start: int, encoders: int) -> Any:
        return training_dataset(self.shards, self.plan, start, self._encode(), encoders)

    def _encode(self) -> Encode:
        return AnswerEncoder(self.encoder, self.reword, self.pack_to)

    @property
    def staged(self) -> bool:
        return self.answers == "stages"

    @property
    def reword(self) -> Reworder:
        return Reworder(self.answers)

    def objective(self, model: Any, family: Family) -> Objective:
        return Supervised(model, family, self.encoder)

    def steps(self, shard: Any, start: int, rank: int, on_refused: OnRefused) -> Iterator[Step]:
        batches = worker_batches(shard, self.plan, rank, start)
        for _, group in groupby(batches, key=lambda batch: batch.step):
            micro_batches = list(group)
            for batch in micro_batches:
                if batch.refused:
                    on_refused(batch.refused)
            yield micro_batches


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceTask(SupervisedTask):
    """The same, and beside each answer a pair from `pairs` of which the better text is known."""

    pairs: Path
    pairs_per_row: float
    pair_weight: float

    def _encode(self) -> Encode:
        return PreferenceEncoder(self.encoder, self.pairs, self.pairs_per_row)

    def objective(self, model: Any, family: Family) -> Objective:
        return Preference(model, family, self.encoder, self.pair_weight)
