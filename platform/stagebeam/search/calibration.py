"""The cutoffs of `retrace`: what score of a judge is good enough, from questions kept for that.

As in arXiv 2411.10440, appendix D, a stage's cutoff is mean + z * std of the scores; the z of the
paper lets the best 40 % of a normal distribution pass. Scores of one stage are not comparable with
those of another, so each stage has its own figures.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stagebeam.search.trace import StageTrace, Trace
from stagebeam.stages import STAGES, Stage

Z: Final = 0.2533
SCHEMA_VERSION: Final = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StageScores(_Frozen):
    """The scores of one stage's candidates, in the judge's units (nats for a likelihood)."""

    count: int
    mean: float
    std: float
    cutoff: float


class Row(_Frozen):
    """A question that was used."""

    id: str
    digest: str = Field(description="SHA-256 of its turns and images, hex (`question_key`).")


class Calibration(_Frozen):
    """A calibration file. It counts for these two models and no others."""

    schema_version: Literal[1] = SCHEMA_VERSION
    generator: str = Field(description="Fingerprint.")
    judge: str = Field(description="Fingerprint.")
    z: float
    stages: dict[Stage, StageScores] = Field(min_length=len(STAGES))
    rows: tuple[Row, ...]

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that change with anything in it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    def check_models(self, generator: str, judge: str | None) -> None:
        """Raises ValueError where the scores are another model's."""
        for name, ours, theirs in (
            ("generator", self.generator, generator),
            ("judge", self.judge, judge),
        ):
            if ours != theirs:
                raise ValueError(
                    f"The calibration was made with the {name} {ours}, and this one is {theirs}; "
                    "calibrate again."
                )

    def check_rows(self, digests: Mapping[str, str], what: str) -> None:
        """Raises ValueError if a question (digest -> id) is among those that it was made on."""
        shared = [digests[row.digest] for row in self.rows if row.digest in digests]
        if shared:
            raise ValueError(
                f"{len(shared)} of the questions of {what} are among those that the calibration "
                f"was made on, for example {shared[0]}; take others for one of the two."
            )


def calibrate(traces: Iterable[Trace], rows: Iterable[Row], z: float = Z) -> Calibration:
    """Cutoffs from the scores in `traces`, answers to `rows` by one generator and one judge.

    Only `retrace` has every candidate scored, also where they are all alike; with `max_retraces`
    0 it needs no cutoffs.

    Raises ValueError if the models differ, or a stage has fewer than two scores.
    """
    scores: dict[Stage, list[float]] = {stage: [] for stage in STAGES}
    models = set()
    for trace in traces:
        models.add((trace.generator, trace.judge))
        for stage in trace.stages:
            if stage.stage in Stage.__members__:
                scores[Stage(stage.stage)] += _scores(stage)
    if len(models) != 1:
        raise ValueError(f"The scores are of {len(models)} pairs of models instead of one.")
    ((generator, judge),) = models
    few = [name for name, found in scores.items() if len(found) < 2]
    if few or judge is None:
        raise ValueError(
            f"There are not two scores of {', '.join(few)}; calibrate with a judge that scores "
            "each candidate (kind likelihood), and with 2 candidates or more."
        )
    return Calibration(
        generator=generator,
        judge=judge,
        z=z,
        stages={name: _figures(found, z) for name, found in scores.items()},
        rows=tuple(rows),
    )


def _scores(stage: StageTrace) -> Iterator[float]:
    """One for each candidate that was scored; a copy has that of the first of its kind."""
    scores = {c.index: c.score for c in stage.candidates}
    for candidate in stage.candidates:
        first = candidate.index if candidate.merged_into is None else candidate.merged_into
        if (score := scores[first]) is not None:
            yield score


def _figures(scores: list[float], z: float) -> StageScores:
    mean, std = fmean(scores), stdev(scores)
    return StageScores(count=len(scores), mean=mean, std=std, cutoff=mean + z * std)


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(calibration.model_dump_json(indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def read_calibration(path: str | Path) -> Calibration:
    """Raises ValueError with one sentence if there is none, or it is not one."""
    try:
        return _read(str(path), Path(path).stat().st_mtime_ns)
    except FileNotFoundError:
        raise ValueError(
            f"There is no calibration at {path}; make one with `stagebeam calibrate`."
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"{path} is not a calibration: {where}: {first['msg']}.") from None


@lru_cache(maxsize=8)
def _read(path: str, changed: int) -> Calibration:
    """Kept until the file changes: a service reads it for every question."""
    return Calibration.model_validate_json(Path(path).read_bytes())


def cutoff(calibration: Calibration | None, stage: Stage) -> float:
    """What a candidate of `stage` must score; anything will do without a calibration."""
    return -math.inf if calibration is None else calibration.stages[stage].cutoff
