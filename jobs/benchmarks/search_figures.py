"""What the search benchmark measures: each answer as it was, and the figures that follow."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jobs.benchmarks.search_breakdown import OTHER, PARTS
from stagebeam.inference.types import Usage

ByN = dict[int, float]


@dataclass(frozen=True, slots=True)
class OurAnswer:
    """One answer of this platform, to a question that it had not seen."""

    seconds: float
    parts: dict[str, float]  # seconds; add up to the above
    ideal_seconds: float  # of its forward passes alone
    usage: Usage
    passes_floor: int  # the longest candidate of each stage, and one for each judge round
    image_encodes: int  # by the model's own count, judge included
    distinct: float  # different candidates, mean over the stages
    whole: bool  # has all four stages


@dataclass(frozen=True, slots=True)
class TheirAnswer:
    """One answer of the reference."""

    seconds: float
    seconds_short_verdicts: float  # had each verdict ended with its first token
    generate_calls: int
    image_encodes: int
    candidate_tokens: int
    verdict_tokens: int
    whole: bool


@dataclass(frozen=True, slots=True)
class Throughput:
    """Answers a second to the same questions, all at once and one at a time."""

    questions: int
    n: int
    together_per_s: float
    alone_per_s: float


@dataclass(frozen=True, slots=True)
class Target:
    """A figure beside what it should be."""

    name: str
    figure: float
    bound: Literal["at least", "at most"]
    target: float

    @property
    def met(self) -> bool:
        below = self.figure <= self.target
        return below if self.bound == "at most" else self.figure >= self.target


@dataclass(frozen=True, slots=True)
class SubjectFigures:
    """Of one model. Medians over the questions, by N; ratios are of pairs taken in turn."""

    made: str
    params: int
    questions: int
    reference_over_ours: ByN
    reference_over_ours_pairs: dict[int, list[float]]
    reference_over_ours_short_verdicts: ByN  # the reading that favours the reference most
    latency_n4_over_n1: float
    passes_n16_over_n2: float
    throughput_8_over_1: float
    image_encodes_per_answer: ByN
    ideal_over_ours: ByN
    passes: ByN  # that waited for one another
    passes_over_floor: ByN
    seconds: ByN
    parts: dict[int, dict[str, float]]  # means over the questions, in seconds
    distinct_candidates: ByN
    whole_answers: float  # share, ours
    reference_whole_answers: float
    throughput: Throughput
    targets: list[Target]
    ours: dict[int, list[OurAnswer]]
    reference: dict[int, list[TheirAnswer]]


@dataclass(frozen=True, slots=True)
class SearchBenchmark:
    """What `search.json` holds."""

    models: dict[str, SubjectFigures]
    temperature: float
    top_p: float
    max_new_tokens: int  # of a stage
    verdict_tokens: int  # of the reference's verdicts
    after: int  # other questions that our replicas had answered before
    cpus: int
    threads: int  # of torch, in one pass
    torch: str
    transformers: str


def subject_figures(
    made: str,
    params: int,
    ours: Mapping[int, Sequence[OurAnswer]],
    reference: Mapping[int, Sequence[TheirAnswer]],
    throughput: Throughput,
) -> SubjectFigures:
    """The figures of one model; the i-th answers of both sides are to the same question."""

    def median(figure: Callable[[OurAnswer], float]) -> ByN:
        return {n: statistics.median(map(figure, answers)) for n, answers in ours.items()}

    pairs = {n: list(zip(theirs, ours[n], strict=True)) for n, theirs in reference.items()}
    ratios = {n: [them.seconds / us.seconds for them, us in pairs[n]] for n in pairs}
    short = {n: [t.seconds_short_verdicts / us.seconds for t, us in pairs[n]] for n in pairs}
    figures = {
        "reference_over_ours": {n: statistics.median(values) for n, values in ratios.items()},
        "reference_over_ours_short_verdicts": {
            n: statistics.median(values) for n, values in short.items()
        },
    }
    latency = _growth(ours, 1, 4, lambda answer: answer.seconds)
    passes = _growth(ours, 2, 16, lambda answer: answer.usage.sequential_passes)
    at_once = throughput.together_per_s / throughput.alone_per_s
    parts = {
        n: {p: statistics.mean(a.parts[p] for a in answers) for p in (*PARTS, OTHER)}
        for n, answers in ours.items()
    }
    return SubjectFigures(
        made=made,
        params=params,
        questions=len(ours[1]),
        **figures,
        reference_over_ours_pairs=ratios,
        latency_n4_over_n1=latency,
        passes_n16_over_n2=passes,
        throughput_8_over_1=at_once,
        image_encodes_per_answer=median(lambda answer: answer.image_encodes),
        ideal_over_ours=median(lambda answer: answer.ideal_seconds / answer.seconds),
        passes=median(lambda answer: answer.usage.sequential_passes),
        passes_over_floor=median(
            lambda answer: answer.usage.sequential_passes / answer.passes_floor
        ),
        seconds=median(lambda answer: answer.seconds),
        parts=parts,
        distinct_candidates={
            n: statistics.mean(a.distinct for a in answers) for n, answers in ours.items()
        },
        whole_answers=statistics.mean(a.whole for answers in ours.values() for a in answers),
        reference_whole_answers=statistics.mean(
            a.whole for answers in reference.values() for a in answers
        ),
        throughput=throughput,
        targets=[
            Target("reference_over_ours, N=4", figures["reference_over_ours"][4], "at least", 10),
            Target("latency_n4_over_n1", latency, "at most", 1.6),
            Target("passes_n16_over_n2", passes, "at most", 1.3),
            Target("throughput_8_over_1", at_once, "at least", 4),
        ],
        ours={n: list(answers) for n, answers in ours.items()},
        reference={n: list(answers) for n, answers in reference.items()},
    )


def _growth(
    ours: Mapping[int, Sequence[OurAnswer]],
    few: int,
    many: int,
    figure: Callable[[OurAnswer], float],
) -> float:
    """Median over the questions of the ratio between N = many and N = few."""
    both = zip(ours[few], ours[many], strict=True)
    return statistics.median(figure(more) / figure(less) for less, more in both)
