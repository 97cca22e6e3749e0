"""What W&B keeps of an evaluation, offline."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from wandb_log import history, table_files

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))

import scripted_world

from jobs.tracked import track
from stagebeam.evaluation.answers import AnswerStore, Rows, name_of
from stagebeam.evaluation.cases import Case
from stagebeam.evaluation.report_tables import method_lines
from stagebeam.evaluation.results import Results
from stagebeam.stages import STAGES
from stagebeam.tracking import start_run
from stagebeam.tracking_config import TrackingConfig

QUESTIONS = 16


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, list[Case], Rows]:
    folder = tmp_path_factory.mktemp("answers")
    results, cases = scripted_world.build_report(folder, QUESTIONS)
    rows: dict[str, Any] = {}
    for row in AnswerStore(folder)._rows.values():
        rows.setdefault(name_of(row.method, row.n), []).append(row)
    return results, cases, rows


@pytest.fixture(scope="module")
def folder(
    parts: tuple[Results, list[Case], Rows], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    results, cases, rows = parts
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_API_KEY", raising=False)
        run = start_run(
            TrackingConfig(), "w", {}, tmp_path_factory.mktemp("run"), job_type="evaluate"
        )
        track(run, results, rows, cases, {"benchmark/MMStar/greedy": 50.0})
        run.finish()
    assert run.offline_dir is not None
    return run.offline_dir


def table(folder: Path, name: str) -> tuple[list[str], list[list[Any]]]:
    (path,) = folder.glob(f"files/media/table/{name}_[0-9]*.json")
    told = json.loads(path.read_text())
    return told["columns"], told["data"]


def test_methods_categories_comparisons_and_the_card_are_tables(
    parts: tuple[Results, list[Case], Rows], folder: Path
) -> None:
    results = parts[0]
    columns, methods = table(folder, "methods")
    assert {row[0]: row[columns.index("accuracy")] for row in methods} == {
        name: m.accuracy for name, m in method_lines(results)
    }
    assert {"low", "high", "tokens", "judge_tokens", "unread", "untagged"} <= set(columns)
    assert {row[0] for row in table(folder, "categories")[1]} == {"choice", "count"}
    for name, found in (
        ("comparisons", results.comparisons),
        ("against_greedy", results.against_greedy),
    ):
        rows = table(folder, name)[1]
        assert [(row[0], row[1], row[2]) for row in rows] == [
            (c.first, c.second, c.difference) for c in found
        ]
    assert results.judge is not None
    card = {(row[0], row[1]): row[2] for row in table(folder, "judge_card")[1]}
    assert card["likelihood", "all"] == results.judge.accuracy
    assert ("verdict", "REASONING") in card and ("likelihood", "questions: count") in card
    assert len(table(folder, "answers")[1]) == QUESTIONS * 12


def test_accuracy_is_a_curve_over_n(parts: tuple[Results, list[Case], Rows], folder: Path) -> None:
    steps = history(folder)
    curve = {step["scaling/N"]: step for step in steps if "scaling/N" in step}
    assert sorted(curve) == [1, 2, 4]
    assert curve[4]["scaling/stage_beam"] == parts[0].stage_beam["4"].accuracy
    assert curve[2]["scaling/oracle"] == parts[0].oracle["2"].accuracy
    assert curve[1]["scaling/greedy"] == parts[0].greedy.accuracy
    flat = next(step for step in steps if "accuracy/greedy" in step)
    assert flat["benchmark/MMStar/greedy"] == 50.0 and flat["tokens/best_of_n@4"] > 0


def test_plots_can_be_looked_at(folder: Path) -> None:
    pages = list(folder.glob("files/media/html/**/*.html"))
    assert len(pages) == 4
    for name in ("against_tokens", "against_passes", "against_seconds", "judge_by_stage"):
        (page,) = (page for page in pages if name in page.name)
        assert page.read_text().count("<svg") == 1


def test_a_sample_of_traces_has_its_pictures_and_stages(
    parts: tuple[Results, list[Case], Rows], folder: Path
) -> None:
    columns, rows = table(folder, "traces")
    known = {case.trace.id: case for case in parts[1]}
    assert len(rows) == QUESTIONS
    for row in rows:
        told = dict(zip(columns, row, strict=True))
        case = known[told["trace"]]
        assert (told["gold"], told["correct"]) == (case.gold, case.correct)
        assert told["question"] == case.trace.messages[-1].text
        assert told["conclusion"] == case.trace.conclusion == told["CONCLUSION"]
        assert all(told[stage.value] for stage in STAGES)
        assert told["image"] == "Image"
    files = table_files(folder, "traces")
    pictures = [path for name, path in files.items() if name.endswith(".png")]
    assert {Image.open(path).size for path in pictures} == {(96, 96)}
