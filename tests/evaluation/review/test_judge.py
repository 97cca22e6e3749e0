"""Calls to a judge: kept, replayed, failed; and every answer of a method reviewed through it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scripted_grader import MODEL, Grader, grading, review_config
from scripted_server import MODEL_NAME, WorldSearcher, http_world
from scripted_world import World

from stagebeam.evaluation.answers import AnswerRow
from stagebeam.evaluation.benchmarks import BENCHMARKS
from stagebeam.evaluation.benchmarks.benchmark import Row
from stagebeam.evaluation.review.grading import grade
from stagebeam.evaluation.review.judge import Reply, Review, reviewing
from stagebeam.evaluation.review.reviewing import counts, review_answers
from stagebeam.evaluation.scorers.conclusion import Mode, Outcome
from stagebeam.inference.types import Candidate, GenerateRequest, Usage
from stagebeam.recipe import ReviewConfig
from stagebeam.stages import STAGES, Stage, render

MMVET = BENCHMARKS["MMVet"]


def rows_of(count: int) -> dict[str, Row]:
    cells = {"question": "What is it?", "category": "rec"}
    return {str(n): Row(str(n), {**cells, "answer": f"dog {n}"}) for n in range(count)}


def answer(index: str, failed: bool = False) -> AnswerRow:
    return AnswerRow(
        method="greedy", n=1, id=index, question="q", trace_id=None if failed else f"t{index}",
        correct=False, conclusion=None, gold="", category=None, seconds=0.1, usage=None,
        error="gone" if failed else None,
    )  # fmt: skip


async def review(
    config: ReviewConfig, path: Path, rows: dict[str, Row], mode: Mode = "compat"
) -> list[Review]:
    """Of answers that repeat the gold one."""
    texts = {f"t{index}": row.cells["answer"] for index, row in rows.items()}
    async with reviewing(config, path) as judge:
        return await review_answers(MMVET, rows, [*map(answer, rows)], texts, mode, judge)


async def test_a_second_run_asks_nothing_wherever_the_server_is(tmp_path: Path) -> None:
    grader, rows, path = Grader(lambda prompt: "0.5"), rows_of(9), tmp_path / "replies.jsonl"
    with grading(grader) as url:
        first = await review(review_config(url, concurrency=2), path, rows)
    assert len(grader.requests) == 9 and grader.most_running <= 2
    with grading(grader) as url:
        assert await review(review_config(url), path, rows) == first
    assert len(grader.requests) == 9 and [r.outcome.score for r in first] == [0.5] * 9
    kept = json.loads(path.read_text().splitlines()[0])
    assert (kept["model"], kept["prompt"], kept["text"]) == (MODEL, "mmvet-1", "0.5")


@pytest.mark.parametrize(
    "changed",
    [{"model": "other"}, {"temperature": 0.2}, {"max_tokens": 7}, {"extra": {"top_k": 1}}],
)
async def test_whatever_shapes_a_reply_has_it_asked_anew(
    changed: dict[str, Any], tmp_path: Path
) -> None:
    grader, path = Grader(lambda prompt: "0.5"), tmp_path / "replies.jsonl"
    with grading(grader) as url:
        await review(review_config(url), path, rows_of(1))
        await review(review_config(url, **changed), path, rows_of(1))
        assert len(grader.requests) == 2
        assert grader.requests[1].items() >= changed.get("extra", changed).items()
        other = {"0": Row("0", {"question": "Why?", "answer": "dog 0", "category": "rec"})}
        await review(review_config(url), path, other)
    assert len(grader.requests) == 3


async def test_the_version_of_the_prompt_and_the_key_reach_where_they_belong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_JUDGE", "sk-1")
    grader = Grader(lambda prompt: "0.5")
    with grading(grader) as url:
        config = review_config(
            url, api_key_env="MY_JUDGE", max_tokens_field="max_completion_tokens", max_tokens=9
        )
        async with reviewing(config, tmp_path / "replies.jsonl") as judge:
            assert await judge.ask("Grade!", "one") == Reply("0.5")
            assert await judge.ask("Grade!", "one") == Reply("0.5")
            assert await judge.ask("Grade!", "two") == Reply("0.5")
    assert len(grader.requests) == 2 and grader.keys == ["Bearer sk-1"] * 2
    assert grader.requests[0]["max_completion_tokens"] == 9
    assert "sk-1" not in (tmp_path / "replies.jsonl").read_text()


async def test_a_failed_call_is_counted_and_asked_again_the_next_time(tmp_path: Path) -> None:
    broken: set[str] = {"dog 1", "dog 2"}

    def says(prompt: str) -> str | int:
        statuses = {"dog 1": 500, "dog 2": 400}
        return next((statuses[b] for b in broken if f"{b}\nGrade" in prompt), "0.5")

    grader, path = Grader(says), tmp_path / "replies.jsonl"
    with grading(grader) as url:
        first = await review(review_config(url), path, rows_of(4), "strict")
        assert len(grader.requests) == 5  # the 500 was tried twice
        told = counts(first)
        assert (told["calls"], told["unread"], told["failed"]) == (4, 0, 2)
        assert sorted(told["failures"].values()) == [1, 1]
        assert any("failed 2 times, the last time with: 500" in why for why in told["failures"])
        assert [r.outcome for r in first[1:3]] == [Outcome(None, 0.0)] * 2
        broken.clear()
        second = await review(review_config(url), path, rows_of(4), "strict")
    assert len(grader.requests) == 7 and counts(second)["failed"] == 0
    assert [r.outcome.score for r in second] == [0.5] * 4


async def test_a_judge_that_fails_every_call_ends_the_review(tmp_path: Path) -> None:
    reason = r"No answer to MMVet could be reviewed: .* refuses the key"
    with grading(Grader(lambda prompt: 401)) as url, pytest.raises(ValueError, match=reason):
        await review(review_config(url), tmp_path / "replies.jsonl", rows_of(2))


async def test_an_answer_that_failed_is_reviewed_as_nothing_said(tmp_path: Path) -> None:
    grader = Grader(lambda prompt: "0.5")
    with grading(grader) as url:
        async with reviewing(review_config(url), tmp_path / "replies.jsonl") as judge:
            answers = [answer("0", failed=True)]
            made = await review_answers(MMVET, rows_of(1), answers, {}, "compat", judge)
    assert made == [Review(Outcome(None, 0.0))] and grader.requests == []


@pytest.mark.parametrize(
    "mode, text, judged",
    [
        ("compat", render(dict.fromkeys(STAGES, "a") | {Stage.CONCLUSION: "a cat"}), "a cat"),
        ("compat", "<SUMMARY> a </SUMMARY> cut", "<SUMMARY> a </SUMMARY> cut"),
        ("strict", render(dict.fromkeys(STAGES, "a") | {Stage.CONCLUSION: "a cat"}), "a cat"),
        ("strict", "no stages", "no stages"),
        ("strict", "<SUMMARY> a </SUMMARY> cut", None),
    ],
)
async def test_a_staged_answer_is_judged_by_its_conclusion(
    mode: Mode, text: str, judged: str | None, tmp_path: Path
) -> None:
    grader = Grader(lambda prompt: "0.5")
    with grading(grader) as url:
        async with reviewing(review_config(url), tmp_path / "replies.jsonl") as judge:
            await review_answers(MMVET, rows_of(1), [answer("0")], {"t0": text}, mode, judge)
    ends = [prompt.rsplit("\nAnswer: ", 1)[1] for prompt in grader.prompts]
    assert ends == ([] if judged is None else [f"{judged}\nGrade:"])


async def test_a_torn_last_line_is_dropped_and_a_damaged_one_named(tmp_path: Path) -> None:
    grader, path = Grader(lambda prompt: "0.5"), tmp_path / "replies.jsonl"
    with grading(grader) as url:
        await review(review_config(url), path, rows_of(3))
        whole = path.read_bytes()
        path.write_bytes(whole[:-5])
        await review(review_config(url), path, rows_of(3))
        assert len(grader.requests) == 4
        assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())
        path.write_bytes(whole.replace(b'"call"', b'"cal"', 1))
        with pytest.raises(ValueError, match=r"Line 1 of .*replies\.jsonl is no judge's reply"):
            await review(review_config(url), path, rows_of(3))


_ASKING = """
import asyncio, sys
from pathlib import Path
from stagebeam.evaluation.review.judge import reviewing
from stagebeam.inference.together import gathered
from stagebeam.recipe import ReviewConfig

