"""The replicas that this process can reach, by deployment, as `routing.QuestionRouter` hears."""

from __future__ import annotations

_replicas: dict[str, frozenset[str]] = {}


def note(deployment: str, replicas: frozenset[str]) -> None:
    """Called whenever replicas came or went."""
    _replicas[deployment] = replicas


def replicas(deployment: str) -> frozenset[str]:
    """Those that take calls now; none before the first call."""
    return _replicas.get(deployment, frozenset())
