"""The default generator: any number of questions decoded as one batch of rows in one process.

A thread runs the model. Between steps it admits waiting calls: a call's prompt is prefilled once
(or found among the kept rows), forked into one row for each seed, and joins the rows that are
already decoding. Finished rows leave at once and are kept, so that the winner of a stage is
extended without a second prefill. Rows have lengths of their own, padded on the left.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import torch

from stagebeam.inference.kv import (
    KeptRow,
    LayerKV,
    LruBytes,
    as_cache,
    images_digest,
    layers_of,
    pad_left,
    row_key,
    trim_left,
)
from stagebeam.inference.sampling import draw_tokens
from stagebeam.inference.types import Candidate, FinishReason, GenerateRequest, Usage
from stagebeam.models.encoder import Arrays
from stagebeam.models.families.mllama_runtime import MllamaRuntime
from stagebeam.models.load import Loaded

_VISION_BYTES = 64 << 20


@dataclass(slots=True)
class _Job:
    """One call, while it is answered."""

    request: GenerateRequest
    prompt_ids: list[int]
    ids: list[int]  # prompt and prefix
    images: list[Arrays]
    digest: bytes
    loop: asyncio.AbstractEventLoop
    out: asyncio.Queue[Candidate | Usage | Exception]
    cancelled: bool = False
    live: int = 0  # rows still decoding
    usage: Usage = field(default_factory=Usage)

    def emit(self, item: Candidate | Usage | Exception) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.out.put_nowait, item)


@dataclass(slots=True)
class _Row:
    """One candidate, while it is decoded."""

    job: _Job
    index: int
    cross: torch.Tensor  # [1, 1, I, K]
    generator: torch.Generator
    sampled: list[int] = field(default_factory=list)
    logprob: float = 0.0

    @property
    def length(self) -> int:
        """Tokens in the cache: all but the last one sampled."""
        return len(self.job.ids) + len(self.sampled) - 1


class TransformersEngine:
    """Implements the Generator protocol over a loaded model."""

    def __init__(self, loaded: Loaded, *, max_rows: int, kv_bytes: int) -> None:
        """`max_rows` rows decode together; `kv_bytes` bounds the memory of kept rows."""
        self.fingerprint = loaded.fingerprint
        self._runtime = MllamaRuntime(loaded)
        self._encoder = loaded.encoder
        ends = loaded.model.generation_config.eos_token_id
        self._ends = frozenset(ends if isinstance(ends, list) else [ends])
        self._max_rows = max_rows
        self._kept: LruBytes[KeptRow] = LruBytes(kv_bytes, lambda row: row.nbytes)
        self._vision: LruBytes[torch.Tensor] = LruBytes(_VISION_BYTES, lambda t: t.nbytes)
        self._waiting: queue.Queue[_Job | None] = queue.Queue()
        self._rows: list[_Row] = []
        self._layers: tuple[LayerKV, ...] = ()
        self._width = 0  # columns of the growing layers
        self._next: _Job | None = None
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
        """Candidates as they finish, then the usage. Closing the iterator stops the decoding.

        Raises ValueError for a prompt that cannot be encoded (chat markers, a broken image).
        """
        job = await asyncio.to_thread(self._prepare, request, asyncio.get_running_loop())
        self._waiting.put(job)
        try:
            while True:
                item = await job.out.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if isinstance(item, Usage):
                    return
        finally:
            job.cancelled = True

    def close(self) -> None:
        """Stop the decoding thread."""
        self._waiting.put(None)
        self._thread.join()

    def _prepare(self, request: GenerateRequest, loop: asyncio.AbstractEventLoop) -> _Job:
        prompt = request.prompt
        images = [self._encoder.image(image) for image in prompt.images]
        prompt_ids = self._encoder.prompt_ids(prompt.messages, images)
        return _Job(
            request=request,
            prompt_ids=prompt_ids,
            ids=prompt_ids + self._encoder.ids(request.prefix),
            images=images,
            digest=images_digest(prompt.images),
            loop=loop,
            out=asyncio.Queue(),
        )

    # --- the decoding thread ---

    def _run(self) -> None:
        while True:
            try:
                if not self._admit():
                    return
                self._drop_cancelled()
                if self._rows:
                    self._step()
            except Exception as error:  # reaches every caller that it concerns
                for job in {id(row.job): row.job for row in self._rows}.values():
                    job.emit(error)
                self._rows, self._layers, self._width = [], (), 0

    def _admit(self) -> bool:
        """Let waiting calls in, oldest first, while they fit; False when the engine is closed."""
        while True:
            if self._next is None:
                try:
                    job = self._waiting.get(block=not self._rows)
                except queue.Empty:
                    return True
                if job is None:
                    return False
                self._next = job
            job = self._next
            if self._rows and len(self._rows) + len(job.request.seeds) > self._max_rows:
                return True
            if self._rows and max(1, len(job.images)) != self._rows[0].cross.shape[2]:
                return True  # rows of one batch hold equally many images
            self._next = None
            if not job.cancelled:
                self._start(job)

    def _start(self, job: _Job) -> None:
        count = len(job.request.seeds)
        try:
            kept, job.usage = self._prefill(job)
            cross = self._runtime.cross_rows(job.ids, job.images)[:, -1:]
            rows = [
                _Row(job, index, cross, torch.Generator().manual_seed(seed))
                for index, seed in enumerate(job.request.seeds)
            ]
            forked = tuple(
                (k.expand(count, -1, -1, -1), v.expand(count, -1, -1, -1)) for k, v in kept.layers
            )
            self._join(rows, forked, kept.length)
        except Exception as error:  # the rows that decode already are untouched
            job.emit(error)
            return
        job.live = count
        assert kept.logits is not None
        self._sample(rows, kept.logits.expand(count, -1))
        self._retire()

    def _prefill(self, job: _Job) -> tuple[KeptRow, Usage]:
        """The row of prompt and prefix, from kept rows where there are any, and what it cost."""
        key = row_key(job.digest, job.ids)
        found, start = self._longest_kept(job)
        if found is not None and start == len(job.ids):
            return found, Usage(cache_hits=1)
        states, encodes = (None, 0) if found is not None else self._states(job)
        cache = as_cache(found.layers if found is not None else ())
        logits = self._runtime.prefill(job.ids, job.images, start, cache, states)
        row = KeptRow(layers_of(cache), len(job.ids), logits)
        self._kept.put(key, row)
        return row, Usage(
            image_encodes=encodes,
            prefill_tokens=len(job.ids) - start,
            sequential_passes=1,
            cache_hits=int(found is not None),
        )

    def _longest_kept(self, job: _Job) -> tuple[KeptRow | None, int]:
        """A kept row that `job.ids` begins with: all of it, all but one token, or the prompt."""
        for end in (len(job.ids), len(job.ids) - 1, len(job.prompt_ids)):
            row = self._kept.get(row_key(job.digest, job.ids[:end]))
            if row is not None and (row.logits is not None or end < len(job.ids)):
                return row, end
        return None, 0

    def _states(self, job: _Job) -> tuple[torch.Tensor, int]:
        """Vision states [1, S, D] and how many images were encoded for them."""
        states = self._vision.get(job.digest)
        if states is not None:
            return states, 0
        states = self._runtime.vision([job.images])
        self._vision.put(job.digest, states)
        return states, len(job.images)

    def _join(self, rows: list[_Row], layers: Sequence[LayerKV], length: int) -> None:
        grows = self._runtime.grows
        width = max(self._width, length)
        new = pad_left(layers, grows, width - length)
        if self._rows:
            old = pad_left(self._layers, grows, width - self._width)
            new = tuple(
                (torch.cat((a, c)), torch.cat((b, d)))
                for (a, b), (c, d) in zip(old, new, strict=True)
            )
        self._layers, self._width = new, width
        self._rows = self._rows + rows

    def _step(self) -> None:
        """One forward pass for every live row, one token for each."""
        rows = self._rows
        device = self._runtime.device
        cache = as_cache(self._layers)
        logits = self._runtime.decode(
            torch.tensor([row.sampled[-1] for row in rows], device=device),
            torch.tensor([row.length for row in rows], device=device),
            torch.cat([row.cross for row in rows]),
            cache,
        )
        self._layers, self._width = layers_of(cache), self._width + 1
        for job in {id(row.job): row.job for row in rows}.values():
            job.usage += Usage(sequential_passes=1)
        self._sample(rows, logits)
        self._retire()

    def _sample(self, rows: list[_Row], logits: torch.Tensor) -> None:
        sampling = [row.job.request.sampling for row in rows]
        tokens, logprobs = draw_tokens(
            logits,
            torch.tensor([s.temperature for s in sampling]),
            torch.tensor([s.top_p for s in sampling]),
            [row.generator for row in rows],
        )
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            row.sampled.append(token)
            row.logprob += logprob

    def _retire(self) -> None:
        """Hand over the rows that are finished, keep their keys and values, drop them."""
        staying = []
        for place, row in enumerate(self._rows):
            finish = self._finish(row)
            if finish is None:
                staying.append(place)
            else:
                self._hand_over(place, row, *finish)
        self._keep(staying)

    def _finish(self, row: _Row) -> tuple[FinishReason, str] | None:
        """How the row ended and its text, or None while it goes on."""
        request = row.job.request
        if row.sampled[-1] in self._ends:
            return "end", self._text(row.sampled[:-1])
        longest = max(map(len, request.stops))
        tail = self._text(row.sampled[-longest:])  # a token has at least one character
        if any(stop in tail for stop in request.stops):
            text = self._text(row.sampled)
            ends = [text.index(stop) + len(stop) for stop in request.stops if stop in text]
            return "stop", text[: min(ends)]
        if len(row.sampled) >= request.sampling.max_new_tokens:
            return "length", self._text(row.sampled)
        return None

    def _text(self, ids: Sequence[int]) -> str:
        """Plain text: a chat marker that the model may have sampled is no part of an answer."""
        return str(
            self._encoder.tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _hand_over(self, place: int, row: _Row, finish: FinishReason, text: str) -> None:
        job = row.job
        if finish == "stop":
            grows, offset = self._runtime.grows, self._width - row.length
            single = [(k[place : place + 1], v[place : place + 1]) for k, v in self._layers]
            layers = tuple((k.clone(), v.clone()) for k, v in trim_left(single, grows, offset))
            ids = job.ids + row.sampled[:-1]
            self._kept.put(row_key(job.digest, ids), KeptRow(layers, row.length, None))
        count = len(row.sampled)
        job.usage += Usage(decode_tokens=count)
        job.emit(Candidate(row.index, text, count, row.logprob, finish))
        job.live -= 1
        if not job.live:
            job.emit(job.usage)

    def _drop_cancelled(self) -> None:
        if any(row.job.cancelled for row in self._rows):
            self._keep([i for i, row in enumerate(self._rows) if not row.job.cancelled])

    def _keep(self, places: list[int]) -> None:
        """Only these rows go on; columns that are padding for all of them go too."""
        if len(places) == len(self._rows):
            return
        self._rows = [self._rows[i] for i in places]
        if not places:
            self._layers, self._width = (), 0
            return
        index = torch.tensor(places, device=self._runtime.device)
        layers = tuple(
            (k.index_select(0, index), v.index_select(0, index)) for k, v in self._layers
        )
        width = max(row.length for row in self._rows)
        self._layers = trim_left(layers, self._runtime.grows, self._width - width)
        self._width = width
