"""The default judges: one reading of a model, no decoding, nothing to parse.

`verdict` shows two candidates and reads the logits of the two option tokens, in both orders, so
that a constant preference for a position cancels. `likelihood` scores each candidate by its summed
log-probability under the judge's model, `mean_likelihood` by that of a token, `reward` by a reward
model's number for the whole answer so far; a pair's margin is the difference.

All pairs of a round are read in one pass in which the question, the image, the agreed prefix and
each candidate behind it stand once. A judge may use the generator's own engine, where prompt and
prefix have been read already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from stagebeam.inference.explain import explain
from stagebeam.inference.questions import question_ids
from stagebeam.inference.reading import Look, Span
from stagebeam.inference.transformers_engine import TransformersEngine
from stagebeam.inference.types import Judgement, JudgeRequest, Usage, Verdict
from stagebeam.inference.wording import OPTIONS
from stagebeam.models.encoder import RowEncoder
from stagebeam.models.load import Loaded
from stagebeam.models.value_head import load_value_head

JudgeKind = Literal["verdict", "likelihood", "mean_likelihood", "reward"]
# what any model can be asked as
PLAIN_KINDS: tuple[JudgeKind, ...] = ("verdict", "likelihood")
_KEPT_BYTES = 256 << 20


class EngineJudge:
    """Implements the Judge protocol over an engine."""

    def __init__(self, engine: TransformersEngine, kind: JudgeKind, max_rows: int) -> None:
        """`max_rows` sequences are read in one pass.

        Raises ValueError where the tokenizer cannot answer a verdict with one token.
        """
        self.kind = kind
        self.fingerprint = f"{kind}-{engine.fingerprint}"
        self._engine, self._max_rows = engine, max_rows
        self._options = option_ids(engine.encoder) if kind == "verdict" else ()

    async def compare(self, request: JudgeRequest) -> Judgement:
        """A verdict for each pair. Raises ValueError for a prompt that cannot be encoded."""
        spans_of = self._pairs if self.kind == "verdict" else self._texts
        look, spans = await asyncio.to_thread(spans_of, request)
        numbers: list[float] = []
        usage = Usage(judge_calls=1)
        for at in range(0, len(spans), self._max_rows):
            read = await self._engine.weigh(look, spans[at : at + self._max_rows], self._options)
            usage += read.usage
            if self.kind == "verdict":
                numbers += [first - second for first, second in read.options]
            else:
                numbers += read.values if self.kind == "reward" else read.logprobs
        judgement = self._judgement(request, spans, numbers, usage)
        if not request.explain:
            return judgement
        lines, cost = await explain(self._engine, request, judgement.verdicts)
        return replace(judgement, explanations=lines, usage=usage + cost)

    def _judgement(
        self, request: JudgeRequest, spans: Sequence[Span], numbers: list[float], usage: Usage
    ) -> Judgement:
        """From a number for each span."""
        if self.kind == "verdict":  # the second order was asked with the pair swapped
            orders = zip(numbers[::2], numbers[1::2], strict=True)
            return Judgement(tuple(Verdict(first, -second) for first, second in orders), usage)
        if self.kind == "mean_likelihood":
            lengths = [max(1, len(span.ids) - span.start) for span in spans]
            numbers = [number / length for number, length in zip(numbers, lengths, strict=True)]
        margins = [numbers[a] - numbers[b] for a, b in request.pairs]
        verdicts = tuple(Verdict(margin, margin) for margin in margins)
        return Judgement(verdicts, usage, scores=tuple(numbers))

    def _pairs(self, request: JudgeRequest) -> tuple[Look, list[Span]]:
        """Two rows for each pair, (a, b) then (b, a), each one token short of its answer."""
        look = self._engine.look(request.prompt)
        orders = [order for pair in request.pairs for order in (pair, pair[::-1])]
        rows = question_ids(self._engine.encoder, request, orders, look)
        return look, [Span(ids, len(ids)) for ids in rows]

    def _texts(self, request: JudgeRequest) -> tuple[Look, list[Span]]:
        """One row for each candidate, as the generator writes it."""
        look, known = self._engine.encode(request.prompt, request.prefix)
        encoder = self._engine.encoder
        rows = [known + encoder.text_ids(text) for text in request.candidates]
        return look, [Span(ids, len(known)) for ids in rows]


class TransformersJudge(EngineJudge):
    """A judge with an engine of its own."""

    def __init__(self, loaded: Loaded, *, kind: JudgeKind, max_rows: int) -> None:
        """Raises ValueError as `EngineJudge` does, and where a reward model has no value head."""
        head = None
        if kind == "reward":
            head = load_value_head(loaded.encoder.path, loaded.model.config.text_config.hidden_size)
        engine = TransformersEngine(
            loaded, max_rows=max_rows, kv_bytes=_KEPT_BYTES, value_head=head
        )
        super().__init__(engine, kind, max_rows)

    async def check(self) -> None:
        """Raises RuntimeError where the engine does not work any more."""
        await self._engine.check()

    def close(self) -> None:
        """Stop the engine's thread."""
        self._engine.close()


def option_ids(encoder: RowEncoder) -> tuple[int, int]:
    """The single tokens that the two options are answered with.

    Raises ValueError where the tokenizer needs several tokens for one of them.
    """
    ids = [encoder.ids(option) for option in OPTIONS]
    if any(len(i) != 1 or i[0] == encoder.tokenizer.unk_token_id for i in ids):
        raise ValueError(f"The judge's tokenizer has no single token for each of {OPTIONS}.")
    return ids[0][0], ids[1][0]
