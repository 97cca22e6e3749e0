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
    bootstrap: Interval | None = Field(
        None, description="95 % percentile bootstrap over questions, beside Wilson's."
    )


class Cost(_Frozen):
    """What one answer cost: means over the answers, but the median of the seconds."""

    tokens: float = Field(description="Tokens sampled by the generator, over all candidates.")
    sequential_passes: float = Field(description="Forward passes that waited for one another.")
    judge_tokens: float = Field(description="Tokens that the judge read.")
    judge_calls: float
    prefill_tokens: float = Field(description="Prompt and prefix tokens computed, no cache hits.")
    image_encodes: float
    seconds: float = Field(description="Median wall clock of an answer, under the run's load.")

    @property
    def all_tokens(self) -> float:
        """Sampled by the generator and read by the judge: what methods are set level by."""
        return self.tokens + self.judge_tokens


class Fallbacks(_Frozen):
    """What did not go as it should and was not a failed call: nothing of it is hidden."""

    unread: int = Field(0, description="Answers that the scoring rule could read nothing from.")
    untagged: int = Field(0, description="Candidates without their tags, which lose by rule.")
    cut: int = Field(0, description="Candidates that ended at max_new_tokens or another limit.")
    limited: int = Field(0, description="Answers that a limit of tokens or seconds cut short.")
    judge_failures: int = Field(0, description="Judge calls that failed or could not be read.")


class MethodResult(Share):
    """One method at one N. A question whose call failed counts as wrong and is listed here."""

    failed: int = 0
    failures: dict[str, int] = Field(default_factory=dict, description="Reason -> questions.")
    by_category: dict[str, Share] = Field(default_factory=dict)
    cost: Cost
    fallbacks: Fallbacks | None = Field(
        None, description="None where answers were kept by a release that did not count them."
    )


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
    bootstrap: Interval | None = Field(
        None, description="95 % percentile bootstrap over questions, beside Newcombe's."
    )

    @property
    def shown(self) -> int:
        """+1 where a gain of `first` is shown, -1 where a loss is, 0 where neither is.

        Shown means that the interval excludes zero and the exact test agrees at 5 %.
        """
        if self.p >= 0.05 or self.interval[0] <= 0 <= self.interval[1]:
            return 0
        return 1 if self.difference > 0 else -1


class EqualTokens(_Frozen):
    """A method at one N beside another method that was given at least as many tokens.

    Tokens are means for an answer, sampled by the generator and read by the judge. `second` is the
    cheapest measured N of `method` that cost no less than `first`; where none did, it is the
    dearest one, and there is no comparison, as it would favour `first`.
    """

    first: str
    first_tokens: float
    method: str
    second: str
    second_tokens: float
    comparison: Comparison | None


class PairShare(_Frozen):
    """How many pairs with a known answer a judge got right; a tie is not right."""

    accuracy: float
    interval: Interval
    pairs: int
    correct: int


class CalibrationBin(PairShare):
    """Pairs with margins of about the same size."""

    low: float = Field(description="Smallest |margin|, log-odds.")
    high: float = Field(description="Largest |margin|, log-odds.")
    confidence: float = Field(description="Mean probability that the judge gave its winner.")


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
    longer_share: float | None = Field(
        None, description="Share of decided pairs won by the longer text; None where none is."
    )
    better_longer: PairShare | None = Field(
        None, description="Pairs in which the better one is the longer, in characters."
    )
    better_shorter: PairShare | None = None
    calibration: tuple[CalibrationBin, ...] = Field(
        (), description="Decided pairs in bins of equal number, by |margin|."
    )
    calibration_error: float | None = Field(
        None, description="Expected calibration error: mean |confidence - accuracy| of the bins."
    )
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
    pairs_from: str | None = Field(None, description="Where the pairs come from, in a sentence.")
    alone: Share | None = Field(
        None, description="The judge's own model, answering the evaluation's questions greedily."
    )

    @property
    def cards(self) -> dict[str, JudgeCard]:
        """Every card, that of the judge which was used among them."""
        return {**self.kinds, self.kind: self}


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
    against_greedy: tuple[Comparison, ...] = ()
    equal_tokens: tuple[EqualTokens, ...] = ()
    claim: str


class RepeatFile(_Frozen):
    """A file that answers depend on."""

    path: str
    sha256: str
    rows: int | None = None


class RepeatWeights(_Frozen):
    """A model that answers depend on."""

    folder: str = Field(description="Folder, hub name, or name at its server.")
    fingerprint: str | None


class Repeat(_Frozen):
    """Whatever it takes to do it again. The recipe itself lies beside the report."""

    command: str
    directory: str = Field(description="Where it was run; the recipe's paths start there.")
    commit: str | None = Field(description="Of the source, `-dirty` where it was changed since.")
    files: tuple[RepeatFile, ...] = ()
    weights: dict[str, RepeatWeights] = Field(default_factory=dict)
    seeds: dict[str, int] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)


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
    repeat: Repeat | None = None
