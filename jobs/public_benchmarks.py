"""Public benchmarks within an evaluation: asked by every method, scored by their own rules.

Each has a folder below the evaluation's, `benchmarks/NAME`, with `answers.jsonl`, `traces.jsonl`
and `identity.json` as there, so that it goes on where it stopped, and with the figures that follow:
`figures.json` for programs, `figures.md` for people. Where a judge reviewed the answers,
`reviews.jsonl` holds what it said of each, and `judge_replies.jsonl` beside the folders every reply
of it, so that none is asked for twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from jobs.progress import StepBar
from stagebeam.evaluation.answers import TRACES_FILE, AnswerRow, Rows, Rule
from stagebeam.evaluation.benchmarks import BENCHMARKS
from stagebeam.evaluation.benchmarks.asking import example_of, figures_of, load_rows, rule_of
from stagebeam.evaluation.benchmarks.benchmark import (
    Benchmark,
    Figure,
    Figures,
    ReviewKind,
    Row,
)
from stagebeam.evaluation.benchmarks.figures import OVERALL
from stagebeam.evaluation.claim import label
from stagebeam.evaluation.review.judge import Review, reviewing
from stagebeam.evaluation.review.reviewing import PROMPTS, counts, review_answers
from stagebeam.evaluation.scorers.conclusion import Mode
from stagebeam.recipe import BenchmarkSet, ReviewConfig
from stagebeam.records import Example
from stagebeam.search.trace import read_traces

FIGURES_FILE, TABLE_FILE, REVIEWS_FILE = "figures.json", "figures.md", "reviews.jsonl"
REPLIES_FILE = "judge_replies.jsonl"  # of all benchmarks

Reviews = Mapping[str, Sequence[Review]]  # by method, in the order of its answers

_REVIEWED: Mapping[ReviewKind, str] = {
    "pair": "A figure is the answers' mean score in percent of the reference answers'; rows that "
    "are unmatched are left out. Scored",
    "grade": "An unmatched reply has the grade 0. Graded",
    "extract": "What the rule could not read was extracted",
}

# Examples, the folder for their answers, the rule and its name -> answers by method.
Asker = Callable[[Sequence[Example], Path, Rule, str], Awaitable[Rows]]


def chosen(config: BenchmarkSet) -> list[Benchmark]:
    """The benchmarks that are named. Raises ValueError if one is unknown, needs a judge to grade
    its replies, or has no file."""
    unknown = [name for name in config.names if name not in BENCHMARKS]
    if unknown:
        raise ValueError(
            f"There is no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}."
        )
    found = [BENCHMARKS[name] for name in dict.fromkeys(config.names)]
    graded = [benchmark.name for benchmark in found if benchmark.score is None]
    if graded and config.review is None:
        raise ValueError(
            f"The replies to {', '.join(graded)} have to be graded by a judge model; name one in "
            "evaluation.benchmarks.review."
        )
    absent = [b.file for b in found if not (config.folder / b.file).is_file()]
    if absent:
        raise ValueError(f"There is no {', '.join(absent)} in {config.folder}.")
    return found


@dataclass(frozen=True, slots=True)
class _Answered:
    """A benchmark's rows by index, the answers to them, and a judge's reviews of those, if any."""

    benchmark: Benchmark
    rows: Mapping[str, Row]
    answers: Rows
    reviews: Reviews = field(default_factory=dict)

    def figures(self) -> dict[str, Figures]:
        """By method."""
        return {
            name: figures_of(
                self.benchmark, self.rows, found, [r.outcome for r in self.reviews.get(name, ())]
            )
            for name, found in self.answers.items()
        }


async def measure_benchmarks(
    config: BenchmarkSet, output: Path, ask: Asker, console: Console
) -> dict[str, float]:
    """Ask and score all of them; returns each method's overall figure, in percent, under names such
    as `benchmark/MMStar/stage_beam@4`. Raises ValueError as `chosen`, `load_rows` and
    `review_answers` do."""
    flat: dict[str, float] = {}
    for benchmark in chosen(config):
        rows = load_rows(benchmark, config.folder, config.rows)
        examples = [example_of(benchmark, row) for row in rows.values()]
        folder = output / "benchmarks" / benchmark.name
        rule = rule_of(benchmark, rows, config.mode)
        answers = await ask(examples, folder, rule, f"{benchmark.name} {config.mode}")
        answered = _Answered(benchmark, rows, answers)
        if config.review is not None and benchmark.review is not None:
            reviews = await _review(answered, config.review, config.mode, folder, console)
            answered = replace(answered, reviews=reviews)
        figures = answered.figures()
        _write(folder, answered, config, figures)
        for name, found in figures.items():
            if found:  # a judge may have left nothing to figure
                flat[f"benchmark/{benchmark.name}/{name}"] = found[OVERALL].percent
    return flat


async def _review(
    answered: _Answered, config: ReviewConfig, mode: Mode, folder: Path, console: Console
) -> Reviews:
    """One method after another: an answer that two of them have in common is reviewed once."""
    benchmark, answers = answered.benchmark, answered.answers
    asked = {answer.trace_id for found in answers.values() for answer in found} - {None}
    traces = read_traces(folder / TRACES_FILE) if asked else ()
    texts = {trace.id: trace.text for trace in traces if trace.id in asked}
    reviews = {}
    async with reviewing(config, folder.parent / REPLIES_FILE) as judge:
        for name, found in answers.items():
            with StepBar(console, f"{benchmark.name} reviewed, {label(name)}", len(found)) as bar:
                reviews[name] = await review_answers(
                    benchmark, answered.rows, found, texts, mode, judge, _shown_on(bar)
                )
    with (folder / REVIEWS_FILE).open("w", encoding="utf-8") as lines:
        for name, made in reviews.items():
            for answer, review in zip(answers[name], made, strict=True):
                lines.write(json.dumps({"method": name, "id": answer.id, **asdict(review)}) + "\n")
    return reviews


def _shown_on(bar: StepBar) -> Callable[[Review], None]:
    done, failed = 0, 0

    def on_review(review: Review) -> None:
        nonlocal done, failed
        done, failed = done + 1, failed + any(reply.failed for reply in review.replies)
        bar.update(done, f"{failed} failed" if failed else "")

    return on_review


def _write(
    folder: Path, answered: _Answered, config: BenchmarkSet, figures: Mapping[str, Figures]
) -> None:
    benchmark, answers, reviews = answered.benchmark, answered.answers, answered.reviews
    with (config.folder / benchmark.file).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    report: dict[str, Any] = {
        "benchmark": benchmark.name,
        "file": benchmark.file,
        "sha256": sha256,
        "published": benchmark.published(config.folder),
        "mode": config.mode,
        "rows": len(answered.rows),
        "review": _reviewer(benchmark, config) if reviews else None,
        "methods": {
            name: {
                "failed": sum(a.error is not None for a in answers[name]),
                "unmatched": _unmatched(answers[name], reviews.get(name)),
                "judge": counts(reviews[name]) if reviews else None,
                "figures": {key: asdict(figure) for key, figure in found.items()},
            }
            for name, found in figures.items()
        },
    }
    (folder / FIGURES_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / TABLE_FILE).write_text(_table(report, figures), encoding="utf-8")


def _reviewer(benchmark: Benchmark, config: BenchmarkSet) -> dict[str, Any]:
    """All that a judge's replies follow from, beside the rows and the answers."""
    assert config.review is not None and benchmark.review is not None
    sampling = config.review.model_dump(include={"model", "temperature", "max_tokens", "extra"})
    return {"kind": benchmark.review, "prompt": PROMPTS[benchmark.review], **sampling}


