"""What of a reply is scored, in which mode, and what comes of it.

`compat` follows VLMEvalKit, which published figures rest on, to the letter, and reads the whole
reply. `strict` reads the conclusion alone, and what it does not name outright is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stagebeam.stages import conclusion, find_tags

Mode = Literal["compat", "strict"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reply was read as, None where no rule matched it, and its score from 0 to 1; where it
    was compared with a reference answer, that one's score too."""

    said: str | None
    score: float
    reference: float | None = None


def conclusion_of(reply: str) -> str | None:
    """The conclusion of a staged reply, None where it has no whole one; a reply without a stage
    tag is a conclusion itself."""
    return conclusion(reply) if find_tags(reply) else reply.strip()
