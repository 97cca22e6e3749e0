"""Reading single rows: what was read before is found again, the rest goes through the model once.

Shapes: T tokens, C rows, O options, V vocabulary, D width of the decoder; see models/runtime.py.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from stagebeam.inference.prefixes import Kept, LruBytes, PrefixStore, images_digest
from stagebeam.inference.slots import SlotCache
from stagebeam.inference.tree import Tree, plant, shared_length, stretches
from stagebeam.inference.types import Prompt, Usage
from stagebeam.models.branches import Branches, Stretch
from stagebeam.models.encoder import Arrays
from stagebeam.models.runtime import Pass, Runtime, Sight
from stagebeam.records import Message

V = TypeVar("V")
_SIGHT_BYTES = 1 << 30
_ARRAY_BYTES = 64 << 20
_PROMPT_BYTES = 16 << 20
_LOGITS_AT_ONCE = 256  # tokens
_STRETCH = 128  # tokens of a tree for which attention is done at once
_STRETCH_ON_DEVICE = 1024  # where starting an operation costs more than scores that nobody needs
_NOTHING = Sight()


@dataclass(frozen=True, slots=True)
class Look:
    """The images of a question, as arrays, what names them, and where they stand (`Prompt`)."""

    images: tuple[Arrays, ...]
    digest: bytes
    places: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Begun:
    """A row that can be decoded from: `kept` has its first `covered` tokens, all or all but one.
    `logits` [V] follow the last one where all are covered."""

    kept: Kept
    covered: int
    logits: torch.Tensor | None
    usage: Usage


@dataclass(frozen=True, slots=True)
class Span:
    """A row of which `ids[start:]` are weighed; with `start` at its end, what may follow it."""

    ids: Sequence[int]
    start: int


@dataclass(frozen=True, slots=True)
class Weights:
    """Of each row: the summed log-probability of its span, the options' logits behind it, and its
    value, where the model has a value head."""

    logprobs: list[float]  # [C]
    options: list[list[float]]  # [C][O]
    values: list[float]  # [C], or none
    usage: Usage


class Reader:
    """One model's reading; all but `look` and `prompt_ids` in the engine's one thread."""

    def __init__(
        self, runtime: Runtime, kv_bytes: int, value_head: torch.nn.Linear | None = None
    ) -> None:
        """`kv_bytes` bounds the keys and values that are kept."""
        self._runtime, self._encoder = runtime, runtime.encoder
        self._value_head = None if value_head is None else value_head.to(runtime.device)
        self.store = PrefixStore(kv_bytes)
        self._sights: LruBytes[Sight] = LruBytes(_SIGHT_BYTES, lambda sight: sight.nbytes)
        self._arrays: LruBytes[Arrays] = LruBytes(
            _ARRAY_BYTES, lambda arrays: sum(a.nbytes for a in arrays.values())
        )
        self._prompts: LruBytes[NDArray[np.uint32]] = LruBytes(
            _PROMPT_BYTES, lambda ids: ids.nbytes
        )
        self._lock = threading.Lock()
        self._desk = SlotCache(runtime.kv, runtime.layers, runtime.dtype, runtime.device)

    def look(self, prompt: Prompt) -> Look:
        """Decode a prompt's images, or find them decoded; from any thread.

        Raises ValueError where one cannot be decoded.
        """
        images = tuple(map(self._image, prompt.images))
        return Look(images, images_digest(prompt.images), prompt.places)

    def prompt_ids(self, messages: Sequence[Message], look: Look) -> list[int]:
        """Ids up to where the answer begins, made once for all stages of it; from any thread.

        Raises ValueError for a prompt that cannot be encoded.
        """
        said = repr((messages, look.places))
        return self._once(
            self._prompts,
            hashlib.sha256(look.digest + said.encode(errors="surrogatepass")).digest(),
            lambda: np.array(
                self._encoder.prompt_ids(messages, look.images, look.places), np.uint32
            ),
        ).tolist()

    def _image(self, data: bytes) -> Arrays:
        key = images_digest((data,))
        return self._once(self._arrays, key, lambda: self._encoder.image(data))

    def _once(self, known: LruBytes[V], key: bytes, make: Callable[[], V]) -> V:
        with self._lock:
            value = known.get(key)
        if value is None:
            value = make()
            with self._lock:
                known.put(key, value)
        return value

    def shown(self, look: Look) -> tuple[Sight, int]:
        """What the layers that hold images hold, and how many images were encoded for it."""
        return self._sight(look) if self._runtime.shows_images else (_NOTHING, 0)

    def _sight(self, look: Look) -> tuple[Sight, int]:
        if not look.images:
            return _NOTHING, 0
        sight = self._sights.get(look.digest)
        if sight is not None:
            return sight, 0
        sight = self._runtime.see(look.images)
        self._sights.put(look.digest, sight)
        return sight, len(look.images)

    def begin(self, look: Look, ids: Sequence[int]) -> Begun:
        """Read a row. All of it but its last token may be found; that one is then left to the
        first step of decoding."""
        found = self.store.find(look.digest, ids)
        kept, start = found if found is not None else (None, 0)
        if kept is not None and start >= len(ids) - 1:
            logits = kept.logits if start == len(ids) else None
            return Begun(kept, start, logits, Usage(cache_hits=1))
        encoded = self._lay_out(look, kept, start, ids)
        count = len(ids) - start
        step = self._step(look, ids, ids[start:], range(start, len(ids)))
        self._desk.aim_at_row(start, count)
        logits = self._runtime.run(step, self._desk)[0, -1]
        row = Kept(
            look.digest, np.array(ids, np.uint32), self._desk.slots.take(0, len(ids)), logits
        )
        self.store.put(row)
        hit = int(start > 0)
        usage = Usage(encoded, prefill_tokens=count, sequential_passes=1, cache_hits=hit)
        return Begun(row, len(ids), logits, usage)

    def weigh(self, look: Look, rows: Sequence[Span], options: Sequence[int]) -> Weights:
        """Read rows that look at the same images in one pass, in which no token stands twice, and
        keep what they begin with."""
        shared = shared_length([row.ids for row in rows])
        found = self.store.find(look.digest, rows[0].ids)
        kept, covered = found if found is not None else (None, 0)
        start = min(covered, shared, *(row.start - 1 for row in rows))
        tree = plant([row.ids for row in rows], start)
        encoded = self._lay_out(look, kept, start, rows[0].ids)
        longest = max((row.ids for row in rows), key=len)
        # where each weighed token was foretold
        told = [
            path[row.start - 1 - start : -1] for row, path in zip(rows, tree.paths, strict=True)
        ]
        ends = [path[-1] for path in tree.paths]
        wanted = sorted({place for places in (*told, ends) for place in places})
        at = torch.tensor(wanted, device=self._runtime.device)
        step = self._step(look, longest, tree.ids, tree.depth, self._branches(tree), at)
        self._desk.aim_at_row(start, len(tree.ids))
        hidden = self._runtime.hidden_at(step, self._desk)[0]  # [A, D]
        if shared > start:
            ids = np.array(rows[0].ids[:shared], np.uint32)
            self.store.put(Kept(look.digest, ids, self._desk.slots.take(0, shared)))
        order = {place: index for index, place in enumerate(wanted)}
        logprobs = self._logprobs(
            hidden,
            [[order[p] for p in places] for places in told],
            [r.ids[r.start :] for r in rows],
        )
        behind = hidden[[order[end] for end in ends]]  # [C, D]
        head = self._value_head
        values = [] if head is None else head(behind.float())[:, 0].tolist()
        logits = self._runtime.options(behind, options).float()
        usage = Usage(
            encoded, judge_tokens=len(tree.ids), sequential_passes=1, cache_hits=int(start > 0)
        )
        return Weights(logprobs, logits.tolist(), values, usage)

    def _logprobs(
        self, hidden: torch.Tensor, places: list[list[int]], ids: list[Sequence[int]]
    ) -> list[float]:
        """Of each row's `ids`, foretold at its `places` in `hidden` [A, D]."""
        flat = [place for row in places for place in row]
        target = torch.tensor([i for row in ids for i in row], device=hidden.device)
        found = [
            self._runtime.head(hidden[flat[at : at + _LOGITS_AT_ONCE]])
            .float()
            .log_softmax(-1)
            .gather(-1, target[at : at + _LOGITS_AT_ONCE, None])[:, 0]
            for at in range(0, len(flat), _LOGITS_AT_ONCE)
        ]
        split = torch.cat(found).split([len(row) for row in places]) if found else ()
        return [float(part.sum()) for part in split] if found else [0.0] * len(places)

    def _branches(self, tree: Tree) -> Branches:
        device = self._runtime.device
        size = _STRETCH if device.type == "cpu" else _STRETCH_ON_DEVICE
        return Branches(
            frozenset(self._runtime.kv.layers),
            tuple(
                Stretch(
                    slice(each.first, each.end),
                    each.columns
                    if isinstance(each.columns, slice)
                    else torch.from_numpy(each.columns).to(device),
                    torch.from_numpy(each.added).to(device, self._runtime.dtype)[None, None],
                )
                for each in stretches(tree, size)
            ),
        )

    def _lay_out(self, look: Look, kept: Kept | None, start: int, ids: Sequence[int]) -> int:
        """Put what is known of a row on the desk; how many images had to be encoded."""
        if kept is not None and start:
            self._desk.slots.reserve(1, start)
            self._desk.slots.put(0, 1, kept.kv[:, :, :, :start])
        if not self._runtime.shows_images and not self._to_come(ids, start):
            return 0
        sight, encoded = self._sight(look)
        self._desk.show(sight.kv)
        return encoded

    def _to_come(self, ids: Sequence[int], start: int) -> bool:
        """Whether there are image tokens from `start` on."""
        return self._encoder.processor.image_token_id in ids[start:]

    def _step(
        self,
        look: Look,
        row: Sequence[int],
        ids: Sequence[int],
        depth: Sequence[int],
        branches: Branches | None = None,
        at: torch.Tensor | None = None,
    ) -> Pass:
        """A pass over tokens `ids` that stand at `depth` of `row`, or of rows like it: one after
        another, unless `branches` say more."""
        device, start = self._runtime.device, depth[0]
        mask = torch.ones((), dtype=torch.bool, device=device).expand(len(ids), start + len(ids))
        places = torch.from_numpy(np.array(depth))
        features = looks = touched = None
        if not self._runtime.shows_images and self._to_come(row, start):
            image_token = self._encoder.processor.image_token_id
            features = self._sight(look)[0].features
            assert features is not None
            features = features[list(row[:start]).count(image_token) :]
        seen = self._runtime.looks(row, look.images) if look.images else None
        if seen is not None:
            looks = seen[0][places].to(device)[None, None]
            touched = seen[1][places].to(device, self._runtime.dtype)[None, None, :, None]
        return Pass(
            ids=torch.from_numpy(np.array([ids])).to(device),
            positions=self._runtime.positions(row, look.images)[places].to(device)[None],
            mask=(mask if branches else mask.tril(start))[None, None],
            features=features,
            looks=looks,
            touched=touched,
            branches=branches,
            at=at,
        )
