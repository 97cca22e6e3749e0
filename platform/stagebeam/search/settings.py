"""How one answer is searched for. Field names and defaults equal `recipe.SearchConfig`'s."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from stagebeam.inference.types import Sampling
from stagebeam.stages import STAGES

Method = Literal["greedy", "majority", "best_of_n", "sentence_beam", "stage_beam", "retrace"]
Form = Literal["chain", "bracket", "round_robin", "finals", "arrival"]
Tournament = Literal["chain", "bracket", "round_robin", "finals", "arrival", "auto"]
Budget = Literal["fixed", "adaptive"]

# All pairs of 4 are 6 comparisons in one round; a bracket needs 3 in two.
ROUND_ROBIN_UP_TO = 4
STAGEWISE = ("stage_beam", "retrace")  # methods that decide stage by stage
COMPARED = ("best_of_n", "sentence_beam", "stage_beam")  # methods that play tournaments


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """What was asked for. The properties say what follows from it.

    The fields are kept as given, so that `dataclasses.replace` may override any of them; one that
    a method has no use for is ignored by it. Raises ValueError with one sentence for a value that
    cannot be searched with.
    """

    method: Method = "stage_beam"
    candidates: int | Mapping[str, int] = 4  # N, a stage (or whole answers); or by stage, else 1
    tournament: Tournament = "auto"
    temperature: float = 0.6
    top_p: float = 0.9
    max_new_tokens: int = 2048  # tokens, a stage (or whole answer)
    tie_margin: float = 1e-6  # log-odds
    seed: int = 0
    early_stop_margin: float | None = None  # log-odds
    budget: Budget = "fixed"
    max_answer_tokens: int | None = None  # sampled for one answer, over all its candidates
    max_seconds: float | None = None  # wall clock of one answer
    explain: bool = False
    kept: int = 2  # retrace: candidates of a stage that go on
    max_retraces: int = 3  # retrace: times that a stage may go back
    calibration: str | Path | None = None  # retrace: file with its cutoffs

    def __post_init__(self) -> None:
        _one_of("method", self.method, get_args(Method))
        _one_of("tournament", self.tournament, get_args(Tournament))
        _one_of("budget", self.budget, get_args(Budget))
        self._check_candidates()
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be 0 or above, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}.")
        for name, least in (("max_new_tokens", 1), ("kept", 1), ("max_retraces", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if not self.tie_margin >= 0:
            raise ValueError(f"tie_margin must be 0 or above, got {self.tie_margin}.")
        for name in ("max_answer_tokens", "max_seconds"):
            if (limit := getattr(self, name)) is not None and not limit > 0:
                raise ValueError(f"{name} must be above 0, got {limit}.")
        if self.temperature == 0 and self.n > 1:
            raise ValueError(
                f"At temperature 0 all {self.n} candidates of {self.method} would be the same; "
                "raise the temperature or ask for 1 candidate."
            )
        self._check_stops()

    def _check_candidates(self) -> None:
        numbers = self.candidates
        if isinstance(numbers, int):
            numbers = {"": numbers}
        elif self.method not in (*STAGEWISE, "greedy"):
            raise ValueError(f"{self.method} does not go by stages: give candidates as one number.")
        else:
            for name in numbers:
                _one_of("A stage of candidates", name, tuple(s.value for s in STAGES))
        if any(number < 1 for number in numbers.values()):
            least = min(numbers.values())
            raise ValueError(f"candidates must be at least 1, got {least}.")

    def _check_stops(self) -> None:
        margin = self.early_stop_margin
        if margin is not None and not (math.isfinite(margin) and margin > self.tie_margin):
            raise ValueError(
                f"early_stop_margin must be above tie_margin, {self.tie_margin}, got {margin}."
            )
        if self.budget == "adaptive" and margin is None:
            raise ValueError(
                "An adaptive budget needs early_stop_margin, the margin that settles a stage."
            )

    def n_of(self, stage: str) -> int:
        """Candidates drawn for a stage, or whole answers: a greedy answer is always one."""
        if self.method == "greedy":
            return 1
        if isinstance(self.candidates, int):
            return self.candidates
        return self.candidates.get(stage, 1)

    @property
    def n(self) -> int:
        """The most that are drawn at once."""
        return max(self.n_of(stage.value) for stage in STAGES)

    @property
    def sampling(self) -> Sampling:
        temperature = 0.0 if self.method == "greedy" else float(self.temperature)
        return Sampling(temperature, float(self.top_p), self.max_new_tokens)

    @property
    def form(self) -> Form:
        """The tournament form of all stages, with `auto` resolved by the largest N."""
        if self.tournament != "auto":
            return self.tournament
        return "round_robin" if self.n <= ROUND_ROBIN_UP_TO else "finals"

    @property
    def plays(self) -> bool:
        """Whether candidates are compared in tournaments."""
        return self.method in COMPARED and self.n > 1

    @property
    def needs_judge(self) -> bool:
        return self.plays or self.method == "retrace"


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}.")
