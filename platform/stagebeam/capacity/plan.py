"""How many replicas a rate of questions needs, and what they cost, by simulation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stagebeam.capacity.closed_form import bounds, mean_latency
from stagebeam.capacity.costs import Costs
from stagebeam.capacity.simulation import Fleet, Load, Outcome, simulate

# Where the search for a fleet begins, and how it goes on.
_FIRST_SHARE, _GROWTH = 0.75, 1.1
_MOST_TRIES = 24
# A gateway or a searcher is one thread, and shares its node with others.
_CORE_SHARE = 0.5
# Warm-up in times of an unloaded answer; answers that are looked at.
_WARM_UP, _LEAST, _MOST = 4, 300, 20_000


@dataclass(frozen=True, slots=True)
class Plan:
    """A fleet that keeps a promise. All of it is predicted."""

    per_minute: float
    fleet: Fleet
    gateways: int  # by their CPU alone, and so the searchers
    searchers: int
    outcome: Outcome
    mean_field_s: float  # mean latency in closed form, beside the simulation's
    p95_s: float  # what was promised
    gpus: float
    per_hour: float  # price of the GPUs
    per_thousand: float  # price of the GPUs for 1,000 answers


def needed(costs: Costs, per_minute: float, *, p95_s: float, price: float, seed: int) -> Plan:
    """The fleet for so many questions a minute of which 95 % are answered within `p95_s` seconds.
    `price` is a GPU's for an hour. The fleet is found by growing the busier kind of replica a tenth
    at a time, so it may be a tenth larger than the least.

    Raises ValueError where an unloaded answer takes longer, or the promise cannot be kept.
    """
    if not (per_minute > 0 and price >= 0):
        raise ValueError(f"A rate is above 0 and a price not below, got {per_minute}, {price}.")
    limits, rate = bounds(costs), per_minute / 60
    if p95_s <= limits.unloaded_s:
        raise ValueError(
            f"An answer takes {limits.unloaded_s:.3g} s with nothing else to do, so 95 % cannot be "
            f"there within {p95_s:g} s."
        )
    generators = math.ceil(rate / (_FIRST_SHARE * limits.generator_per_s))
    judges = max(1, math.ceil(rate / (_FIRST_SHARE * limits.judge_per_s)))
    for _ in range(_MOST_TRIES):
        fleet = Fleet(generators, judges)
        outcome = looked_at(costs, fleet, rate, seed)
        if outcome.p95_s <= p95_s:
            break
        generators_share = rate / (generators * limits.generator_per_s)
        if generators_share >= rate / (judges * limits.judge_per_s):
            generators = math.ceil(generators * _GROWTH)
        else:
            judges = math.ceil(judges * _GROWTH)
    else:
        raise ValueError(
            f"With {fleet.generators} generators and {fleet.judges} judges 95 % of the answers "
            f"still take up to {outcome.p95_s:.3g} s at {per_minute:g} questions a minute."
        )
    gpus = fleet.generators * costs.generator.gpus + fleet.judges * costs.judge.gpus
    return Plan(
        per_minute=per_minute,
        fleet=fleet,
        gateways=max(1, math.ceil(rate * costs.hops.gateway_cpu_s / _CORE_SHARE)),
        searchers=max(1, math.ceil(rate * costs.hops.searcher_cpu_s / _CORE_SHARE)),
        outcome=outcome,
        mean_field_s=mean_latency(costs, fleet.generators, fleet.judges, rate),
        p95_s=p95_s,
        gpus=gpus,
        per_hour=gpus * price,
        per_thousand=gpus * price / (60 * per_minute) * 1000,
    )


def looked_at(costs: Costs, fleet: Fleet, rate: float, seed: int) -> Outcome:
    """A simulation that is long enough for its percentiles, and no longer."""
    alone = bounds(costs).unloaded_s
    seconds = min(max(20 * alone, _LEAST / rate), max(alone, _MOST / rate))
    load = Load(rate=rate)
    return simulate(costs, fleet, load, seconds=seconds, warm_up_s=_WARM_UP * alone, seed=seed)
