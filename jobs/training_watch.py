"""What a training run shows while it goes on: a bar, and what is tracked."""

from __future__ import annotations

from jobs.progress import StepBar
from stagebeam.evaluation.scoring import correct
from stagebeam.records import Example
from stagebeam.stages import parse
from stagebeam.tracking import Run
from stagebeam.training.contracts import EvaluationReport, Sample, StepReport
from stagebeam.training.heldout import open_rows
from stagebeam.training.launch import Job
from stagebeam.training.throughput import utilisation

_SAMPLE_COLUMNS = ("step", "row", "question", "gold", "answer", "tags valid", "right")


class Watch:
    """Takes the reports of a run as `fit` hands them on."""

    def __init__(self, job: Job, run: Run, bar: StepBar) -> None:
        self._job, self._run, self._bar = job, run, bar
        self._rows: dict[str, Example] = {}
        self._told: list[list[object]] = []
        self.losses: list[float] = []
        self.held_out_loss: float | None = None

    def __call__(self, report: StepReport | EvaluationReport) -> None:
        if isinstance(report, StepReport):
            self._step(report)
        else:
            self._evaluation(report)

    def _step(self, report: StepReport) -> None:
        self.losses.append(report.loss)
        said = f"loss {report.loss:.3f}"
        if self.held_out_loss is not None:
            said += f", held out {self.held_out_loss:.3f}"
        self._bar.update(report.step, said)
        metrics = {
            "step": report.step,
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "grad_norm": report.grad_norm,
            "tokens_per_s": report.tokens / report.seconds,
            "samples_per_s": report.rows / report.seconds,
            "data_wait_share": report.data_wait_seconds / report.seconds,
            "memory_bytes": report.memory_bytes,
        }
        if report.peak_flops is not None:
            metrics["mfu"], metrics["hfu"] = utilisation(report, report.peak_flops)
        self._log(metrics)

    def _evaluation(self, report: EvaluationReport) -> None:
        self.held_out_loss = report.loss
        metrics: dict[str, float] = {"step": report.step, "held_out_loss": report.loss}
        if report.samples:
            judged = [self._judged(sample) for sample in report.samples]
            metrics["held_out_tags_valid"] = sum(valid for valid, _ in judged) / len(judged)
            metrics["held_out_accuracy"] = sum(right for _, right in judged) / len(judged)
            for sample, (valid, right) in zip(report.samples, judged, strict=True):
                row = self._row(sample.row_id)
                question, gold = row.messages[-2].text, row.answer
                told = [report.step, row.id, question, gold, sample.text, valid, right]
                self._told.append(told)
            # W&B keeps the last table of a name, so each holds those before it.
            self._run.table(f"{self._job.name}/samples", _SAMPLE_COLUMNS, self._told)
        self._log(metrics)

    def _judged(self, sample: Sample) -> tuple[bool, bool]:
        """Whether all four stages are there, and whether the conclusion is the gold answer."""
        answer, row = parse(sample.text), self._row(sample.row_id)
        said = answer.conclusion if self._job.task.staged else sample.text
        return answer.valid, row.answer is not None and correct(said, row)

    def _row(self, row_id: str) -> Example:
        config = self._job.train.evaluation
        if not self._rows and config is not None:
            reader = open_rows(config)
            rows = reader.rows(range(min(config.samples, len(reader))))
            self._rows = {row.id: row for row in rows}
        return self._rows[row_id]

    def _log(self, metrics: dict[str, float]) -> None:
        self._run.log({f"{self._job.name}/{key}": value for key, value in metrics.items()})
