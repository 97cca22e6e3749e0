"""The rows that are being decoded: one forward pass brings each of them a token, or as many as were
guessed rightly and one more.

Rows lie in the first slots of a cache, in any order; who they are is kept beside them. Rows of all
questions share the pass, and each writes what it would write alone. Guesses go through the model
behind the token that is pending, and what is drawn for each is drawn as ever: with the row's own
next number. What a failed guess has left in a slot lies beyond the row's length, is never read and
soon overwritten.

Shapes: R rows, Q tokens of a pass, M the most of one row, W columns, S vision tokens, G questions
(by their images), V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from typing import TypeVar

import numpy as np
import torch
from torch.nn.functional import pad

from stagebeam.inference.drafts import LOOK_BACK, Ahead, Draft, Drafter
from stagebeam.inference.prefixes import Kept
from stagebeam.inference.reading import Begun, Look
from stagebeam.inference.sampling import Luck, Manner, draw_tokens
from stagebeam.inference.slots import SlotCache
from stagebeam.inference.stopping import Pieces, Watch, cut
from stagebeam.inference.types import FinishReason, GenerateRequest, Usage
from stagebeam.models.attention import Shared
from stagebeam.models.runtime import Pass, Runtime, Sight

_T = TypeVar("_T")


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
    luck: Luck
    watch: Watch
    sampled: list[int] = field(default_factory=list)
    logprob: float = 0.0
    finish: FinishReason | None = None
    text: str = ""  # once it is finished

    @property
    def pending(self) -> int:
        """The token that goes through the model next."""
        return self.sampled[-1] if self.sampled else self.call.ids[-1]

    @property
    def length(self) -> int:
        """Tokens in the slot: all but the one that is pending."""
        return len(self.call.ids) + len(self.sampled) - 1

    @property
    def tail(self) -> list[int]:
        """The last tokens, the pending one included."""
        sampled = self.sampled[-LOOK_BACK:]
        missing = LOOK_BACK - len(sampled)
        return self.call.ids[-missing:] + sampled if missing else sampled


@dataclass(frozen=True, slots=True, eq=False)
class _Scene:
    """What the rows of one set of images look at."""

    sight: Sight
    looks: torch.Tensor | None  # [S] bool
    touched: bool


@dataclass(slots=True, eq=False)
class _Lanes:
    """Where the rows stand, on the device; a pass without guesses brings all of them one place
    further."""

    manner: Manner
    offsets: torch.Tensor  # [R] of a position against a column
    ids: torch.Tensor  # [R, 1] the tokens that go through the model next
    at: torch.Tensor  # [R] the columns that they are written to
    longest: int  # the last of those columns


class Batch:
    """Rows of one model; used by one thread."""

    def __init__(
        self, runtime: Runtime, pieces: Pieces, ends: frozenset[int], drafter: Drafter
    ) -> None:
        """`ends` are the tokens that end a turn."""
        self._runtime, self._pieces, self._ends = runtime, pieces, ends
        self._drafter = drafter
        self._growing = frozenset(runtime.kv.layers)
        self._still = frozenset(range(runtime.layers)) - self._growing
        self._cache = SlotCache(runtime.kv, runtime.layers, runtime.dtype, runtime.device)
        self.rows: list[Row] = []
        self._lanes: _Lanes | None = None  # None once rows came or left
        self._groups: list[int] = []  # of each row, by its images
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
                luck=Luck(seed),
                watch=Watch(request.stops),
            )
            for index, seed in enumerate(request.seeds)
        ]
        call.live = count
        self.rows += rows
        self._lanes = None
        fresh = begun.usage.prefill_tokens
        if fresh:
            self._drafter.read(call.ids[-fresh - LOOK_BACK :])
        if begun.logits is not None:
            manner = Manner.of([request.sampling] * count, self._runtime.device)
            ahead = [Ahead(row.tail, row.luck.ahead(1)) for row in rows]
            drafts = [Draft() for _ in rows]
            self._draw(rows, ahead, drafts, begun.logits.expand(count, -1), manner)
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
        """One pass, at least one token for each row."""
        rows, lanes = self.rows, self._lanes
        if lanes is None:
            lanes = self._lanes = self._laid_out()
            self._regroup()
        ahead = [Ahead(row.tail, row.luck.ahead(1 + self._room(row))) for row in rows]
        drafts = self._drafter.draft(ahead)
        for call in {id(row.call): row.call for row in rows}.values():
            call.passes += 1
        if any(draft.tokens for draft in drafts):
            logits = self._checked(lanes, drafts)
            asked = [row.call.request.sampling for row in rows]
            manner = Manner.of(_each(asked, drafts), self._runtime.device)
            self._draw(rows, ahead, drafts, logits, manner)
            lanes.ids, lanes.at, lanes.longest = self._standing()
        else:
            tokens = self._draw(rows, ahead, drafts, self._plain(lanes), lanes.manner)
            lanes.ids = tokens[:, None]
            lanes.at = lanes.at + 1
            lanes.longest += 1

    def _room(self, row: Row) -> int:
        """How many guesses are of use to a row."""
        return self._drafter.room(row.call.request.sampling.max_new_tokens - len(row.sampled))

    def _plain(self, lanes: _Lanes) -> torch.Tensor:
        """Logits [R, V] behind each row's pending token."""
        runtime = self._runtime
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
        return runtime.run(step, self._cache)[:, -1]

    def _checked(self, lanes: _Lanes, drafts: Sequence[Draft]) -> torch.Tensor:
        """Logits [Q, V] behind each row's pending token and behind each of its guesses, row after
        row."""
        runtime, device = self._runtime, self._runtime.device
        owners = _each(range(len(self.rows)), drafts)
        ids = [
            token
            for row, draft in zip(self.rows, drafts, strict=True)
            for token in (row.pending, *draft.tokens)
        ]
        places = [place for draft in drafts for place in range(1 + len(draft.tokens))]
        index = torch.tensor(owners, device=device)
        at = lanes.at[index] + torch.tensor(places, device=device)
        lengths = (row.length + len(d.tokens) for row, d in zip(self.rows, drafts, strict=True))
        self._cache.aim_at(len(self.rows), index, at, max(lengths))
        beside = Shared.of(self._growing, owners, device)
        columns = torch.arange(self._cache.width, device=device)
        shared = touched = None
        if self._touched is not None:
            shared = Shared.of(self._still, [self._groups[owner] for owner in owners], device)
            touched = self._touched[index].transpose(0, 2)
        step = Pass(
            ids=torch.tensor([ids], device=device),
            positions=runtime.spread((at + lanes.offsets[index])[None]),
            mask=(columns <= at[beside.queries][..., None])[:, None],
            looks=self._looks,
            touched=touched,
            shared=shared,
            beside=beside,
            at=torch.arange(len(ids), device=device),
        )
        return runtime.run(step, self._cache)[0]

    def _laid_out(self) -> _Lanes:
        device = self._runtime.device
        return _Lanes(
            Manner.of([row.call.request.sampling for row in self.rows], device),
            torch.tensor([row.offset for row in self.rows], device=device),
            *self._standing(),
        )

    def _standing(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """The `ids`, `at` and `longest` of lanes."""
        device, lengths = self._runtime.device, [row.length for row in self.rows]
        ids = torch.tensor([[row.pending] for row in self.rows], device=device)
        return ids, torch.tensor(lengths, device=device), max(lengths)

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
        self._groups = [group[id(row.scene)] for row in self.rows]
        self._shared = Shared.of(self._still, self._groups, device)
        touched = torch.tensor([row.scene.touched for row in self.rows], device=device)
        self._touched = touched.to(self._runtime.dtype)[:, None, None, None]

    def _draw(
        self,
        rows: Sequence[Row],
        ahead: Sequence[Ahead],
        drafts: Sequence[Draft],
        logits: torch.Tensor,
        manner: Manner,
    ) -> torch.Tensor:
        """Draw each row's next tokens from its logits, which are [Q, V] row after row, up to the
        first that was not guessed, and see whether it ends. Gives all that was drawn, [Q]."""
        luck = [
            number
            for each, draft in zip(ahead, drafts, strict=True)
            for number in each.numbers[: 1 + len(draft.tokens)]
        ]
        tokens, logprobs = draw_tokens(logits, manner, luck)
        drawn = zip(tokens.tolist(), logprobs.tolist(), strict=True)
        now = time.monotonic()
        for row, before, draft in zip(rows, ahead, drafts, strict=True):
            count = 1 + len(draft.tokens)
            written = self._write(row, draft, list(islice(drawn, count)), now)
            row.luck.spend(len(written))
            self._drafter.learn(before, draft, written)
        return tokens

    def _write(
        self, row: Row, draft: Draft, drawn: Sequence[tuple[int, float]], now: float
    ) -> list[int]:
        """Let the row have what was drawn, as far as it follows from what the row has."""
        written = []
        for (token, logprob), guess in zip_longest(drawn, draft.tokens):
            row.sampled.append(token)
            row.logprob += logprob
            written.append(token)
            self._settle(row, now)
            if row.finish is not None or token != guess:
                break
        return written

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


def _each(items: Sequence[_T], drafts: Sequence[Draft]) -> list[_T]:
    """A row's item for each of its tokens in a pass."""
    return [
        item
        for item, draft in zip(items, drafts, strict=True)
        for _ in range(1 + len(draft.tokens))
    ]
