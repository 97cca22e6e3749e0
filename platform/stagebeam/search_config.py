"""The search section of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from stagebeam.schema import Candidates, Method, PositiveInt, Section, Tournament


class SearchConfig(Section):
    """How an answer is searched for; a request may override it within the operator's limits."""

    method: Method = Field("stage_beam", description="See docs/search.md.")
    candidates: Candidates = Field(
        4,
        description="N, candidates a stage (or whole answers); or N by stage, such as"
        " {CAPTION: 2, REASONING: 8}, with one for a stage that is left out.",
    )
    tournament: Tournament = Field(
        "auto", description="`auto` is round_robin for N <= 4 and finals above."
    )
    temperature: float = Field(0.6, ge=0, description="Sampling temperature.")
    top_p: float = Field(0.9, gt=0, le=1, description="Nucleus mass.")
    max_new_tokens: PositiveInt = Field(2048, description="Longest stage or answer, tokens.")
    tie_margin: float = Field(1e-6, ge=0, description="Margins up to this (log-odds) are ties.")
    seed: int = Field(0, description="Run seed that every candidate's seed derives from.")
    early_stop_margin: float | None = Field(
        None, gt=0, description="A match wider than this (log-odds) ends its tournament."
    )
    budget: Literal["fixed", "adaptive"] = Field(
        "fixed",
        description="`adaptive` draws two candidates first, and the others only where those two "
        "differ and neither wins by more than early_stop_margin.",
    )
    max_answer_tokens: PositiveInt | None = Field(
        None, description="Most tokens sampled for one answer, over all its candidates."
    )
    max_seconds: float | None = Field(None, gt=0, description="Longest search, seconds.")
    explain: bool = Field(False, description="Have the judge write a sentence on each match.")
    kept: PositiveInt = Field(2, description="`retrace`: candidates of a stage that go on.")
    max_retraces: int = Field(3, ge=0, description="`retrace`: times that a stage may go back.")
    calibration: Path | None = Field(
        None, description="`retrace`: file with its cutoffs, which `stagebeam calibrate` makes."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.budget == "adaptive" and self.early_stop_margin is None:
            raise ValueError("an adaptive budget needs early_stop_margin")
        if isinstance(self.candidates, dict) and self.method not in ("stage_beam", "retrace"):
            raise ValueError(f"{self.method} does not go by stages: candidates must be one number")
        return self
