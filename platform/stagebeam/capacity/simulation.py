"""Serving, event by event: questions arrive, are searched stage by stage, and leave.

What is modelled: the searcher's bound on questions at once; the hash ring that a question's
replicas follow from; the generator's batch; the judge's rounds one after another; the ways between
them. What is not: placement other than `pack` (which `auto` comes to under load), replicas that
come and go, equal candidates (copies are judged as if they differed), stages that go back, judges
that score by text (a round there reads each candidate once) or share the generator's replicas.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from stagebeam.capacity.closed_form import first_look, pairs_by_round, round_seconds
from stagebeam.capacity.costs import Costs
from stagebeam.capacity.replicas import Call, Clock, GeneratorReplica, JudgeReplica
from stagebeam.capacity.ring import ring_shares

# Calls that a replica takes in for each of its rows; the next replica gets what comes then
# (`serve/options.py`).
CALLS_PER_ROW = 4


@dataclass(frozen=True, slots=True)
class Fleet:
    """Replicas, and how many questions are searched at once (as many again wait)."""

    generators: int
    judges: int
    most_questions: int | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """One of three: questions at random times, `rate` a second; `clients` that each ask the next
    one when they have an answer; or questions that are `due` at these seconds."""

    rate: float | None = None
    clients: int | None = None
    due: Sequence[float] | None = None

    @property
    def usable(self) -> bool:
        """Whether it is one of the three, and there is something to ask."""
        due = None if self.due is None else len(self.due)
        given = [each for each in (self.rate, self.clients, due) if each is not None]
        return len(given) == 1 and given[0] > 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened; answers, their seconds, rates and shares are those after the warm-up."""

    arrived: int  # from the start on, and so the next three
    answered: int
    refused: int
    left: int  # under way or waiting at the end
    answers_per_s: float
    mean_s: float  # of an answer, waiting included; not a number where there was none
    p50_s: float
    p95_s: float
    p99_s: float
    at_once: float  # questions under way or waiting, mean
    generators_busy: float  # share of the time
    busiest_generator: float
    judges_busy: float
    rows: float  # of a pass, mean


def simulate(
    costs: Costs,
    fleet: Fleet,
    load: Load,
    *,
    seconds: float,
    warm_up_s: float,
    seed: int,
    shares: Sequence[float] | None = None,
) -> Outcome:
    """Run for `warm_up_s` and then for `seconds` more. The same seed gives the same outcome.

    `shares` of the questions by generator are drawn as a ring where they are not given.

    Raises ValueError where there is no replica, no time or no load.
    """
    if fleet.generators < 1 or fleet.judges < 1:
        raise ValueError(f"A fleet needs a generator and a judge, got {fleet}.")
    if not (seconds > 0 and warm_up_s >= 0):
        raise ValueError(f"A simulation needs time, got {seconds} s after {warm_up_s} s.")
    if not load.usable:
        raise ValueError(f"Load is a rate, clients or times, above 0, got {load}.")
    return _Simulation(costs, fleet, load, seed, shares).run(warm_up_s, seconds)


def over_rings(outcomes: Sequence[Outcome]) -> Outcome:
    """The mean of several runs, field by field."""
    first, *_ = outcomes
    means = {
        name: type(getattr(first, name))(np.mean([getattr(each, name) for each in outcomes]))
        for name in Outcome.__slots__
    }
    return replace(first, **means)