async def ask():
    async with reviewing(ReviewConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2])) as judge:
        await gathered(judge.ask(f"Grade {number}.", "one") for number in range(60))

asyncio.run(ask())
"""


async def test_a_review_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    grader, path = Grader(lambda prompt: "0.5", pause_s=0.05), tmp_path / "replies.jsonl"
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with grading(grader) as url:
        config = review_config(url, concurrency=3)
        command = [sys.executable, "-c", _ASKING, config.model_dump_json(), str(path)]
        with subprocess.Popen(command, env=paths) as child:
            while len(grader.requests) < 12 and child.poll() is None:
                await asyncio.sleep(0.01)
            child.kill()
        kept = path.read_bytes().count(b"\n")
        assert 0 < kept < 60
        grader.pause_s, before = 0.0, len(grader.requests)
        async with reviewing(config, path) as judge:
            made = [await judge.ask(f"Grade {number}.", "one") for number in range(60)]
        assert len(grader.requests) - before == 60 - kept
    assert made == [Reply("0.5")] * 60
    calls = [json.loads(line)["call"] for line in path.read_text().splitlines()]
    assert len(calls) == len(set(calls)) == 60


@dataclass(frozen=True)
class StagedGrader:
    """A generator of this project that grades: its conclusion is the grade."""

    skill: float = 1.0

    async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
        said = dict.fromkeys(STAGES, "I compare the two.") | {Stage.CONCLUSION: "0.7"}
        for index, _ in enumerate(request.seeds):
            yield Candidate(index, render(said), 40, -1.0, "stop")
        yield Usage(1, 40, 40, 40)


async def test_an_endpoint_of_this_project_is_a_judge(tmp_path: Path) -> None:
    searcher = WorldSearcher(World(()), StagedGrader())  # type: ignore[arg-type]
    with http_world(searcher) as url:
        greedy = review_config(
            f"{url}/v1", model=MODEL_NAME, extra={"search": {"method": "greedy"}}
        )
        made = await review(greedy, tmp_path / "replies.jsonl", rows_of(2))
        # Without it temperature 0 contradicts the service's own N, which it says.
        plain = review_config(f"{url}/v1", model=MODEL_NAME)
        refused = await review(plain, tmp_path / "others.jsonl", rows_of(1), mode="strict")
    assert [r.outcome for r in made] == [Outcome("0.7", 0.7)] * 2
    assert {settings.method for _, settings in searcher.asked} == {"greedy"}
    (why,) = counts(refused)["failures"]
    assert "At temperature 0 all 4 candidates of stage_beam would be the same" in why


async def test_warmer_tries_stay_within_what_servers_take(tmp_path: Path) -> None:
    grader = Grader(lambda prompt: "hm")
    with grading(grader) as url:
        async with reviewing(review_config(url, temperature=1.5), tmp_path / "r.jsonl") as judge:
            await grade(rows_of(1)["0"], "a dog", "compat", judge)
    assert [request["temperature"] for request in grader.requests] == [1.5, 2]
