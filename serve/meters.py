"""What the service counts, on Ray's own Prometheus endpoint.

Serve adds the tags deployment, replica and application; Ray puts `ray_` before each name and
`_total` behind a counter's. Made when first used, since both need a running replica.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from ray.serve import metrics

from stagebeam.search.trace import Trace

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
_LOG_ODDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)


@cache
def _counter(name: str, description: str, tags: tuple[str, ...] = ()) -> metrics.Counter:
    keys: Any = tags  # declared in Ray as of one key
    return metrics.Counter(f"stagebeam_{name}", description, keys)


@cache
def _gauge(name: str, description: str) -> metrics.Gauge:
    return metrics.Gauge(f"stagebeam_{name}", description)


@cache
def _histogram(
    name: str, description: str, tag: str, bounds: tuple[float, ...]
) -> metrics.Histogram:
    return metrics.Histogram(f"stagebeam_{name}", description, list(bounds), (tag,))


def ended(method: str, outcome: str, seconds: float) -> None:
    """A search is over: answered, limited, refused, failed or cancelled."""
    answers = _counter("answers", "Searches that ended.", ("method", "outcome"))
    answers.inc(tags={"method": method, "outcome": outcome})
    took = _histogram("answer_seconds", "Seconds of a search.", "method", _SECONDS)
    took.observe(seconds, tags={"method": method})


def answered(trace: Trace) -> None:
    """What an answer took, by stage."""
    seconds = _histogram("stage_seconds", "Seconds of a decision.", "stage", _SECONDS)
    margins = _histogram("judge_margin", "Size of a margin, log-odds.", "stage", _LOG_ODDS)
    candidates = _counter("candidates", "Candidates drawn.", ("stage",))
    matches = _counter("matches", "Matches, by what decided them.", ("decided_by",))
    for stage in trace.stages:
        tags: dict[str, str] = {"stage": stage.stage}
        seconds.observe(stage.usage.seconds, tags=tags)
        candidates.inc(len(stage.candidates), tags=tags)
        for match in stage.matches:
            margins.observe(abs(match.margin), tags=tags)
            matches.inc(tags={"decided_by": match.decided_by})
    usage = trace.usage
    tokens = _counter("tokens", "Tokens computed.", ("kind",))
    for kind in ("prefill", "decode", "judge"):
        _add(tokens, getattr(usage, f"{kind}_tokens"), kind=kind)
    _add(_counter("image_encodes", "Images encoded."), usage.image_encodes)
    _add(_counter("cache_hits", "Calls that found their prefix."), usage.cache_hits)
    _add(_counter("judge_failures", "Verdicts that could not be had."), usage.judge_failures)


def retried(deployment: str) -> None:
    """A call of this deployment is made again, since its replica died."""
    retries = _counter("retries", "Calls made again after a replica died.", ("of",))
    retries.inc(tags={"of": deployment})


def under_way(searches: int) -> None:
    """Searches of this searcher."""
    _gauge("searches", "Searches under way.").set(searches)


def worked_for(questions: float) -> None:
    """Questions of this engine's replica."""
    _gauge("questions", "Questions that a replica works for.").set(questions)


def _add(counter: metrics.Counter, amount: int, **tags: str) -> None:
    if amount:  # a counter refuses to grow by nothing
        counter.inc(amount, tags=tags)
