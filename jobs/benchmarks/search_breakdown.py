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
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch

from stagebeam.inference import sampling
from stagebeam.inference.transformers_engine import TransformersEngine
from stagebeam.inference.verdict import TransformersJudge
from stagebeam.models.load import Loaded

Part = Literal["encode", "image", "prefill", "decode", "sampling", "judge"]
PARTS: tuple[Part, ...] = get_args(Part)
OTHER = "other"  # hand-overs between threads, rows that join and leave, the search itself


@dataclass(frozen=True, slots=True)
class LanguagePass:
    """One forward pass of the decoder, for all of its rows."""

    model: Any
    rows: int
    tokens: int  # new ones of each row
    width: int  # columns that were there before
    states: bool  # vision states were given, not found in the cache
    cached: bool  # keys and values were kept
    logits: int  # positions of each row that logits were computed for


@dataclass(frozen=True, slots=True)
class ImagePass:
    """One forward pass of the vision tower."""

    model: Any
    shape: tuple[int, ...]  # of the pixels, [B, I, K, C, H, W]

    @property
    def images(self) -> int:
        return self.shape[0] * self.shape[1]


Pass = LanguagePass | ImagePass


class Watch:
    """Seconds by part and the passes, of what runs while it is on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.passes: list[Pass] = []
        self._lock = threading.Lock()
        self._inside = threading.local()
        self._begun: dict[int, LanguagePass] = {}  # by thread, until its logits are there

    @property
    def image_encodes(self) -> int:
        return sum(p.images for p in self.passes if isinstance(p, ImagePass))

    def parts_of(self, seconds: float) -> dict[str, float]:
        """The parts, and what is left of `seconds`; that is negative where threads overlapped."""
        return {**self.seconds, OTHER: seconds - sum(self.seconds.values())}

    def timed(self, part: Part, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its time counted as `part` unless it runs inside another counted one."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._inside, "part", None) is not None:
                return function(*args, **kwargs)
            self._inside.part = part
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                with self._lock:
                    self.seconds[part] += time.perf_counter() - began
                self._inside.part = None

        return call

    # --- the model's own hooks ---

    def begin_language(self, model: Any, kwargs: dict[str, Any]) -> None:
        given = kwargs.get("input_ids")
        given = kwargs["inputs_embeds"] if given is None else given
        rows, tokens = given.shape[:2]
        cache = kwargs.get("past_key_values")
        self._begun[threading.get_ident()] = LanguagePass(
            model=model,
            rows=rows,
            tokens=tokens,
            width=0 if cache is None else int(cache.get_seq_length()),
            states=kwargs.get("cross_attention_states") is not None,
            cached=cache is not None,
            logits=0,
        )

    def end_language(self, logits: torch.Tensor) -> None:
        begun = self._begun.pop(threading.get_ident())
        positions = logits.numel() // logits.shape[-1] // begun.rows
        with self._lock:
            self.passes.append(replace(begun, logits=positions))

    def image(self, model: Any, pixels: torch.Tensor) -> None:
        with self._lock:
            self.passes.append(ImagePass(model, tuple(pixels.shape)))


@contextmanager
def watching(engine: TransformersEngine, judge: TransformersJudge) -> Iterator[Watch]:
    """A watch over both, which is taken off again at the end."""
    watch = Watch()
    with ExitStack() as undo:
        for room, rest in ((engine, "prefill"), (judge, "judge")):
            _time_runtime(watch, room._runtime, rest, undo)
        encoders = {id(room._encoder): room._encoder for room in (engine, judge)}
        for encoder in encoders.values():
            for name in ("image", "prompt_ids", "ids"):
                _replace(encoder, name, watch.timed("encode", getattr(encoder, name)), undo)
            decode = watch.timed("encode", encoder.tokenizer.decode)
            _replace(encoder.tokenizer, "decode", decode, undo)
        _time_sampling(watch, undo)
        for handle in _hooks(watch, engine._runtime.model, judge._runtime.model):
            undo.callback(handle.remove)
        yield watch


@contextmanager
def counting_images(*models: Loaded) -> Iterator[Watch]:
    """A watch over the bare models' passes alone."""
    watch = Watch()
    with ExitStack() as undo:
        for handle in _hooks(watch, *(loaded.model for loaded in models)):
            undo.callback(handle.remove)
        yield watch


def _time_runtime(watch: Watch, runtime: Any, rest: Any, undo: ExitStack) -> None:
    for name, _ in inspect.getmembers(type(runtime), inspect.isfunction):
        if name.startswith("_"):
            continue
        part: Any = "image" if name == "vision" else rest
        if rest == "prefill" and name.startswith("decode"):
            part = "decode"
        _replace(runtime, name, watch.timed(part, getattr(runtime, name)), undo)


def _time_sampling(watch: Watch, undo: ExitStack) -> None:
    """Functions of `sampling`, under the names by which the engine's modules know them."""
    for name, module in list(sys.modules.items()):
        if not name.startswith("stagebeam.inference.") or module is sampling:
            continue
        for known, value in list(vars(module).items()):
            if inspect.isfunction(value) and value.__module__ == sampling.__name__:
                undo.callback(setattr, module, known, value)
                setattr(module, known, watch.timed("sampling", value))


def _replace(owner: Any, name: str, value: Any, undo: ExitStack) -> None:
    """An attribute of the instance, in front of its class's."""
    setattr(owner, name, value)
    undo.callback(delattr, owner, name)


def _hooks(watch: Watch, *models: Any) -> Iterator[Any]:
    for model in {id(model): model for model in models}.values():
        begin = functools.partial(_begin_language, watch, model)
        yield model.model.language_model.register_forward_pre_hook(begin, with_kwargs=True)
        yield model.lm_head.register_forward_hook(lambda _, __, out: watch.end_language(out))
        begin_image = functools.partial(_begin_image, watch, model)
        yield model.model.vision_model.register_forward_pre_hook(begin_image, with_kwargs=True)


def _begin_language(watch: Watch, model: Any, _: Any, args: Any, kwargs: dict[str, Any]) -> None:
    watch.begin_language(model, kwargs)


def _begin_image(watch: Watch, model: Any, _: Any, args: Any, kwargs: dict[str, Any]) -> None:
    watch.image(model, kwargs["pixel_values"])
