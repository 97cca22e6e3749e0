"""The engines that the scale benchmark serves cost what they say, and the rest adds up."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from jobs.benchmarks.scale import COSTS, compared, read_spent, slowed, spent_since
from jobs.benchmarks.scale_engines import FixedCostGenerator, FixedCostJudge, Spent
from stagebeam.capacity.costs import Costs, load_costs
from stagebeam.inference.types import (
    Candidate,
    GenerateRequest,
    JudgeRequest,
    Prompt,
    Sampling,
    Usage,
)
from stagebeam.records import Message
from stagebeam.stages import Stage

PROMPT = Prompt((Message("user", "What is 3 plus 4?"),))


def quick(rows: int = 8) -> Costs:
    """Passes of 5 ms, all candidates of a stage equally long."""
    found = load_costs(COSTS)
    engine = {"pass_s": 0.005, "row_s": 0.0, "max_rows": rows, "prompt_token_s": 0.0}
    judge = {"round_s": 0.02, "order_s": 0.0, "prompt_token_s": 0.0}
    return found.model_copy(
        update={
            "generator": found.generator.model_copy(update=engine),
            "judge": found.judge.model_copy(update=judge),
            "question": found.question.model_copy(update={"spread": 0.0}),
        }
    )


def request(seeds: tuple[int, ...], stage: Stage = Stage.SUMMARY) -> GenerateRequest:
    return GenerateRequest(PROMPT, "", (stage.close_tag,), seeds, Sampling())


async def proposed(engine: FixedCostGenerator, seeds: tuple[int, ...]) -> list[Candidate | Usage]:
    return [item async for item in engine.propose(request(seeds))]


async def test_calls_share_passes_while_their_rows_fit_and_wait_where_they_do_not(
    tmp_path: Path,
) -> None:
    for rows, passes in ((8, 6), (4, 12)):  # six tokens a candidate
        engine = FixedCostGenerator(quick(rows), tmp_path)
        answers = await asyncio.gather(proposed(engine, (1, 2, 3, 4)), proposed(engine, (5, 6)))
        assert [len(answer) for answer in answers] == [5, 3]
        while not list(tmp_path.glob("*.json")):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
        (spent,) = read_spent(tmp_path)
        assert spent.passes == passes
        assert spent.pass_s >= spent.due_s * 0.99
        for path in tmp_path.glob("*.json"):
            path.unlink()


async def test_candidates_are_whole_distinct_and_the_same_every_time(tmp_path: Path) -> None:
    engine = FixedCostGenerator(quick(), tmp_path)
    first, again = [await proposed(engine, (1, 2)) for _ in range(2)]
    assert first == again
    *candidates, usage = first
    assert isinstance(usage, Usage)
    assert usage.decode_tokens == 12
    texts = {c.text for c in candidates if isinstance(c, Candidate)}
    assert len(texts) == 2
    assert all(text.endswith(Stage.SUMMARY.close_tag) for text in texts)


async def test_who_leaves_takes_the_rows_along(tmp_path: Path) -> None:
    engine = FixedCostGenerator(quick(2), tmp_path)
    left = asyncio.create_task(proposed(engine, (1, 2)))
    await asyncio.sleep(0.008)
    left.cancel()
    began = time.perf_counter()
    await proposed(engine, (3, 4))
    assert time.perf_counter() - began < 2 * 6 * 0.005


async def test_a_judges_rounds_come_one_after_another() -> None:
    judge = FixedCostJudge(quick())
    asked = JudgeRequest(PROMPT, Stage.SUMMARY, "", ("b", "a"), ((0, 1), (1, 0)))
    began = time.perf_counter()
    first, _ = await asyncio.gather(judge.compare(asked), judge.compare(asked))
    assert time.perf_counter() - began >= 0.04
    assert [verdict.margin for verdict in first.verdicts] == [1.0, -1.0]


def test_errors_are_of_what_was_predicted() -> None:
    assert compared(2.0, 1.5).error == -0.25


def test_what_a_run_saw_is_told_from_what_was_before(tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text('{"questions": 5, "passes": 9, "pass_s": 2, "due_s": 2}')
    before = read_spent(tmp_path)
    (tmp_path / "1.json").write_text('{"questions": 8, "passes": 12, "pass_s": 5, "due_s": 4}')
    (tmp_path / "2.json").write_text('{"questions": 1, "passes": 1, "pass_s": 1, "due_s": 1}')
    assert spent_since(tmp_path, before) == (4 / 3, [0.75, 0.25])
    assert before == [Spent(5, 9, 2, 2)]


def test_slower_passes_are_slower_by_as_much() -> None:
    engine = slowed(quick(), 2.0).generator
    assert (engine.pass_s, engine.max_rows) == (0.01, 8)
