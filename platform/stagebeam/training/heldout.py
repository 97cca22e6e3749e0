"""Held-out rows while training goes on: their loss, and answers to some of them.

Every rank takes each world_size-th row and as many batches as the others, filled up with rows
that count for nothing, so that all gather the same weights; no row is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist

from stagebeam.data.shards import ShardReader
from stagebeam.models.encoder import IGNORE, EncodedRow, RowEncoder
from stagebeam.models.family import on_device
from stagebeam.records import Example
from stagebeam.train_config import HeldOutEvaluation
from stagebeam.training.contracts import EvaluationReport, Sample

Reword = Callable[[Example], Example]


def open_rows(config: HeldOutEvaluation) -> ShardReader:
    """The rows, as many as there are. Raises ValueError where there are none of the split."""
    assert config.shards is not None, "the job says where they are"
    reader = ShardReader(config.shards, config.split)
    if not len(reader):
        raise ValueError(f"{config.shards} has no rows of the split {config.split}.")
    return reader


class HeldOut:
    """This rank's share of the held-out rows, read when made."""

    def __init__(
        self, config: HeldOutEvaluation, encoder: RowEncoder, reword: Reword, batch: int
    ) -> None:
        """`batch` rows are computed at a time. Raises ValueError as `open_rows` does."""
        self._config, self._encoder, self._batch = config, encoder, batch
        self._world = dist.get_world_size()
        reader = open_rows(config)
        self._count = min(config.rows, len(reader))
        numbers = range(dist.get_rank(), self._count, self._world)
        self._examples = [reword(example) for example in reader.rows(list(numbers))]

    @property
    def every(self) -> int:
        return self._config.every

    def run(self, engine: Any, step: int) -> EvaluationReport:
        """The loss over all ranks' rows, the same on each; samples of all on rank 0."""
        engine.eval()
        try:
            with torch.no_grad():
                loss, tokens = self._loss(engine)
                samples = self._samples(engine)
        finally:
            engine.train()
        return EvaluationReport(step, loss, tokens, samples)

    def _loss(self, engine: Any) -> tuple[float, int]:
        sums = torch.zeros(2, dtype=torch.float64, device=engine.device)
        for examples in self._batches(self._examples, self._count):
            rows, _ = self._encoder.training_rows(examples)
            rows += [self._nothing()] * (self._batch - len(rows))
            batch = on_device(self._encoder.collate(rows), engine.device)
            logprobs = engine(call="row_logprobs", **batch)
            sums += torch.stack((-logprobs.double().sum(), (batch["labels"] != IGNORE).sum()))
        dist.all_reduce(sums)
        return float(sums[0] / sums[1].clamp_min(1)), int(sums[1])

    def _samples(self, engine: Any) -> tuple[Sample, ...]:
        wanted = min(self._config.samples, self._count)
        mine = self._examples[: len(range(dist.get_rank(), wanted, self._world))]
        found = []
        for examples in self._batches(mine, wanted):
            rows = [self._prompt(example) for example in examples]
            rows += [self._nothing()] * (self._batch - len(rows))
            batch = on_device(self._encoder.collate(rows, left=True), engine.device)
            length, synced = self._config.max_new_tokens, self._world > 1
            answers = engine(call="answers", max_new_tokens=length, synced=synced, **batch)
            for example, ids in zip(examples, answers.tolist(), strict=False):
                found.append(Sample(example.id, self._text(ids)))
        everyone: list[Any] = [None] * self._world
        dist.gather_object(found, everyone if dist.get_rank() == 0 else None)
        return tuple(sample for some in everyone for sample in some or ())

    def _batches(self, mine: Sequence[Example], count: int) -> Iterator[Sequence[Example]]:
        """As many batches as the rank with the most of `count` rows has."""
        most = -(-count // self._world)
        for start in range(0, most, self._batch):
            yield mine[start : start + self._batch]

    def _prompt(self, example: Example) -> EncodedRow:
        images = tuple(self._encoder.image(image.bytes) for image in example.images)
        ids = self._encoder.prompt_ids(example.messages[:-1], images)
        return EncodedRow(ids, [IGNORE] * len(ids), images)

    def _nothing(self) -> EncodedRow:
        return EncodedRow([self._encoder.tokenizer.pad_token_id], [IGNORE], ())

    def _text(self, ids: list[int]) -> str:
        tokenizer = self._encoder.tokenizer
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).strip()
