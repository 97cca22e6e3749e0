"""The default judges: one prefill of a model, no decoding, nothing to parse.

`verdict` shows two candidates and reads the logits of the two option tokens, in both orders, so
that a constant preference for a position cancels. `likelihood` scores each candidate by its
summed log-probability under the judge's model; a pair's margin is the difference, in nats.

Calls that wait at the same time share a batch. The judge keeps vision states by image content.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, get_args

import torch

from stagebeam.inference.kv import LruBytes, images_digest
from stagebeam.inference.types import Judgement, JudgeRequest, Prompt, Usage, Verdict
from stagebeam.models.encoder import Arrays, RowEncoder
from stagebeam.models.families.mllama_runtime import MllamaRuntime
from stagebeam.models.load import Loaded
from stagebeam.records import Message
from stagebeam.stages import Stage

JudgeKind = Literal["verdict", "likelihood"]
JUDGE_KINDS: tuple[JudgeKind, ...] = get_args(JudgeKind)
OPTIONS = ("1", "2")
_VISION_BYTES = 64 << 20

# What each stage is judged on (arXiv 2411.10440, section 3.3).
_CRITERIA = {
    Stage.SUMMARY: "states the better approach to the question",
    Stage.CAPTION: "describes the image more thoroughly and accurately",
    Stage.REASONING: "reasons more soundly from what is known",
    Stage.CONCLUSION: "agrees better with the reasoning",
    None: "answers the question better",
}


def verdict_messages(request: JudgeRequest, first: str, second: str) -> tuple[Message, ...]:
    """The conversation that ends in the question which of two candidates is better."""
    *earlier, question = request.prompt.messages
    agreed = f" Agreed so far: {request.prefix}" if request.prefix else ""
    text = (
        f"{question.text}{agreed} Candidate 1: {first} Candidate 2: {second} "
        f"Which candidate {_CRITERIA[request.stage]}, 1 or 2?"
    )
    return (*earlier, Message("user", text))


def wording() -> tuple[str, ...]:
    """Every word that `verdict_messages` adds, for a vocabulary that must have them."""
    samples = [
        JudgeRequest(Prompt((Message("user", ""),)), stage, "-", (), ()) for stage in _CRITERIA
    ]
    return tuple(verdict_messages(sample, "", "")[-1].text for sample in samples) + OPTIONS


@dataclass(frozen=True, slots=True)
class _Row:
    """One sequence to score: the log-probability of `ids[start:]` given what is before."""

    ids: list[int]
    start: int


@dataclass(frozen=True, slots=True)
class _Job:
    """One call: its rows in a fixed order, and where the answer goes."""

    request: JudgeRequest
    rows: list[_Row]
    images: list[Arrays]
    digest: bytes
    answer: Future[Judgement]


def _image_slots(job: _Job) -> int:
    return max(1, len(job.images))


class TransformersJudge:
    """Implements the Judge protocol over a loaded model."""

    def __init__(self, loaded: Loaded, *, kind: JudgeKind, max_rows: int) -> None:
        """`max_rows` sequences are scored in one forward pass."""
        self.kind = kind
        self.fingerprint = f"{kind}-{loaded.fingerprint}"
        self._runtime, self._encoder = MllamaRuntime(loaded), loaded.encoder
        self._options = option_ids(loaded.encoder)
        self._max_rows = max_rows
        self._vision: LruBytes[torch.Tensor] = LruBytes(_VISION_BYTES, lambda t: t.nbytes)
        self._waiting: queue.Queue[_Job | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="judge", daemon=True)
        self._thread.start()

    async def compare(self, request: JudgeRequest) -> Judgement:
        """A verdict for each pair. Raises ValueError for a prompt that cannot be encoded."""
        job = await asyncio.to_thread(self._prepare, request)
        self._waiting.put(job)
        return await asyncio.wrap_future(job.answer)

    def close(self) -> None:
        """Stop the scoring thread."""
        self._waiting.put(None)
        self._thread.join()

    def _prepare(self, request: JudgeRequest) -> _Job:
        images = [self._encoder.image(image) for image in request.prompt.images]
        rows_of = self._pair_rows if self.kind == "verdict" else self._text_rows
        rows = rows_of(request, images)
        return _Job(request, rows, images, images_digest(request.prompt.images), Future())

    def _pair_rows(self, request: JudgeRequest, images: Sequence[Arrays]) -> list[_Row]:
        """Two rows for each pair, (a, b) then (b, a), each one token short of its answer."""
        rows = []
        for a, b in request.pairs:
            for first, second in ((a, b), (b, a)):
                messages = verdict_messages(
                    request, request.candidates[first], request.candidates[second]
                )
                ids = self._encoder.prompt_ids(messages, images)
                rows.append(_Row(ids, len(ids)))
        return rows

    def _text_rows(self, request: JudgeRequest, images: Sequence[Arrays]) -> list[_Row]:
        """One row for each candidate."""
        prompt = self._encoder.prompt_ids(request.prompt.messages, images)
        known = prompt + self._encoder.ids(request.prefix)
        return [_Row(known + self._encoder.ids(text), len(known)) for text in request.candidates]

    # --- the scoring thread ---

    def _run(self) -> None:
        while jobs := self._take():
            # rows of one batch hold equally many images
            for _, alike in groupby(sorted(jobs, key=_image_slots), key=_image_slots):
                self._answer(list(alike))

    def _answer(self, jobs: Sequence[_Job]) -> None:
        try:
            scores = self._score(jobs)
            for job, values in zip(jobs, scores, strict=True):
                tokens = sum(len(row.ids) for row in job.rows)
                usage = Usage(judge_tokens=tokens, judge_calls=1)
                job.answer.set_result(Judgement(self._verdicts(job, values), usage))
        except Exception as error:  # reaches every caller of the batch
            for job in jobs:
                if not job.answer.done():
                    job.answer.set_exception(error)

    def _take(self) -> list[_Job]:
        """All calls that wait, as many as fit in one batch (at least one); [] when closed."""
        jobs: list[_Job] = []
        while True:
            try:
                job = self._waiting.get(block=not jobs)
            except queue.Empty:
                return jobs
            if job is None:
                self._waiting.put(None)  # also ends the next round
                return jobs
            if job.answer.set_running_or_notify_cancel():
                jobs.append(job)
            if sum(len(j.rows) for j in jobs) >= self._max_rows:
                return jobs

    def _score(self, jobs: Sequence[_Job]) -> list[list[float]]:
        """One number a row: log-odds of option 1 over 2, or the text's log-probability."""
        rows = [row for job in jobs for row in job.rows]
        images = [job.images for job in jobs for _ in job.rows]
        states = torch.cat([self._states(job).expand(len(job.rows), -1, -1) for job in jobs])
        numbers: list[float] = []
        for at in range(0, len(rows), self._max_rows):
            part = slice(at, at + self._max_rows)
            numbers += self._score_rows(rows[part], images[part], states[part])
        split = iter(numbers)
        return [[next(split) for _ in job.rows] for job in jobs]

    def _score_rows(
        self, rows: Sequence[_Row], images: Sequence[list[Arrays]], states: torch.Tensor
    ) -> list[float]:
        logits = self._runtime.score([row.ids for row in rows], images, states).float()
        if self.kind == "verdict":
            first, second = self._options
            ends = [logits[i, len(row.ids) - 1] for i, row in enumerate(rows)]  # [V] each
            return [float(end[first] - end[second]) for end in ends]
        logprobs = logits.log_softmax(-1)  # [R, T, V]
        return [
            float(
                logprobs[i, row.start - 1 : len(row.ids) - 1]
                .gather(-1, torch.tensor(row.ids[row.start :], device=logprobs.device)[:, None])
                .sum()
            )
            for i, row in enumerate(rows)
        ]

    def _states(self, job: _Job) -> torch.Tensor:
        states = self._vision.get(job.digest)
        if states is None:
            states = self._runtime.vision([job.images])
            self._vision.put(job.digest, states)
        return states

    def _verdicts(self, job: _Job, scores: Sequence[float]) -> tuple[Verdict, ...]:
        if self.kind == "verdict":  # the second order was asked with the pair swapped
            orders = zip(scores[::2], scores[1::2], strict=True)
            return tuple(Verdict(forward, -backward) for forward, backward in orders)
        margins = [scores[a] - scores[b] for a, b in job.request.pairs]
        return tuple(Verdict(margin, margin) for margin in margins)


def option_ids(encoder: RowEncoder) -> tuple[int, int]:
    """The single tokens that the two options are answered with.

    Raises ValueError where the tokenizer needs several tokens for one of them.
    """
    ids = [encoder.ids(option) for option in OPTIONS]
    if any(len(i) != 1 or i[0] == encoder.tokenizer.unk_token_id for i in ids):
        raise ValueError(f"The judge's tokenizer has no single token for each of {OPTIONS}.")
    return ids[0][0], ids[1][0]
