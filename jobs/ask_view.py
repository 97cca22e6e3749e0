"""A search in the terminal: what is decided, and what is being decided."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from stagebeam.search.fold import OpenStage, winner_of
from stagebeam.search.trace import CandidateTrace, MatchTrace, RetraceTrace, StageTrace, Trace
from stagebeam.stages import Stage, parse, stage_body

_BY = {"majority": "a tie, more votes", "logprob": "a tie, likelier text", "rule": "by rule"}


def decided(stage: StageTrace) -> RenderableType:
    """A decision: the winner in full, the others in a line each, the matches."""
    winner = winner_of(stage)
    cost = f"{stage.usage.seconds:.2f} s, {stage.usage.decode_tokens} tokens"
    of = f"#{winner.index + 1} of {len(stage.candidates)}, " if len(stage.candidates) > 1 else ""
    lines: list[RenderableType] = [
        _title(stage.stage, of + cost),
        Padding(Text(_plain(stage.stage, winner), style="bold"), (0, 0, 0, 2)),
    ]
    lines += [_other(stage.stage, c) for c in stage.candidates if c is not winner]
    lines += [_match(match) for match in stage.matches]
    return Group(*lines, Text())


def under_way(stages: Sequence[OpenStage]) -> RenderableType:
    """Decisions that are being made."""
    return Group(*(line for stage in stages for line in _open(stage)))


def _open(stage: OpenStage) -> Iterator[RenderableType]:
    planned, name = stage.opened.planned, stage.opened.stage
    there = len(stage.candidates)
    doing = f"writing, {there} of {planned}" if there < planned else "judging"
    yield _title(name, doing if planned > 1 else "writing")
    for index in sorted(stage.candidates):
        yield _other(name, stage.candidates[index])
    for match in stage.matches:
        yield _match(match)


def retraced(retrace: RetraceTrace) -> Text:
    best = "nothing had its tags" if retrace.best is None else f"best score {retrace.best:+.2f}"
    said = f"Went back from {retrace.stage} to {retrace.back_to}: {best}, needed "
    return Text(f"{said}{retrace.cutoff:+.2f}.", style="yellow")


def answered(trace: Trace) -> RenderableType:
    """The conclusion, and what it cost."""
    usage = trace.usage
    facts = [f"{usage.seconds:.2f} s", f"{usage.decode_tokens:,} tokens written"]
    if usage.judge_calls:
        facts.append(f"{usage.judge_tokens:,} tokens read by the judge")
    lines: list[RenderableType] = []
    if trace.limited is not None:
        lines.append(Text(f"Cut short: the limit of {trace.limited} was reached.", style="yellow"))
    if trace.problems:
        problems = ", ".join(trace.problems)
        lines.append(Text(f"Not a whole staged answer: {problems}.", style="yellow"))
    if trace.conclusion is not None:
        lines.append(Text(trace.conclusion, style="bold green"))
    return Group(*lines, Text("  ".join(facts), style="dim"))


def _title(name: str, said: str) -> Text:
    return Text.assemble((name, "bold cyan"), "  ", (said, "dim"))


def _other(stage: str, candidate: CandidateTrace) -> Text:
    number = f"  #{candidate.index + 1} "
    if candidate.merged_into is not None:
        return Text(f"{number}the same as #{candidate.merged_into + 1}", style="dim")
    line = Text(number, no_wrap=True, overflow="ellipsis", style="dim")
    if not candidate.valid:
        line.append("tags broken: ", style="red")
    return line.append(" ".join(_plain(stage, candidate).split()))


def _match(match: MatchTrace) -> Text:
    first = match.winner == match.a
    loser = match.b if first else match.a
    line = Text(f"  #{match.winner + 1} over #{loser + 1}  ", style="dim")
    if match.decided_by != "margin":
        line.append(_BY[match.decided_by])
    else:
        # Log-odds are for `a`; of a winner that is `b`, turned.
        orders = (match.forward, match.backward) if first else (-match.backward, -match.forward)
        shares = ", ".join(f"{100 / (1 + math.exp(-odds)):.0f} %" for odds in orders)
        line.append(f"{shares} (read first, second), margin {abs(match.margin):.2f}")
    return line


def _plain(stage: str, candidate: CandidateTrace) -> str:
    """Without its tags where they are in order, and as it came where they are not."""
    if stage in Stage.__members__:
        body = stage_body(Stage(stage), candidate.text)
        return candidate.text.strip() if body is None else body
    answer = parse(candidate.text)
    if not answer.valid:
        return candidate.text.strip()
    return "\n".join(f"{name.value}: {body}" for name, body in answer.bodies.items())