class _Simulation:
    def __init__(
        self, costs: Costs, fleet: Fleet, load: Load, seed: int, shares: Sequence[float] | None
    ) -> None:
        self.costs, self.fleet, self.load = costs, fleet, load
        self.rng = np.random.default_rng(seed)
        self.clock = Clock()
        self.generators = [
            GeneratorReplica(self.clock, costs.generator) for _ in range(fleet.generators)
        ]
        self.judges = [JudgeReplica(self.clock) for _ in range(fleet.judges)]
        asked = ring_shares(fleet.generators, self.rng) if shares is None else np.asarray(shares)
        self.generator_ring = np.cumsum(asked / asked.sum())
        self.judge_ring = np.cumsum(ring_shares(fleet.judges, self.rng))
        question = costs.question
        self.lengths = np.array([question.lengths(m) for m in question.stage_tokens.values()])
        rounds = pairs_by_round(question.tournament, question.candidates)
        self.rounds = [round_seconds(costs, pairs) for pairs in rounds]
        self.begin_s, self.judge_begin_s = first_look(costs)
        self.fullest = CALLS_PER_ROW * costs.generator.max_rows
        self.waiting: deque[_Question] = deque()
        self.searching = self.arrived = self.answered = self.refused = 0
        self.took: list[float] = []
        self.warm_at = math.inf
        self.question_seconds = 0.0
        self._changed_at = 0.0

    def run(self, warm_up_s: float, seconds: float) -> Outcome:
        self.warm_at = warm_up_s
        if self.load.clients is not None:
            for _ in range(self.load.clients):
                self.clock.at(0.0, self.arrive)
        elif self.load.due is not None:
            for at in self.load.due:
                self.clock.at(at, self.arrive)
        else:
            self.clock.at(self._gap(), self._next_arrival)
        self.clock.run(warm_up_s)
        before, rows_before = self._busy(), self._row_seconds()
        self.clock.run(warm_up_s + seconds)
        self._count(self.clock.now)
        busy = (self._busy() - before) / seconds
        generators, judges = busy[: len(self.generators)], busy[len(self.generators) :]
        worked = max(1e-12, float(generators.sum()) * seconds)
        rows = (self._row_seconds() - rows_before) / worked
        took = np.array(self.took) if self.took else np.array([math.nan])
        p50, p95, p99 = (float(p) for p in np.percentile(took, [50, 95, 99]))
        return Outcome(
            arrived=self.arrived,
            answered=self.answered,
            refused=self.refused,
            left=self.searching + len(self.waiting),
            answers_per_s=len(self.took) / seconds,
            mean_s=float(took.mean()),
            p50_s=p50,
            p95_s=p95,
            p99_s=p99,
            at_once=self.question_seconds / seconds,
            generators_busy=float(generators.mean()),
            busiest_generator=float(generators.max()),
            judges_busy=float(judges.mean()),
            rows=rows,
        )

    def _busy(self) -> np.ndarray:
        generators = [replica.busy_s() for replica in self.generators]
        return np.array(generators + [replica.busy_s() for replica in self.judges])

    def _row_seconds(self) -> float:
        return sum(replica.row_seconds() for replica in self.generators)

    def _gap(self) -> float:
        assert self.load.rate is not None
        return float(self.rng.exponential(1 / self.load.rate))

    def _next_arrival(self, now: float) -> None:
        self.clock.at(now + self._gap(), self._next_arrival)
        self.arrive(now)

    def arrive(self, now: float) -> None:
        """A question: searched, or it waits, or it is turned away."""
        self._count(now)
        self.arrived += 1
        most = self.fleet.most_questions
        question = _Question(self, now)
        if most is None or self.searching < most:
            self.searching += 1
            question.begin(now)
        elif len(self.waiting) < most:
            self.waiting.append(question)
        else:
            self.refused += 1

    def leave(self, question: _Question, now: float) -> None:
        """It has its answer."""
        self._count(now)
        self.searching -= 1
        self.answered += 1
        if now >= self.warm_at:
            self.took.append(now - question.born)
        if self.waiting:
            self.searching += 1
            self.waiting.popleft().begin(now)
        if self.load.clients is not None:
            self.clock.at(now, self.arrive)

    def generator_of(self, place: int) -> GeneratorReplica:
        """The question's own, or where that is full the next that is not."""
        for turn in range(len(self.generators)):
            replica = self.generators[(place + turn) % len(self.generators)]
            if replica.calls < self.fullest:
                return replica
        return self.generators[place]

    def _count(self, now: float) -> None:
        """Question-seconds since the last change, those after the warm-up."""
        since = max(self._changed_at, self.warm_at)
        if now > since:
            self.question_seconds += (self.searching + len(self.waiting)) * (now - since)
        self._changed_at = now


class _Question:
    """A search by `stage_beam`: for each stage a call to its generator, then the judge's rounds."""

    __slots__ = ("_judge", "_lengths", "_place", "_round", "_stage", "born", "of")

    def __init__(self, of: _Simulation, born: float) -> None:
        self.of, self.born = of, born
        self._stage, self._round = 0, 0
        low, high = of.lengths.T
        shape = (of.costs.question.candidates, len(low))
        self._lengths = of.rng.integers(low, high + 1, size=shape).T.tolist()
        own, judge = of.rng.random(2)
        self._place = min(int(np.searchsorted(of.generator_ring, own)), len(of.generators) - 1)
        at = min(int(np.searchsorted(of.judge_ring, judge)), len(of.judges) - 1)
        self._judge = of.judges[at]

    def begin(self, now: float) -> None:
        """On the way to the searcher and from there to the generator."""
        hops = self.of.costs.hops
        self.of.clock.at(now + hops.question_s + hops.generator_s, self._propose)

    def _propose(self, now: float) -> None:
        begin_s = 0.0 if self._stage else self.of.begin_s
        call = Call(self._lengths[self._stage], begin_s, self._proposed)
        self.of.generator_of(self._place).ask(call)

    def _proposed(self, now: float) -> None:
        self._round = 0
        self._go_on(now)

    def _go_on(self, now: float) -> None:
        """To the next round, the next stage, or home."""
        of, hops = self.of, self.of.costs.hops
        if self._round < len(of.rounds):
            of.clock.at(now + hops.judge_s, self._compare)
            return
        self._stage += 1
        if self._stage == len(self._lengths):
            of.leave(self, now)
        else:
            of.clock.at(now + hops.generator_s, self._propose)

    def _compare(self, now: float) -> None:
        of = self.of
        first = self._stage == 0 and self._round == 0
        seconds = of.rounds[self._round] + (of.judge_begin_s if first else 0.0)
        self._round += 1
        self._judge.ask(seconds, self._go_on)
