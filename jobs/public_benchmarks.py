"""Public benchmarks within an evaluation: asked by every method, scored by their own rules.

Each has a folder below the evaluation's, `benchmarks/NAME`, with `answers.jsonl`, `traces.jsonl`
and `identity.json` as there, so that it goes on where it stopped, and with the figures that follow:
`figures.json` for programs, `figures.md` for people.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stagebeam.evaluation.answers import AnswerRow, Rows, Rule
from stagebeam.evaluation.benchmarks import BENCHMARKS
from stagebeam.evaluation.benchmarks.asking import example_of, figures_of, load_rows, rule_of
from stagebeam.evaluation.benchmarks.benchmark import Benchmark, Figure, Figures, Row
from stagebeam.evaluation.benchmarks.figures import OVERALL
from stagebeam.evaluation.claim import label
from stagebeam.recipe import BenchmarkSet
from stagebeam.records import Example

FIGURES_FILE, TABLE_FILE = "figures.json", "figures.md"

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
    if graded:
        raise ValueError(
            f"The replies to {', '.join(graded)} have to be graded by a judge model, and evaluate "
            "does not do that."
        )
    absent = [b.file for b in found if not (config.folder / b.file).is_file()]
    if absent:
        raise ValueError(f"There is no {', '.join(absent)} in {config.folder}.")
    return found


async def measure_benchmarks(config: BenchmarkSet, output: Path, ask: Asker) -> dict[str, float]:
    """Ask and score all of them; returns each method's overall figure, in percent, under names such
    as `benchmark/MMStar/stage_beam@4`. Raises ValueError as `chosen` and `load_rows` do."""
    flat: dict[str, float] = {}
    for benchmark in chosen(config):
        rows = load_rows(benchmark, config.folder, config.rows)
        examples = [example_of(benchmark, row) for row in rows.values()]
        folder = output / "benchmarks" / benchmark.name
        rule = rule_of(benchmark, rows, config.mode)
        answers = await ask(examples, folder, rule, f"{benchmark.name} {config.mode}")
        figures = {name: figures_of(benchmark, rows, found) for name, found in answers.items()}
        _write(folder, benchmark, config, rows, answers, figures)
        for name, found in figures.items():
            flat[f"benchmark/{benchmark.name}/{name}"] = found[OVERALL].percent
    return flat


def _write(
    folder: Path,
    benchmark: Benchmark,
    config: BenchmarkSet,
    rows: Mapping[str, Row],
    answers: Rows,
    figures: Mapping[str, Figures],
) -> None:
    with (config.folder / benchmark.file).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    report: dict[str, Any] = {
        "benchmark": benchmark.name,
        "file": benchmark.file,
        "sha256": sha256,
        "published": benchmark.published(config.folder),
        "mode": config.mode,
        "rows": len(rows),
        "methods": {
            name: {
                "failed": sum(a.error is not None for a in answers[name]),
                "unmatched": _unmatched(answers[name]),
                "figures": {key: asdict(figure) for key, figure in found.items()},
            }
            for name, found in figures.items()
        },
    }
    (folder / FIGURES_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / TABLE_FILE).write_text(_table(report, figures), encoding="utf-8")


def _unmatched(answers: Sequence[AnswerRow]) -> int:
    """Replies that no rule could read, failed calls apart."""
    return sum(a.error is None and a.said is None for a in answers)


def _table(report: Mapping[str, Any], figures: Mapping[str, Figures]) -> str:
    published = {True: "as published", False: "not the published file", None: "checksum unknown"}
    columns = list(next(iter(figures.values())))
    lines = [
        f"# {report['benchmark']}",
        "",
        f"{report['rows']} rows of {report['file']} ({published[report['published']]}), read in "
        f"mode {report['mode']}. Percent, with 95 % bootstrap intervals.",
        "",
        f"| Method | {' | '.join(columns)} | Unmatched | Failed |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for name, found in figures.items():
        told = report["methods"][name]
        cells = (*map(_cell, found.values()), told["unmatched"], told["failed"])
        lines.append(f"| {label(name)} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _cell(figure: Figure) -> str:
    if figure.interval is None:
        return f"{figure.percent:.1f}"
    low, high = figure.interval
    return f"{figure.percent:.1f} ({low:.1f} to {high:.1f})"
