"""The default engine: any number of questions decoded as one batch of rows in one process.

A thread runs the model. Between steps it admits waiting calls: a call's prompt is read once (or
found among what was read before), forked into one row for each seed, and joins the rows that are
already decoding. Finished rows leave at once and are kept, so that the winner of a stage is
extended without a second prefill. The same thread weighs rows for judges (`weigh`).
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from stagebeam.inference.decoding import Batch, Call, Row
from stagebeam.inference.drafts import Drafter
from stagebeam.inference.reading import Look, Reader, Span, Weights
from stagebeam.inference.stopping import Pieces
from stagebeam.inference.types import Candidate, GenerateRequest, Prompt, Usage
from stagebeam.models.encoder import RowEncoder
from stagebeam.models.load import Loaded
from stagebeam.models.runtimes import runtime_of

Item = Candidate | Usage | Exception

# What a pass costs before it has a token, in tokens: weights are read, operations are started. On a
# core of a CPU as measured with models of 0.4 and 34 million weights; a GPU reads weights for
# longer than it computes with them until a pass has some hundred tokens, which was not measured.
_PASS_TOKENS = {"cpu": 24.0}
_PASS_TOKENS_ELSE = 128.0

# Longer than any one step: the slowest is to read a long prompt with images on a CPU.
STUCK_S = 300.0


@dataclass(slots=True, eq=False)
class _Asked:
    """A call to `propose`, and where its answers go."""

    call: Call
    loop: asyncio.AbstractEventLoop
    out: asyncio.Queue[Item]

    def emit(self, item: Item) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.out.put_nowait, item)


@dataclass(frozen=True, slots=True, eq=False)
class _Weighing:
    """A call to `weigh`."""

    work: Callable[[], Weights]
    answer: Future[Weights]


class TransformersEngine:
    """Implements the Generator protocol over a loaded model."""

    def __init__(
        self,
        loaded: Loaded,
        *,
        max_rows: int,
        kv_bytes: int,
        draft_tokens: int = 8,
        value_head: torch.nn.Linear | None = None,
    ) -> None:
        """`max_rows` rows decode together; `kv_bytes` bounds the memory of kept rows. At most
        `draft_tokens` of a row are guessed ahead of a pass. A reward model has a value head."""
        self.fingerprint = loaded.fingerprint
        self.encoder: RowEncoder = loaded.encoder
        self._runtime = runtime_of(loaded)
        self._reader = Reader(self._runtime, kv_bytes, value_head)
        ends = loaded.model.generation_config.eos_token_id
        pieces = Pieces(loaded.encoder.tokenizer)
        self._batch = Batch(
            self._runtime,
            pieces,
            frozenset(ends if isinstance(ends, list) else [ends]),
            Drafter(draft_tokens, _PASS_TOKENS.get(self._runtime.device.type, _PASS_TOKENS_ELSE)),
        )
        self._max_rows = max_rows
        self._longest = int(loaded.model.config.text_config.max_position_embeddings)  # tokens
        self._calls: dict[int, _Asked] = {}  # by their Call, while rows of it decode
        self._inbox: queue.Queue[_Asked | _Weighing | None] = queue.Queue()
        self._waiting: deque[_Asked] = deque()
        self._step_began: float | None = None  # of the monotonic clock; None while idle
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
        """Candidates as they finish, then the usage. Closing the iterator stops the decoding.

        Raises ValueError for a prompt that cannot be encoded (a broken image, turns that the chat
        template refuses).
        """
        until = time.monotonic() + (float("inf") if request.seconds is None else request.seconds)
        look, ids = await asyncio.to_thread(self.encode, request.prompt, request.prefix)
        call = Call(request, look, ids, until=until)
        asked = _Asked(call, asyncio.get_running_loop(), asyncio.Queue())
        self._inbox.put(asked)
        try:
            while True:
                item = await asked.out.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if isinstance(item, Usage):
                    return
        finally:
            call.cancelled = True

    async def weigh(self, look: Look, rows: Sequence[Span], options: Sequence[int] = ()) -> Weights:
        """Read whole rows that look at the same images, in one pass."""
        answer: Future[Weights] = Future()
        work = lambda: self._reader.weigh(look, rows, options)  # noqa: E731
        self._inbox.put(_Weighing(work, answer))
        return await asyncio.wrap_future(answer)

    def encode(self, prompt: Prompt, prefix: str) -> tuple[Look, list[int]]:
        """A prompt's images and the ids of prompt and prefix; from any thread.

        Raises ValueError for a prompt that cannot be encoded, or is longer than the model reads.
        """
        look = self._reader.look(prompt)
        ids = self._reader.prompt_ids(prompt.messages, look)
        if len(ids) >= self._longest:
            raise ValueError(
                f"The conversation has {len(ids)} tokens, images included, and the model reads at "
                f"most {self._longest}."
            )
        return look, ids + self.encoder.text_ids(prefix)

    def look(self, prompt: Prompt) -> Look:
        """A prompt's images. Raises ValueError where one cannot be decoded."""
        return self._reader.look(prompt)

    async def check(self) -> None:
        """Raises RuntimeError where the engine's thread has ended, or hangs in one step."""
        if not self._thread.is_alive():
            raise RuntimeError("The engine's thread has ended.")
        began = self._step_began
        if began is not None and time.monotonic() - began > STUCK_S:
            raise RuntimeError(f"The engine has been in one step for over {STUCK_S:.0f} seconds.")

    def close(self) -> None:
        """Stop the engine's thread."""
        self._inbox.put(None)
        self._thread.join()

    # --- the engine's thread ---

    @torch.inference_mode()
    def _run(self) -> None:
        while self._receive():
            self._step_began = time.monotonic()
            try:
                self._admit()
                if self._batch.rows:
                    self._batch.step()
                self._retire()
            except Exception as error:  # reaches every caller that it concerns
                for call in self._batch.drop():
                    self._calls.pop(id(call)).emit(error)

    def _receive(self) -> bool:
        """Take in what has come, weigh what is to be weighed; False when the engine is closed."""
        idle = not self._batch.rows and not self._waiting
        while True:
            try:
                self._step_began = None
                came = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            if came is None:
                return False
            self._step_began = time.monotonic()
            if isinstance(came, _Asked):
                self._waiting.append(came)
                idle = False
            elif came.answer.set_running_or_notify_cancel():
                try:
                    came.answer.set_result(came.work())
                except Exception as error:
                    came.answer.set_exception(error)

    def _admit(self) -> None:
        """Let waiting calls in, oldest first, while they fit."""
        while self._waiting:
            asked = self._waiting[0]
            rows = len(self._batch.rows)
            if asked.call.cancelled:
                self._waiting.popleft()
            elif rows and rows + len(asked.call.request.seeds) > self._max_rows:
                return
            else:
                self._waiting.popleft()
                self._start(asked)
                self._retire()

    def _start(self, asked: _Asked) -> None:
        call = asked.call
        try:
            begun = self._reader.begin(call.look, call.ids)
            sight, encoded = self._reader.shown(call.look)
            call.usage = begun.usage + Usage(image_encodes=encoded)
            self._calls[id(call)] = asked
            self._batch.join(call, begun, sight)
        except Exception as error:  # the rows that decode already are untouched
            call.cancelled = True  # and those that did join leave
            self._calls.pop(id(call), None)
            asked.emit(error)

    def _retire(self) -> None:
        for row in self._batch.retire(self._reader.store.put):
            self._hand_over(row)
        gone = [key for key, asked in self._calls.items() if asked.call.cancelled]
        for key in gone:
            del self._calls[key]

    def _hand_over(self, row: Row) -> None:
        call, asked = row.call, self._calls[id(row.call)]
        count = len(row.sampled)
        call.usage += Usage(decode_tokens=count)
        assert row.finish is not None
        asked.emit(Candidate(row.index, row.text, count, row.logprob, row.finish))
        call.live -= 1
        if not call.live:
            asked.emit(call.usage + Usage(sequential_passes=call.passes))
            del self._calls[id(call)]
