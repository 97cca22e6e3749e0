"""The rows that are being decoded: one forward pass brings each of them a token.

Rows lie in the first slots of a cache, in any order; who they are is kept beside them. Rows of all
questions share the pass, and each writes what it would write alone.

Shapes: R rows, W columns, S vision tokens, G questions (by their images), V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.functional import pad

from stagebeam.inference.prefixes import Kept
from stagebeam.inference.reading import Begun, Look
from stagebeam.inference.sampling import Manner, draw_tokens, numbers
from stagebeam.inference.slots import SlotCache
from stagebeam.inference.stopping import Pieces, Watch, cut
from stagebeam.inference.types import FinishReason, GenerateRequest, Usage
from stagebeam.models.attention import Shared
from stagebeam.models.runtime import Pass, Runtime, Sight


@dataclass(slots=True, eq=False)
class Call:
    """One request while it is answered."""

    request: GenerateRequest
    look: Look
    ids: list[int]  # prompt and prefix
    usage: Usage = field(default_factory=Usage)
    cancelled: bool = False
    live: int = 0  # rows that are still decoded
    passes: int = 0  # that decoded rows of it
    until: float = float("inf")  # of the monotonic clock; rows are cut then


@dataclass(slots=True, eq=False)
class Row:
    """One candidate."""

    call: Call
    index: int
    scene: _Scene
    offset: int  # of a token's position against its place in the row
    numbers: Iterator[float]
    watch: Watch
    length: int  # tokens in the slot
    pending: int  # the token that goes through the model next
    sampled: list[int] = field(default_factory=list)
    logprob: float = 0.0
    finish: FinishReason | None = None
    text: str = ""  # once it is finished


@dataclass(frozen=True, slots=True, eq=False)
class _Scene:
    """What the rows of one set of images look at."""

    sight: Sight
    looks: torch.Tensor | None  # [S] bool
    touched: bool


@dataclass(slots=True, eq=False)
class _Lanes:
    """Where the rows stand, on the device; a pass brings all of them one place further."""

    manner: Manner
    ids: torch.Tensor  # [R, 1] the tokens that go through the model next
    at: torch.Tensor  # [R] the columns that they are written to
    offsets: torch.Tensor  # [R] of a position against a column
    longest: int  # the last of those columns


class Batch:
    """Rows of one model; used by one thread."""

    def __init__(self, runtime: Runtime, pieces: Pieces, ends: frozenset[int]) -> None:
        """`ends` are the tokens that end a turn."""
        self._runtime, self._pieces, self._ends = runtime, pieces, ends
        self._cache = SlotCache(runtime.kv, runtime.layers, runtime.dtype, runtime.device)
        self.rows: list[Row] = []
        self._lanes: _Lanes | None = None  # None once rows came or left
        self._shared: Shared | None = None
        self._looks: torch.Tensor | None = None  # [G, 1, 1, S]
        self._touched: torch.Tensor | None = None  # [R, 1, 1, 1]

    def join(self, call: Call, begun: Begun, sight: Sight) -> None:
        """Fork a row that was begun into one for each seed. If it fails, no row was changed."""
        request, here = call.request, len(self.rows)
        count = len(request.seeds)
        slots = self._cache.slots
        slots.reserve(here + count, begun.covered + 1)
        slots.put(here, count, begun.kept.kv[:, :, :, : begun.covered])
        positions = self._runtime.positions(call.ids, call.look.images)
        offset = int(positions[-1].max()) + 1 - len(call.ids)
        scene = self._scene(call, sight)
        rows = [
            Row(
                call=call,
                index=index,
                scene=scene,
                offset=offset,
                numbers=numbers(seed),
                watch=Watch(request.stops),
                length=begun.covered,
                pending=call.ids[-1],
            )
            for index, seed in enumerate(request.seeds)
        ]
        call.live = count
        self.rows += rows
        self._lanes = None
        if begun.logits is not None:
            manner = Manner.of([request.sampling] * count, self._runtime.device)
            self._sample(rows, begun.logits.expand(count, -1), manner)
        else:
            call.usage += Usage(prefill_tokens=count)  # each row takes the last token itself

    def _scene(self, call: Call, sight: Sight) -> _Scene:
        for row in self.rows:
            if row.call.look.digest == call.look.digest:
                return row.scene
        images = call.look.images
        seen = self._runtime.looks(call.ids, images) if images else None
        if seen is None:
            return _Scene(sight, None, False)
        return _Scene(sight, seen[0][-1].to(self._runtime.device), bool(seen[1][-1]))

    def step(self) -> None:
        """One pass, one token for each row."""
        lanes, runtime = self._lanes, self._runtime
        if lanes is None:
            lanes = self._lanes = self._laid_out()
            self._regroup()
        self._cache.aim_at_ends(lanes.at, lanes.longest)
        columns = torch.arange(self._cache.width, device=runtime.device)
        step = Pass(
            ids=lanes.ids,
            positions=runtime.spread((lanes.at + lanes.offsets)[:, None]),
            mask=(columns <= lanes.at[:, None])[:, None, None],
            looks=self._looks,
            touched=self._touched,
            shared=self._shared,
        )
        logits = runtime.run(step, self._cache)[:, -1]
        for row in self.rows:
            row.length += 1
        for call in {id(row.call): row.call for row in self.rows}.values():
            call.passes += 1
        lanes.ids = self._sample(self.rows, logits, lanes.manner)[:, None]
        lanes.at = lanes.at + 1
        lanes.longest += 1

    def _laid_out(self) -> _Lanes:
        rows, device = self.rows, self._runtime.device
        return _Lanes(
            manner=Manner.of([row.call.request.sampling for row in rows], device),
            ids=torch.tensor([[row.pending] for row in rows], device=device),
            at=torch.tensor([row.length for row in rows], device=device),
            offsets=torch.tensor([row.offset for row in rows], device=device),
            longest=max(row.length for row in rows),
        )

    def _regroup(self) -> None:
        """Lay out what the rows look at: once for all rows of the same images."""
        scenes = list({id(row.scene): row.scene for row in self.rows}.values())
        kvs = [scene.sight.kv for scene in scenes]
        self._shared = self._looks = self._touched = None
        there = [kv for kv in kvs if kv is not None]
        self._cache.show(None)
        if not there:
            return
        device = self._runtime.device
        most = max(kv.shape[4] for kv in there)
        # a question without images looks at one column of zeros, which changes nothing
        *outer, _, width = there[0].shape
        blank = there[0].new_zeros(*outer, 1, width)
        filled = [blank if kv is None else kv for kv in kvs]
        wide = [pad(kv, (0, 0, 0, most - kv.shape[4])) for kv in filled]
        self._cache.show(wide[0] if len(wide) == 1 else torch.cat(wide, dim=2))
        one = torch.ones(1, dtype=torch.bool, device=device)
        looks = [one if scene.looks is None else scene.looks for scene in scenes]
        self._looks = torch.stack([pad(look, (0, most - len(look))) for look in looks])[
            :, None, None
        ]
        group = {id(scene): place for place, scene in enumerate(scenes)}
        groups = [group[id(row.scene)] for row in self.rows]
        still = frozenset(range(self._runtime.layers)) - frozenset(self._runtime.kv.layers)
        self._shared = Shared.of(still, groups, device)
        touched = torch.tensor([row.scene.touched for row in self.rows], device=device)
        self._touched = touched.to(self._runtime.dtype)[:, None, None, None]

    def _sample(self, rows: Sequence[Row], logits: torch.Tensor, manner: Manner) -> torch.Tensor:
        """Draw each row's next token from its logits [R, V], and see whether it ends there."""
        tokens, logprobs = draw_tokens(logits, manner, [next(row.numbers) for row in rows])
        now = time.monotonic()
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            row.sampled.append(token)
            row.logprob += logprob
            row.pending = token
            self._settle(row, now)
        return tokens

    def _settle(self, row: Row, now: float) -> None:
        request, token = row.call.request, row.pending
        if token in self._ends:
            row.finish, row.text = "end", self._pieces.text(row.sampled[:-1])
        elif row.watch.add(self._pieces[token]) and (
            text := cut(self._pieces.text(row.sampled), request.stops)
        ):
            row.finish, row.text = "stop", text
        elif len(row.sampled) >= request.sampling.max_new_tokens or now >= row.call.until:
            row.finish, row.text = "length", self._pieces.text(row.sampled)

    def retire(self, keep: Callable[[Kept], None]) -> list[Row]:
        """Take out the rows that are finished or whose call is cancelled, and give the finished
        ones; `keep` gets the keys and values of those that a next stage may go on from."""
        leaving = [i for i, row in enumerate(self.rows) if row.finish or row.call.cancelled]
        finished = []
        for place in reversed(leaving):
            row = self.rows[place]
            if not row.call.cancelled:
                finished.append(row)
                if row.finish == "stop":
                    ids = np.array(row.call.ids + row.sampled, np.uint32)[: row.length]
                    kv = self._cache.slots.take(place, row.length)
                    keep(Kept(row.call.look.digest, ids, kv))
            last = self.rows.pop()
            if last is not row:
                self.rows[place] = last
                self._cache.slots.move(len(self.rows), place, last.length)
            self._lanes = None
        return finished[::-1]

    def drop(self) -> list[Call]:
        """Let all rows go; the calls that they were of."""
        calls = list({id(row.call): row.call for row in self.rows}.values())
        self.rows, self._lanes = [], None
        return calls
