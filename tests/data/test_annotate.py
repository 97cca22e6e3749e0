"""Annotation against a local server: every row ends once, every call is counted and paid once."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))

from teacher import MODEL, Teacher, serving, write_questions

from stagebeam.annotate_config import AnnotateConfig
from stagebeam.data.annotate import journal as journals
from stagebeam.data.annotate.control import Stop
from stagebeam.data.annotate.output import Report
from stagebeam.data.annotate.run import annotate, load_job
from stagebeam.data.sources import read
from stagebeam.data.validate import validated
from stagebeam.recipe import DataConfig
from stagebeam.records import Example
from stagebeam.source_config import LlavaCotSource
from stagebeam.stages import conclusion

DATA = DataConfig(shards=Path("unused"))
ALWAYS = {
    "always tags": "format",
    "always leaks": "leak",
    "always refuses": "refusal",
    "always wrong": "disagrees",
    "undecided": "unclear check",
    "unacceptable": "request refused",
}


def config_of(folder: Path, url: str, questions: Path, **changes: Any) -> AnnotateConfig:
    teacher = {
        "base_url": url,
        "model": MODEL,
        "concurrency": 8,
        "retry_wait_s": 0.01,
        "max_tokens": 200,
        "tokens_per_image": 100,
        **changes.pop("teacher", {}),
    }
    source = {
        "kind": "llava_cot",
        "annotations": questions,
        "image_root": questions.parent / "img",
    }
    return AnnotateConfig.model_validate(
        {"output_dir": folder / "out", "sources": [source], "teacher": teacher, **changes}
    )


async def ran(config: AnnotateConfig, limit: int | None = None, **options: Any) -> Report:
    return await annotate(load_job(config, DATA, 7, limit), Stop(), **options)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def outcomes(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return lines(folder / "out" / "annotations.jsonl"), lines(folder / "out" / "refused.jsonl")


async def test_every_row_ends_once_when_a_fifth_of_the_calls_fails(tmp_path: Path) -> None:
    texts = [*["how many"] * 20, *ALWAYS, *["how many"] * 24]
    questions = write_questions(tmp_path, texts, turns=2)
    teacher = Teacher(fault_share=0.2)
    with serving(teacher) as url:
        report = await ran(config_of(tmp_path, url, questions))

    done, refused = outcomes(tmp_path)
    ids = Counter(row["id"] for row in done + refused)
    assert ids == Counter(f"row-{n}" for n in range(50))
    assert [row["id"] for row in done] == sorted((r["id"] for r in done), key=lambda i: int(i[4:]))
    faults = {row["id"]: row["fault"] for row in refused}
    for number, fault in enumerate(ALWAYS.values(), start=20):
        assert faults[f"row-{number}"] in {fault, "unclear check"}
    assert len(done) >= 40 and all(row["reason"].endswith(".") for row in refused)
    for row in done:
        number = row["id"].removeprefix("row-")
        said = [conclusion(t["value"]) for t in row["conversations"] if t["from"] == "gpt"]
        assert said == [f"{number}-0", f"{number}-1"]
    # what the client counted is what the server saw
    assert report.complete and report.requests == len(teacher.requests)
    assert report.replies == teacher.answered.total()
    assert report.failed == {
        "429": teacher.faults["429"],
        "500": teacher.faults["500"],
        "connection": teacher.faults["cut"],
        "broken reply": teacher.faults["page"] + teacher.faults["empty"],
        "400": len(teacher.requests) - report.replies - teacher.faults.total(),
    }
    assert report.unsure == sum(teacher.faults[f] for f in ("cut", "page", "empty"))
    assert max(teacher.answered.values()) == 1
    assert teacher.most_running <= 8
    assert set(report.unusable) == {"format", "leak", "refusal", "disagrees", "unclear check"}


async def test_the_result_is_a_source_of_valid_staged_rows(tmp_path: Path) -> None:
    questions = write_questions(tmp_path, ["how many"] * 6)
    with serving(Teacher()) as url:
        await ran(config_of(tmp_path, url, questions))
    out = tmp_path / "out"
    source = LlavaCotSource(annotations=out / "annotations.jsonl", image_root=out / "images")
    rows = list(validated(read(source), DATA))
    assert [row.id for row in rows if isinstance(row, Example)] == [f"row-{n}" for n in range(6)]
    assert [len(row.images) for row in rows if isinstance(row, Example)] == [1, 0, 0, 1, 0, 0]
    first = rows[0]
    assert isinstance(first, Example) and first.source == "llava_cot/set"
    assert first.images[0].bytes == (tmp_path / "img/set/0.png").read_bytes()


async def test_later_turns_see_the_images_and_the_staged_answers_before_them(
    tmp_path: Path,
) -> None:
    questions = write_questions(tmp_path, ["how many"], turns=2)
    teacher = Teacher()
    with serving(teacher) as url:
        await ran(config_of(tmp_path, url, questions))
    first, check, second, _ = (request["messages"] for request in teacher.requests)
    assert [part["type"] for part in first[0]["content"]] == ["image_url", "text"]
    assert first[0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert [m["role"] for m in second] == ["user", "assistant", "user"]
    assert [part["type"] for part in second[0]["content"]] == ["image_url", "text"]
    assert second[0]["content"][1]["text"] == "Row 0.0: how many?"
    assert conclusion(second[1]["content"]) == "0-0"
    assert "0-1" in second[2]["content"]
    assert len(check) == 1 and isinstance(check[0]["content"], str)


async def test_a_second_run_asks_nothing_and_writes_the_same(tmp_path: Path) -> None:
    questions = write_questions(tmp_path, ["how many", "always leaks", "how many"])
    teacher = Teacher()
    with serving(teacher) as url:
        config = config_of(tmp_path, url, questions)
        first, files = await ran(config), outcomes(tmp_path)
        asked = len(teacher.requests)
        assert await ran(config) == first
        assert (len(teacher.requests), outcomes(tmp_path)) == (asked, files)
        (row,) = [row for row in await _limited(config) if row["id"] == "row-0"]
        assert row == files[0][0] and len(teacher.requests) == asked
        (tmp_path / "out" / "mine.txt").touch()
        await ran(config, fresh=True)
        assert (tmp_path / "out" / "mine.txt").exists() and outcomes(tmp_path) == files
    assert len(teacher.requests) == 2 * asked


async def _limited(config: AnnotateConfig) -> list[dict[str, Any]]:
    report = await ran(config, limit=1)
    assert report.rows == report.annotated == 1
    return lines(config.output_dir / "annotations.jsonl")


async def test_the_spending_limit_is_never_passed_and_the_next_run_goes_on(tmp_path: Path) -> None:
    questions = write_questions(tmp_path, ["how many"] * 30)
    # 100 tokens in and 50 out: 200 a call, and the server counts what it was paid
    teacher = Teacher(fault_share=0.1, pause_s=0.01)
    prices = {"price_in": 1e6, "price_out": 2e6}
    with serving(teacher) as url:
        limited = config_of(tmp_path, url, questions, teacher=prices, spend_limit=14000.0)
        report = await ran(limited)
        lost = sum(teacher.faults[f] for f in ("cut", "page", "empty"))
        paid = 200 * (teacher.answered.total() + lost)
        assert report.cost + report.unsure_cost <= 14000 and paid <= 14000
        assert report.cost == 200 * teacher.answered.total() > 6000
        assert report.stopped and "spending limit" in report.stopped
        assert not report.complete and 0 < report.annotated < 30
        again = await ran(limited)  # the limit is the folder's, not the run's
        assert again.cost == report.cost and len(teacher.requests) == again.requests
        open_ended = config_of(tmp_path, url, questions, teacher=prices)
        whole = await ran(open_ended)
    assert whole.complete and whole.annotated + sum(whole.refused.values()) == 30
    assert max(teacher.answered.values()) == 1


async def test_requests_keep_to_the_rate(tmp_path: Path) -> None:
    questions = write_questions(tmp_path, ["how many"] * 10)
    teacher = Teacher()
    with serving(teacher) as url:
        limits = {"requests_per_minute": 1200}  # one in 50 ms
        started = time.monotonic()
        await ran(config_of(tmp_path, url, questions, teacher=limits))
    times = sorted(teacher.times)
    assert len(times) == 20
    assert all(at - started >= 0.05 * number for number, at in enumerate(times))


async def test_retry_after_holds_all_calls_back(tmp_path: Path) -> None:
    questions = write_questions(tmp_path, ["how many"] * 4)
    teacher = Teacher(first_faults=["429"], retry_after="1")
    with serving(teacher) as url:
        limits = {"retries": 1, "concurrency": 1}
        await ran(config_of(tmp_path, url, questions, teacher=limits))
    gaps = [b - a for a, b in zip(teacher.times, teacher.times[1:], strict=False)]
    assert gaps[0] >= 1.0 and max(gaps[1:]) < 1.0


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (400, "refuses the request (400: Scripted)"),
        (401, "set the environment variable TEACHER_KEY"),
        (403, f"forbids the model {MODEL}"),
        (404, f"does not know the model {MODEL}"),
    ],
)
async def test_a_wrong_setting_ends_the_job_at_once(tmp_path: Path, status: int, says: str) -> None:
    questions = write_questions(tmp_path, ["how many"] * 9)
    teacher = Teacher(status=status)
    with serving(teacher) as url:
        settings = {"api_key_env": "TEACHER_KEY", "concurrency": 2}
        report = await ran(config_of(tmp_path, url, questions, teacher=settings))
    assert len(teacher.requests) <= 2
    assert report.stopped and says in report.stopped and not report.complete
    assert report.stopped.count("\n") == 0
    assert not outcomes(tmp_path)[1]


async def test_an_endpoint_that_is_down_ends_the_job_and_its_rows_are_asked_again(
    tmp_path: Path,
) -> None:
    questions = write_questions(tmp_path, ["how many"] * 30)
    teacher = Teacher(status=503)
    with serving(teacher) as url:
        settings = {"retries": 1, "concurrency": 2}
        config = config_of(tmp_path, url, questions, teacher=settings, give_up_after=5)
        report = await ran(config)
        assert report.stopped and "5 rows were refused one after another" in report.stopped
        assert report.refused["endpoint"] <= 6 and report.failed["503"] <= 14
        teacher.status = None
        report = await ran(config)
    assert report.complete and report.annotated == 30


async def test_a_call_that_was_sent_may_have_been_paid_for_and_one_that_was_not_cannot(
    tmp_path: Path,
) -> None:
    questions = write_questions(tmp_path, ["how many", "always half"])
    priced = {"price_in": 1.0, "price_out": 1.0, "retries": 1}
    with serving(Teacher(first_faults=["slow"])) as url:
        settings = {**priced, "timeout_s": 0.3, "concurrency": 1}
        report = await ran(config_of(tmp_path, url, questions, teacher=settings))
    assert (report.annotated, report.failed, report.unsure) == (2, {"timeout": 1}, 1)
    assert report.unsure_cost > 0
    # half of a surrogate pair in a reply is no reason to stop
    assert "I ? look" in (tmp_path / "out" / "annotations.jsonl").read_text()
    down = config_of(
        tmp_path / "down", "http://127.0.0.1:9/v1", questions, teacher=priced, give_up_after=2
    )
    report = await ran(down)
    assert report.stopped and report.failed == {"connection": 4}
    assert (report.unsure, report.unsure_cost) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"teacher": {"model": "another"}}, "model scripted-teacher, the recipe now has another"),
        ({"prompt": "cot_self_v1", "checker": {}}, "prompt cot version 1"),
    ],
)
async def test_a_folder_begun_with_other_settings_is_refused(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    questions = write_questions(tmp_path, ["how many"])
    with serving(Teacher()) as url:
        first = config_of(tmp_path, url, questions)
        await ran(first)
        if "checker" in changes:
            changes = changes | {"checker": first.teacher.model_dump()}
        with pytest.raises(ValueError, match=says):
            await ran(config_of(tmp_path, url, questions, **changes))
        questions.write_text(questions.read_text().replace("how many", "how much"))
        with pytest.raises(ValueError, match="begun with input"):
            await ran(first)
        with journals.Journal(first.output_dir, {}), pytest.raises(ValueError, match="Another"):
            await ran(first)


def write_captions(folder: Path, rows: int) -> Path:
    path = folder / "captions.jsonl"
    box = {"label": "cat", "bbox": [0.1, 0.2, 0.5, 0.9]}
    made = [
        {"id": f"c{n}", "image": f"coco/{n}.jpg", "captions": [f"Cat {n}."], "boxes": [box]}
        for n in range(rows)
    ]
    made.append({"id": "bad", "image": "x.jpg", "captions": ["A."], "boxes": [{"label": "cat"}]})
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@pytest.mark.parametrize(("kind", "turns"), [("conversation", 2), ("detail", 1), ("complex", 1)])
async def test_llava_kinds_are_written_in_the_instruction_form(
    tmp_path: Path, kind: str, turns: int
) -> None:
    teacher = Teacher(fault_share=0.1)
    captions = write_captions(tmp_path, 6)
    with serving(teacher) as url:
        config = AnnotateConfig.model_validate(
            {
                "output_dir": tmp_path / "out",
                "kind": kind,
                "captions": captions,
                "teacher": {"base_url": url, "model": MODEL, "retry_wait_s": 0.01},
            }
        )
        report = await ran(config)
    rows = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [row["id"] for row in rows] == [f"c{n}" for n in range(6)]
    assert rows[1]["image"] == "coco/1.jpg"
    for row in rows:
        values = [turn["value"] for turn in row["conversations"]]
        assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"] * turns
        assert values[0].startswith("<image>\n") and "".join(values).count("<image>") == 1
    (refused,) = lines(tmp_path / "out" / "refused.jsonl")
    assert refused["fault"] == "malformed row" and "boxes.0.bbox" in refused["reason"]
    assert report.requests == len(teacher.requests)
    shown = str(teacher.requests[0]["messages"][-1]["content"])
    assert "cat: [0.100, 0.200, 0.500, 0.900]" in shown
