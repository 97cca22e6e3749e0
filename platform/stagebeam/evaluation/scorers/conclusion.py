"""What of a reply is scored, and in which mode.

`compat` follows VLMEvalKit, which published figures rest on, to the letter, and reads the whole
reply. `strict` reads the conclusion alone, and what it does not name outright is wrong.
"""

from __future__ import annotations

from typing import Literal

from stagebeam.stages import conclusion, find_tags

Mode = Literal["compat", "strict"]


def conclusion_of(reply: str) -> str | None:
    """The conclusion of a staged reply, None where it has no whole one; a reply without a stage
    tag is a conclusion itself."""
    return conclusion(reply) if find_tags(reply) else reply.strip()
