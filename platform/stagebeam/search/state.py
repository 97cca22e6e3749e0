"""One answer under way, and the places in it at which candidates are drawn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field

from stagebeam.inference.types import Candidate, Generator, Judge, Prompt, Usage
from stagebeam.search.calibration import Calibration
from stagebeam.search.events import Event, LimitReached
from stagebeam.search.limits import Allowance
from stagebeam.search.seeds import question_key
from stagebeam.search.settings import SearchSettings
from stagebeam.search.trace import CandidateTrace, Limit, StageName, UsageTrace
from stagebeam.stages import TAGS, Fault, Stage, parse, stage_body

Emit = Callable[[Event], Awaitable[None]]

SENTENCE_ENDS = (". ", "! ", "? ", ".\n", "!\n", "?\n")


class SearchError(RuntimeError):
    """A generator or a judge broke its protocol, so the search cannot go on."""


class UnfitError(ValueError):
    """The settings ask for what these models cannot do, in one sentence for the user."""


@dataclass(slots=True)
class Search:
    """What was asked, of whom, and what may still be spent. `emit` returns when it is heard."""

    prompt: Prompt
    generator: Generator
    judge: Judge | None
    settings: SearchSettings
    emit: Emit
    calibration: Calibration | None = None  # cutoffs, for a search that goes back
    allowance: Allowance = field(init=False)
    key: str = field(init=False)  # of the question, for seeds
    visits: int = 0
    _limited: bool = False

    def __post_init__(self) -> None:
        self.allowance = Allowance(self.settings)
        self.key = question_key(self.prompt)

    async def limit(self, limit: Limit) -> None:
        """Tell, the first time, that a limit cuts the search short."""
        if not self._limited:
            self._limited = True
            await self.emit(LimitReached(limit))

    def spot(self, stage: Stage | None, prefix: str = "", *, visit: int | None = None) -> Spot:
        """Where `stage` (None: the whole answer) comes next; a new decision unless `visit` is
        an earlier one."""
        name: StageName = "ANSWER" if stage is None else stage.value
        stop = (stage or Stage.CONCLUSION).close_tag
        longest = self.settings.max_new_tokens
        return Spot(self._visit(visit), name, name, stage, prefix, (stop,), longest)

    def rest(self, prefix: str) -> Spot:
        """What is missing after `prefix`, to the end of the answer."""
        longest = self.settings.max_new_tokens
        stop = Stage.CONCLUSION.close_tag
        return Spot(self._visit(None), "REST", "REST", None, prefix, (stop,), longest)

    def sentence(self, number: int, prefix: str, longest: int) -> Spot:
        """The next sentence after `prefix`; a stage's closing tag ends one too."""
        stops = (*SENTENCE_ENDS, *(stage.close_tag for stage in Stage))
        key = f"SENTENCE {number}"
        stage = current_stage(prefix)
        return Spot(self._visit(None), "SENTENCE", key, stage, prefix, stops, longest)

    def _visit(self, visit: int | None) -> int:
        if visit is None:
            visit, self.visits = self.visits, self.visits + 1
        return visit


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in the answer. Whole answers are seeded alike for every method."""

    visit: int
    name: StageName
    key: str  # in seeds
    stage: Stage | None  # what the judge is told
    prefix: str
    stops: tuple[str, ...]
    longest: int  # tokens

    def valid(self, candidate: Candidate) -> bool:
        """Whether it has its tags: exactly one whole stage, a whole answer with the prefix, or a
        sentence that leaves a staged answer possible."""
        text = candidate.text
        if self.name == "SENTENCE":
            return bool(text.strip()) and _continues(self.prefix + text, candidate)
        if self.name in ("ANSWER", "REST"):
            return parse(self.prefix + text).valid
        return stage_body(Stage(self.name), text) is not None

    def trace(self, candidate: Candidate, parent: int | None = None) -> CandidateTrace:
        return CandidateTrace(
            index=candidate.index,
            text=candidate.text,
            tokens=candidate.tokens,
            logprob=candidate.logprob,
            finish=candidate.finish,
            valid=self.valid(candidate),
            parent=parent,
        )


def current_stage(prefix: str) -> Stage:
    """The stage that is open at the end of `prefix`, or comes next."""
    opened = [tag for tag in TAGS if not tag.startswith("</") and tag in prefix]
    last = max(opened, key=prefix.rindex, default=Stage.SUMMARY.open_tag)
    stage = Stage(last[1:-1])
    order = list(Stage)
    after = min(order.index(stage) + 1, len(order) - 1)
    closed = prefix.rfind(stage.close_tag) > prefix.rfind(last)
    return order[after] if closed else stage


def _continues(text: str, candidate: Candidate) -> bool:
    """Whether nothing is wrong but what is yet to come."""
    answer = parse(text)
    if candidate.finish == "end" or answer.conclusion is not None:
        return answer.valid
    wrong = [p.fault for p in answer.problems if p.fault is not Fault.MISSING]
    # One stage may still be open, and that is what parsing notices last.
    return candidate.finish != "length" and wrong in ([], [Fault.UNCLOSED])


def usage_trace(usage: Usage, seconds: float) -> UsageTrace:
    return UsageTrace(**asdict(usage), seconds=seconds)