def _unmatched(answers: Sequence[AnswerRow], reviews: Sequence[Review] | None) -> int:
    """Replies that no rule and no judge could read, failed calls apart."""
    said = [a.said for a in answers] if reviews is None else [r.outcome.said for r in reviews]
    return sum(a.error is None and s is None for a, s in zip(answers, said, strict=True))


def _table(report: Mapping[str, Any], figures: Mapping[str, Figures]) -> str:
    published = {True: "as published", False: "not the published file", None: "checksum unknown"}
    columns = list(dict.fromkeys(name for found in figures.values() for name in found))
    review = report["review"]
    counted = ["Unmatched", "Failed", *(("Judge unread", "Judge failed") if review else ())]
    lines = [
        f"# {report['benchmark']}",
        "",
        f"{report['rows']} rows of {report['file']} ({published[report['published']]}), read in "
        f"mode {report['mode']}. Percent, with 95 % bootstrap intervals.",
        "",
    ]
    if review:
        lines += [f"{_REVIEWED[review['kind']]} by {review['model']} ({review['prompt']}).", ""]
    lines += [
        f"| Method | {' | '.join(columns + counted)} |",
        "|---" * (1 + len(columns) + len(counted)) + "|",
    ]
    for name, found in figures.items():
        told = report["methods"][name]
        numbers = [told["unmatched"], told["failed"]]
        if review:
            numbers += [told["judge"]["unread"], told["judge"]["failed"]]
        cells = [_cell(found.get(column)) for column in columns] + list(map(str, numbers))
        lines.append(f"| {label(name)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "none"
    if figure.interval is None:
        return f"{figure.percent:.1f}"
    low, high = figure.interval
    return f"{figure.percent:.1f} ({low:.1f} to {high:.1f})"
