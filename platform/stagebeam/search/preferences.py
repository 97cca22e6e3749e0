"""What a search says about texts: the winner of a stage is better than those that it beat.

A stage counts where all its candidates continue the same text. Left out are ties, losses by rule
(they would teach the form, which training already does), copies, and losers that the winner never
met. The labels are the judge's: they teach a generator, or another judge, nothing that this judge
does not think. Conversations with images in later turns are left out too: a training row has all
of its images in the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stagebeam.records import Message
from stagebeam.search.fold import winner_of
from stagebeam.search.trace import StageTrace, Trace
from stagebeam.stages import Stage


@dataclass(frozen=True, slots=True)
class Pair:
    """`chosen` was judged better than `rejected`, as this stage after `prefix`."""

    trace: str  # id
    messages: tuple[Message, ...]
    image_digests: tuple[str, ...]  # SHA-256 of each image's bytes, hex
    stage: Stage
    prefix: str
    chosen: str
    rejected: str
    margin: float  # log-odds, or nats between two scores

    @property
    def said(self) -> tuple[object, ...]:
        """Equal for two traces that found the same."""
        return self.messages, self.image_digests, self.prefix, self.chosen, self.rejected


def pairs_of(trace: Trace, min_margin: float = 0.0) -> Iterator[Pair]:
    """The pairs of a trace whose margin is at least `min_margin`, stage by stage."""
    if trace.image_turns:
        return
    messages = tuple(Message(m.role, m.text) for m in trace.messages)
    prefix = ""
    for stage in trace.stages:
        winner = winner_of(stage)
        if stage.stage in Stage.__members__:
            texts = {c.index: c.text for c in stage.candidates}
            for loser, margin in _beaten(stage):
                if margin >= min_margin:
                    yield Pair(
                        trace=trace.id,
                        messages=messages,
                        image_digests=trace.image_digests,
                        stage=Stage(stage.stage),
                        prefix=prefix,
                        chosen=winner.text,
                        rejected=texts[loser],
                        margin=margin,
                    )
        prefix += winner.text


def _beaten(stage: StageTrace) -> Iterator[tuple[int, float]]:
    """Index and margin of each candidate that the winner was judged better than."""
    winner = winner_of(stage)
    for match in stage.matches:
        if match.winner == winner.index and match.decided_by == "margin":
            yield match.a + match.b - winner.index, abs(match.margin)
    if stage.matches or winner.score is None:
        return
    for other in stage.candidates:
        same = other.parent == winner.parent and other.merged_into is None and other.valid
        if same and other.score is not None and other.score < winner.score:
            yield other.index, winner.score - other.score
