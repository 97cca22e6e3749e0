"""Where an answer's time goes: timers around what engine and judge call, put there from outside.

The parts of one answer and `other` add up to its seconds: one question at a time, generator and
judge take turns. The forward passes are noted with their shapes, so that they can be run again
without everything around them (`search_ideal`).
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

from stagebeam.inference import sampling
from stagebeam.inference.transformers_engine import TransformersEngine
from stagebeam.inference.verdict import TransformersJudge
from stagebeam.models.attention import Shared
from stagebeam.models.load import Loaded

# `encode`: texts to ids and back, image files to pixels. `image`: the vision tower. `prefill`:
# finding and reading a row. `decode`: the forward passes over all rows. `rows`: what is done around
# such a pass (masks, who joins, ends and leaves). `judge`: laying out and reading a round.
Part = Literal["encode", "image", "prefill", "decode", "sampling", "rows", "judge"]
PARTS: tuple[Part, ...] = get_args(Part)
OTHER = "other"  # hand-overs between threads, the search itself


@dataclass(frozen=True, slots=True)
class LanguagePass:
    """One forward pass of the decoder, for all of its rows. Where tokens of several rows go side by
    side, `beside` says whose they are, and `shared` whose image each looks at."""

    model: Any
    rows: int
    tokens: int  # new ones of each row; of all rows, where they go side by side
    columns: int  # of keys and values that a token may look at, its own included
    seen: int  # vision tokens of a row; 0: layers that look at images are skipped
    beside: Shared | None = None
    shared: Shared | None = None


@dataclass(frozen=True, slots=True)
class HeadPass:
    """From the decoder's output to logits."""

    model: Any
    tokens: int  # of all rows


@dataclass(frozen=True, slots=True)
class ImagePass:
    """One forward pass of the vision tower."""

    model: Any
    shape: tuple[int, ...]  # of the pixels, [B, I, K, C, H, W]

    @property
    def images(self) -> int:
        return self.shape[0] * self.shape[1]


Pass = LanguagePass | HeadPass | ImagePass


class Watch:
    """Seconds by part and the passes, of what runs while it is on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.passes: list[Pass] = []
        self._lock = threading.Lock()
        self._thread = threading.local()

    @property
    def image_encodes(self) -> int:
        return sum(p.images for p in self.passes if isinstance(p, ImagePass))

    def parts_of(self, seconds: float) -> dict[str, float]:
        """The parts, and what is left of `seconds`; that is negative where threads overlapped."""
        return {**self.seconds, OTHER: seconds - sum(self.seconds.values())}

    def timed(
        self, part: Part, function: Callable[..., Any], within: tuple[Part, ...] = ()
    ) -> Callable[..., Any]:
        """`function` with its time counted as `part`, less that of timed functions inside it;
        inside one that counts as a part of `within`, it counts as that one."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            open_parts: list[Part] = self._thread.__dict__.setdefault("parts", [])
            inside = bool(open_parts) and open_parts[-1] in within
            self._charge(open_parts)
            open_parts.append(open_parts[-1] if inside else part)
            try:
                return function(*args, **kwargs)
            finally:
                self._charge(open_parts)
                open_parts.pop()

        return call

    def _charge(self, open_parts: list[Part]) -> None:
        """The time since the last change of parts goes to the innermost one."""
        now = time.perf_counter()
        if open_parts:
            with self._lock:
                self.seconds[open_parts[-1]] += now - self._thread.since
        self._thread.since = now

    def note(self, done: Pass) -> None:
        with self._lock:
            self.passes.append(done)


@contextmanager
def watching(engine: TransformersEngine, judge: TransformersJudge) -> Iterator[Watch]:
    """A watch over both, which is taken off again at the end."""
    watch = Watch()
    with ExitStack() as undo:

        def count(part: Part, owner: Any, *names: str, within: tuple[Part, ...] = ()) -> None:
            for name in names:
                setattr(owner, name, watch.timed(part, getattr(owner, name), within))
                undo.callback(delattr, owner, name)  # the class's own is behind it

        rooms = (engine, judge._engine)
        for encoder in {id(room.encoder): room.encoder for room in rooms}.values():
            count("encode", encoder, "image", "prompt_ids", "prompt_text", "ids")
            count("encode", encoder.tokenizer, "decode")
        for room in rooms:
            count("image", room._runtime, "see")
            count("prefill", room._reader, "begin")
            count("judge", room._reader, "weigh")
            count("rows", room._batch, "join", "step", "retire")
            count("decode", room._runtime, "run", within=("prefill",))
        _time_sampling(watch, undo)
        _note_passes(watch, undo, engine._runtime.model, judge._engine._runtime.model)
        yield watch


@contextmanager
def noting_passes(*models: Loaded) -> Iterator[Watch]:
    """A watch over bare models."""
    with ExitStack() as undo:
        watch = Watch()
        _note_passes(watch, undo, *(loaded.model for loaded in models))
        yield watch


def _time_sampling(watch: Watch, undo: ExitStack) -> None:
    """The functions of `sampling`, under the names by which other modules know them."""
    for name, module in list(sys.modules.items()):
        if not name.startswith("stagebeam.inference.") or module is sampling:
            continue
        for known, value in list(vars(module).items()):
            if inspect.isfunction(value) and value.__module__ == sampling.__name__:
                undo.callback(setattr, module, known, value)
                setattr(module, known, watch.timed("sampling", value))


def _note_passes(watch: Watch, undo: ExitStack, *models: Any) -> None:
    for model in {id(model): model for model in models}.values():

        def language(_: Any, args: Any, kwargs: dict[str, Any], model: Any = model) -> None:
            rows, tokens = kwargs["input_ids"].shape
            mask, looks = kwargs.get("attention_mask"), kwargs.get("cross_attention_mask")
            columns = tokens if mask is None else mask.shape[-1]
            seen = 0 if looks is None else looks.shape[-1]
            beside = kwargs.get("beside")
            if beside is None:
                watch.note(LanguagePass(model, rows, tokens, columns, seen))
                return
            rows, shared = len(beside.queries), kwargs["shared"]
            watch.note(LanguagePass(model, rows, tokens, columns, seen, beside, shared))

        def head(_: Any, args: Any, model: Any = model) -> None:
            watch.note(HeadPass(model, args[0].numel() // args[0].shape[-1]))

        def image(_: Any, args: Any, kwargs: dict[str, Any], model: Any = model) -> None:
            watch.note(ImagePass(model, tuple(kwargs["pixel_values"].shape)))

        hooks = [
            model.model.language_model.register_forward_pre_hook(language, with_kwargs=True),
            model.lm_head.register_forward_pre_hook(head),
            model.model.vision_model.register_forward_pre_hook(image, with_kwargs=True),
        ]
        for hook in hooks:
            undo.callback(hook.remove)
