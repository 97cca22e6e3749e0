"""The shape of `report.json`. Its keys are a contract that other programs read: add, never rename.

N, the number of candidates, is a string key: `stage_beam["4"].accuracy`.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from stagebeam.evaluation.statistics import Interval

# Methods that draw several candidates, in the order in which tables name them.
SEARCHES = ("majority", "best_of_n", "sentence_beam", "stage_beam", "retrace")


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Share(_Frozen):
    """A proportion of right answers, with its 95 % Wilson interval."""

    accuracy: float
    interval: Interval
    questions: int
    correct: int


class Cost(_Frozen):
    """What one answer cost: means over the answers, but the median of the seconds."""

    tokens: float = Field(description="Tokens sampled by the generator, over all candidates.")
    sequential_passes: float = Field(description="Forward passes that waited for one another.")
    judge_tokens: float = Field(description="Tokens that the judge read.")
    judge_calls: float
    prefill_tokens: float = Field(description="Prompt and prefix tokens computed, no cache hits.")
    image_encodes: float
    seconds: float = Field(description="Median wall clock of an answer, under the run's load.")


class MethodResult(Share):
    """One method at one N. A question whose call failed counts as wrong and is listed here."""

    failed: int = 0
    failures: dict[str, int] = Field(default_factory=dict, description="Reason -> questions.")
    by_category: dict[str, Share] = Field(default_factory=dict)
    cost: Cost


class Comparison(_Frozen):
    """Accuracy of `first` less that of `second` on the same questions (evaluation.statistics)."""

    first: str = Field(description="For example stage_beam@4.")
    second: str
    first_accuracy: float
    second_accuracy: float
    difference: float
    interval: Interval
    p: float
    questions: int
    only_first: int
    only_second: int

    @property
    def shown(self) -> int:
        """+1 where a gain of `first` is shown, -1 where a loss is, 0 where neither is.

        Shown means that the interval excludes zero and the exact test agrees at 5 %.
        """
        if self.p >= 0.05 or self.interval[0] <= 0 <= self.interval[1]:
            return 0
        return 1 if self.difference > 0 else -1


class PairShare(_Frozen):
    """How many pairs with a known answer a judge got right; a tie is not right."""

    accuracy: float
    interval: Interval
    pairs: int
    correct: int


class JudgeCard(PairShare):
    """What a judge is worth, on pairs of which one candidate is known to be the better."""

    ties: int
    swap_consistency: float = Field(description="Share of pairs with one winner in both orders.")
    mean_margin: float = Field(description="Mean log-odds for the better candidate.")
    first_position_share: float | None = Field(
        description="Share of decided orders won by the candidate shown first; 0.5 is unbiased."
    )
    by_stage: dict[str, PairShare]
    by_category: dict[str, PairShare] = Field(default_factory=dict)
    judge_tokens: float = Field(0.0, description="Mean tokens read for one pair.")
    seconds: float = Field(0.0, description="Wall clock of the whole measurement.")


class JudgeTrainingCost(_Frozen):
    """What it cost to train the judge."""

    steps: int
    seconds: float
    samples: int = Field(description="Answers sampled from the generator for it.")


class JudgeResult(JudgeCard):
    """The card of the judge that was used, and of every kind that was measured."""

    kind: str
    training: JudgeTrainingCost | None = None
    kinds: dict[str, JudgeCard] = Field(default_factory=dict)


class TrainResult(BaseModel):
    """The training run behind the generator; a job may add keys of its own."""

    model_config = ConfigDict(extra="allow", frozen=True)

    world_size: int
    zero_stage: int
    steps: int
    rows: int
    final_loss: float
    seconds: float


class ShardsResult(BaseModel):
    """The training shards; a job may add keys of its own."""

    model_config = ConfigDict(extra="allow", frozen=True)

    rows: int


class Accuracies(_Frozen):
    """Every method on the same questions, how they compare, and what that does and does not show.

    `oracle` is right where any of best-of-N's candidates is: the most that choosing could reach.
    `judge_alone` is the judge's own model answering greedily, None where it was not measured.
    """

    greedy: MethodResult
    stage_beam: dict[str, MethodResult] = Field(default_factory=dict)
    best_of_n: dict[str, MethodResult] = Field(default_factory=dict)
    majority: dict[str, MethodResult] = Field(default_factory=dict)
    sentence_beam: dict[str, MethodResult] = Field(default_factory=dict)
    retrace: dict[str, MethodResult] = Field(default_factory=dict)
    oracle: dict[str, MethodResult] = Field(default_factory=dict)
    judge_alone: MethodResult | None = None
    comparisons: tuple[Comparison, ...] = ()
    claim: str


class Results(Accuracies):
    """The whole report. Sections that a job did not run are null."""

    name: str
    created: str = Field(description="ISO 8601, UTC.")
    concurrency: int = Field(description="Questions in flight while answers were timed.")
    train: TrainResult | None = None
    shards: ShardsResult | None = None
    judge: JudgeResult | None = None
    recipe: dict[str, Any] = Field(default_factory=dict)
    fingerprints: dict[str, str | None] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)
    wandb: dict[str, str | None] | None = None
    seconds: dict[str, float] = Field(default_factory=dict, description="Wall clock of each step.")
