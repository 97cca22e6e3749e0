"""Text that people send is words: a marker of the chat template in it is spelled out.

Rendered conversations are tokenised whole, so that ordinary text has the ids that training gave it.
Only where a text carries a marker (a special token, or the image token) is it treated apart: the
marker is masked while the template is rendered, and its letters are tokenised by a copy of the
tokenizer that knows no special tokens. What the template itself writes keeps its meaning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

# Private to whoever uses them (Unicode's plane 15): signs that stand for markers.
_SIGNS = range(0xF0000, 0xFFFFE)


@dataclass(frozen=True, slots=True)
class Masked:
    """Texts in which markers are numbers between two `sign`s; "" where there are none."""

    texts: list[str]
    sign: str


class Spelling:
    """The markers of one tokenizer."""

    def __init__(self, tokenizer: Any, image_token: str) -> None:
        self._tokenizer = tokenizer
        # `all_special_tokens` has only those with a role of their own, without the headers
        special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        # the longest first, where one begins like another
        self.markers = sorted({*special, image_token} - {""}, key=lambda m: (-len(m), m))
        self._pattern = re.compile("|".join(map(re.escape, self.markers)))

    def find(self, texts: Iterable[str]) -> str | None:
        """The first marker in the texts."""
        found = (self._pattern.search(text) for text in texts)
        return next((match[0] for match in found if match is not None), None)

    def mask(self, texts: list[str]) -> Masked:
        """The texts as a template may see them."""
        if self.find(texts) is None:
            return Masked(texts, "")
        used = set().union(*texts)
        sign = next((chr(code) for code in _SIGNS if chr(code) not in used), None)
        if sign is None:
            raise ValueError("A message has chat markers among too many private characters.")

        def masked(match: re.Match[str]) -> str:
            return f"{sign}{self.markers.index(match[0])}{sign}"

        return Masked([self._pattern.sub(masked, text) for text in texts], sign)

    def ids(self, text: str, sign: str, tokenise: Callable[[str], list[int]]) -> list[int]:
        """Ids of a text with masked markers; `tokenise` gives those of the rest.

        Raises ValueError where the tokenizer cannot spell a marker.
        """
        if not sign:
            return tokenise(text)
        ids: list[int] = []
        for at, piece in enumerate(re.split(f"{sign}(\\d+){sign}", text)):
            if at % 2:
                ids += self._spelled(self.markers[int(piece)])
            elif piece:
                ids += tokenise(piece)
        return ids

    def _spelled(self, marker: str) -> list[int]:
        ids = list(self._speller.encode(marker, add_special_tokens=False).ids)
        if self._controls.intersection(ids):
            raise ValueError(f"A message contains {marker}, which this model cannot take as text.")
        return ids

    @cached_property
    def _controls(self) -> frozenset[int]:
        """Ids of the markers, but for that of unknown words."""
        ids = set(self._tokenizer.convert_tokens_to_ids(list(self.markers)))
        return frozenset(ids - {self._tokenizer.unk_token_id})

    @cached_property
    def _speller(self) -> Tokenizer:
        # A copy: to switch the tokenizer itself over would concern every thread that uses it.
        settings = json.loads(self._tokenizer.backend_tokenizer.to_str())
        for token in settings["added_tokens"]:
            token["special"] |= token["content"] in self.markers
        speller = Tokenizer.from_str(json.dumps(settings))
        speller.encode_special_tokens = True
        speller.no_padding()
        speller.no_truncation()
        return speller
