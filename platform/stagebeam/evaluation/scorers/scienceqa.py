"""ScienceQA (Lu et al., arXiv 2209.09513), read as LLaVA's published evaluation reads it."""

from __future__ import annotations

import re
from collections.abc import Collection

_ANSWER_IS = re.compile(r"The answer is ([A-Z])\.")


def science_choice(reply: str, letters: Collection[str]) -> str | None:
    """The letter that is the whole reply, begins it (`B. ...`), or follows "The answer is" once;
    None where it does none of these, or the letter is none of `letters`."""
    if reply in letters:
        return reply
    if reply[:1] in letters and reply[1:3] == ". ":
        return reply[0]
    found = _ANSWER_IS.findall(reply)
    return found[0] if len(found) == 1 and found[0] in letters else None
