"""Seeing a stop text come, token by token, without decoding what was written before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Pieces:
    """What each token adds to a text. A token is decoded when it is first seen."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}
        # Behind another token: at the beginning of a text many decoders drop a space.
        (*_, self._anchor) = tokenizer("a", add_special_tokens=False)["input_ids"]
        self._before = self.text([self._anchor])

    def __getitem__(self, token: int) -> str:
        piece = self._known.get(token)
        if piece is None:
            both = self.text([self._anchor, token])
            fits = both.startswith(self._before)
            piece = both[len(self._before) :] if fits else self.text([token])
            self._known[token] = piece
        return piece

    def text(self, ids: Sequence[int]) -> str:
        """Plain text: a chat marker that a model may have sampled is no part of an answer."""
        return str(
            self._tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )


class Watch:
    """One row's: the last few characters that were written."""

    __slots__ = ("_keep", "_stops", "_tail")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._keep = max(map(len, stops)) - 1
        self._tail = ""

    def add(self, piece: str) -> bool:
        """Whether a stop is complete with this piece."""
        text = self._tail + piece
        self._tail = text[-self._keep :] if self._keep else ""
        return any(stop in text for stop in self._stops)


def cut(text: str, stops: Sequence[str]) -> str | None:
    """The text up to the end of the stop that ends first; None where there is none."""
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else None
