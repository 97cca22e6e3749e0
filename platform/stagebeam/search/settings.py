"""How one answer is searched for. Field names and defaults equal `recipe.SearchConfig`'s."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from stagebeam.inference.types import Sampling

Method = Literal["greedy", "majority", "best_of_n", "stage_beam"]
Form = Literal["chain", "bracket", "round_robin"]
Tournament = Literal["chain", "bracket", "round_robin", "auto"]

# All pairs of 4 are 6 comparisons in one round; a bracket needs 3 in two.
ROUND_ROBIN_UP_TO = 4


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """What was asked for. The properties say what follows from it.

    The fields are kept as given, so that `dataclasses.replace` may override any of them.
    Raises ValueError with one sentence for a value that cannot be searched with.
    """

    method: Method = "stage_beam"
    candidates: int = 4  # N, a stage (or whole answers)
    tournament: Tournament = "auto"
    temperature: float = 0.6
    top_p: float = 0.9
    max_new_tokens: int = 2048  # tokens, a stage (or whole answer)
    tie_margin: float = 1e-6  # log-odds
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("method", self.method, get_args(Method))
        _one_of("tournament", self.tournament, get_args(Tournament))
        if self.candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {self.candidates}.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be 0 or above, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}.")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}.")
        if not self.tie_margin >= 0:
            raise ValueError(f"tie_margin must be 0 or above, got {self.tie_margin}.")
        if self.temperature == 0 and self.n > 1:
            raise ValueError(
                f"At temperature 0 all {self.n} candidates of {self.method} would be the same; "
                "raise the temperature or ask for 1 candidate."
            )

    @property
    def n(self) -> int:
        """Candidates that are really drawn: a greedy answer is one, whatever was asked."""
        return 1 if self.method == "greedy" else self.candidates

    @property
    def sampling(self) -> Sampling:
        temperature = 0.0 if self.method == "greedy" else float(self.temperature)
        return Sampling(temperature, float(self.top_p), self.max_new_tokens)

    @property
    def form(self) -> Form:
        """The tournament form, with `auto` resolved by N."""
        if self.tournament != "auto":
            return self.tournament
        return "round_robin" if self.n <= ROUND_ROBIN_UP_TO else "bracket"

    @property
    def needs_judge(self) -> bool:
        return self.method in ("best_of_n", "stage_beam") and self.n > 1


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}.")
