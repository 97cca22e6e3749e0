"""What can be said about serving without a simulation: bounds, and a mean-field latency.

Beside the simulation these are a check of it, and a place to start from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stagebeam.capacity.costs import Costs, Question
from stagebeam.search.settings import ROUND_ROBIN_UP_TO


def pairs_by_round(form: str, n: int) -> list[int]:
    """Pairs that each round of a tournament asks about, as `search.tournament` plays them with
    no early stop and no equal texts; `arrival` is counted as the round robin that it plays."""
    if n == 1:
        return []
    if form == "auto":
        form = "round_robin" if n <= ROUND_ROBIN_UP_TO else "finals"
    if form == "chain":
        return [1] * (n - 1)
    if form == "bracket":
        return [n // 2, *pairs_by_round("bracket", n - n // 2)]
    if form == "finals" and n > ROUND_ROBIN_UP_TO:
        left = ROUND_ROBIN_UP_TO
        while left * ROUND_ROBIN_UP_TO < n:
            left *= ROUND_ROBIN_UP_TO
        sizes = [n * (place + 1) // left - n * place // left for place in range(left)]
        return [sum(map(math.comb, sizes, [2] * left)), *pairs_by_round("finals", left)]
    return [math.comb(n, 2)]


def round_seconds(costs: Costs, pairs: int) -> float:
    """Of a judge's replica, for a round of so many pairs."""
    orders = 2 * pairs
    return costs.judge.round_s * math.ceil(orders / costs.judge.max_rows) + (
        costs.judge.order_s * orders
    )


def first_look(costs: Costs) -> tuple[float, float]:
    """Seconds in which a generator and a judge read the question and its images, once; a judge
    that is asked nothing reads nothing."""
    question = costs.question
    of = [
        question.images * each.image_s + question.prompt_tokens * each.prompt_token_s
        for each in (costs.generator, costs.judge)
    ]
    return of[0], of[1] if question.candidates > 1 else 0.0


def longest_of(question: Question, mean: int) -> float:
    """Expected length of the longest candidate of a stage: of N uniform whole numbers."""
    low, high = question.lengths(mean)
    count = high - low + 1
    below = ((k / count) ** question.candidates for k in range(1, count))
    return high - sum(below)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one question and one replica of each kind."""

    unloaded_s: float  # mean latency of a question alone on its replicas
    generator_per_s: float  # most answers a second of a generator: its rows are never idle
    judge_per_s: float  # the same of a judge; infinite where nothing is judged
    hops_s: float
    judge_s: float  # of a judge's time, a question


def bounds(costs: Costs) -> Bounds:
    """The most that a replica can do, and the least that a question can take.

    A full batch has as many rows as whole questions fit in. With `spread` above 0 rows leave one
    by one and the next question waits for N free ones, so that what is reached lies below.
    """
    question, generator = costs.question, costs.generator
    n, hops = question.candidates, costs.hops
    begin, judge_begin = first_look(costs)
    tokens = sum(question.stage_tokens.values())
    full = max(n, generator.max_rows // n * n)
    rows_s = n * tokens * (generator.pass_s / full + generator.row_s)
    rounds = pairs_by_round(question.tournament, n)
    stages = len(question.stage_tokens)
    judging = judge_begin + stages * sum(round_seconds(costs, pairs) for pairs in rounds)
    waiting = hops.question_s + stages * (hops.generator_s + len(rounds) * hops.judge_s)
    longest = sum(longest_of(question, mean) for mean in question.stage_tokens.values())
    alone = longest * generator.pass_s + n * tokens * generator.row_s
    return Bounds(
        unloaded_s=begin + alone + judging + waiting,
        generator_per_s=1 / (begin + rows_s),
        judge_per_s=1 / judging if judging else math.inf,
        hops_s=waiting,
        judge_s=judging,
    )


def mean_latency(costs: Costs, generators: int, judges: int, rate: float) -> float:
    """Mean seconds of an answer at `rate` questions a second, infinite where it cannot be kept up.

    Little's law gives the rows that decode at a time, which give a pass's seconds, which give the
    rows: who arrives at random sees the mean number of rows beside its own. Prompts that are read
    in between stretch a pass. A judge is a queue of fixed service (Pollaczek-Khinchine), its rounds
    counted as arrivals at random. Questions are spread evenly over replicas, and none waits for
    rows; so this is a lower estimate, and a good one while batches are far from full.
    """
    question, generator = costs.question, costs.generator
    found, n = bounds(costs), question.candidates
    begin, _ = first_look(costs)
    each, judging = rate / generators, found.judge_s * rate / judges
    if judging >= 1 or each >= found.generator_per_s:
        return math.inf
    means = question.stage_tokens.values()
    tokens, longest = sum(means), sum(longest_of(question, mean) for mean in means)
    own = n * tokens / longest  # rows, while the longest decodes
    # A pass takes a + b * (own + others), and others are each * longest * own of them.
    fixed = (generator.pass_s + generator.row_s * own) / (1 - each * begin)
    a_pass = fixed / (1 - generator.row_s * each * longest * own / (1 - each * begin))
    if not 0 < each * longest * a_pass * own < generator.max_rows:
        return math.inf
    rounds = len(pairs_by_round(question.tournament, n)) * len(question.stage_tokens)
    wait = 0.0
    if rounds:
        wait = rounds * judging * (found.judge_s / rounds) / (2 * (1 - judging))
    return found.hops_s + begin + longest * a_pass + found.judge_s + wait
