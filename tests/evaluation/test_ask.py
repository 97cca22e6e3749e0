"""Asking over real HTTP: the platform's own interface on a local port, scripted models behind."""

import dataclasses

import pytest
from openai import AsyncOpenAI
from scripted_server import MODEL_NAME, WorldSearcher, http_world
from scripted_world import SETTINGS, ScriptedGenerator, World, example

from stagebeam.evaluation import ask as asking
from stagebeam.evaluation.answers import AnswerStore
from stagebeam.evaluation.ask import EngineAsk, HttpAsk, run_method
from stagebeam.evaluation.question import prompt_of
from stagebeam.records import Message

EXAMPLES = tuple(example(number) for number in range(12))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(asking, "RETRY_WAIT_S", 0.01)


@pytest.fixture
def searcher():
    world = World(EXAMPLES)
    return WorldSearcher(world, ScriptedGenerator(world))


@pytest.fixture
async def client(searcher):
    with http_world(searcher) as url:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            yield client


async def run(client, store, method="stage_beam", n=2, examples=EXAMPLES, concurrency=4):
    ask = HttpAsk(client, MODEL_NAME, SETTINGS)
    return await run_method(ask, examples, method, n, store, concurrency=concurrency)


async def test_every_question_gets_a_scored_row_and_its_trace(client, searcher, tmp_path):
    store = AnswerStore(tmp_path)
    rows = await run(client, store)
    assert [row.id for row in rows] == [e.id for e in EXAMPLES]
    traces = store.traces()
    for row, asked in zip(rows, EXAMPLES, strict=True):
        trace = traces[row.trace_id]
        assert trace.method == "stage_beam" and trace.candidates == 2
        assert trace.messages[-1].text == asked.messages[0].text
        assert row.conclusion == trace.conclusion and row.gold == asked.answer
        assert row.usage == trace.usage and row.seconds > 0
    assert sum(row.correct for row in rows) > 0


async def test_the_question_arrives_as_the_model_was_trained_on_it(client, searcher, tmp_path):
    asked = EXAMPLES[0]
    follow_up = dataclasses.replace(
        asked,
        messages=(*asked.messages, Message("user", "Are you sure?"), Message("assistant", "!")),
    )
    searcher.world = World((follow_up,))
    searcher.generator = ScriptedGenerator(searcher.world)
    await run(client, AnswerStore(tmp_path), examples=(follow_up,))
    prompt, settings = searcher.asked[0]
    assert prompt == prompt_of(follow_up)
    assert [m.role for m in prompt.messages] == ["user", "assistant", "user"]
    assert prompt.images == (asked.images[0].bytes,)
    assert settings == dataclasses.replace(SETTINGS, method="stage_beam", candidates=2)


async def test_no_question_is_divided_as_its_cost_would_tell_how_many_replicas_idled(
    client, searcher, tmp_path
):
    await run(client, AnswerStore(tmp_path))
    assert len(searcher.asked) == len(EXAMPLES) and searcher.divisible == 0


async def test_finished_questions_are_not_asked_again_and_new_ones_are(client, searcher, tmp_path):
    first = await run(client, AnswerStore(tmp_path), examples=EXAMPLES[:5])
    searcher.asked.clear()
    rows = await run(client, AnswerStore(tmp_path))
    assert len(searcher.asked) == len(EXAMPLES) - 5
    assert rows[:5] == first
    await run(client, AnswerStore(tmp_path), method="majority")
    assert len(searcher.asked) == 2 * len(EXAMPLES) - 5


async def test_an_outage_is_retried_three_times(client, searcher, tmp_path):
    searcher.outages = 3
    rows = await run(client, AnswerStore(tmp_path))
    assert all(row.error is None for row in rows)
    assert len(searcher.asked) == 4 * len(EXAMPLES)


async def test_a_longer_outage_is_a_counted_failure_that_the_next_run_asks_again(
    client, searcher, tmp_path
):
    searcher.outages = 4
    rows = await run(client, AnswerStore(tmp_path))
    assert len(rows) == len(EXAMPLES)
    assert {row.error for row in rows} == {
        "InternalServerError: The server failed to answer; its log says why."
    }
    assert not any(row.correct for row in rows)
    assert all(row.error is None for row in await run(client, AnswerStore(tmp_path)))


async def test_a_refused_question_is_asked_once_and_says_why(client, searcher, tmp_path):
    refused = dataclasses.replace(
        EXAMPLES[0], id="bad", messages=(Message("user", "refused"), Message("assistant", "!"))
    )
    rows = await run(client, AnswerStore(tmp_path), examples=(refused, EXAMPLES[1]))
    assert rows[0].error == ("BadRequestError: A message contains a marker of the chat template.")
    assert rows[1].error is None
    assert len(searcher.asked) == 2


async def test_no_more_questions_are_in_flight_than_allowed(client, searcher, tmp_path):
    await run(client, AnswerStore(tmp_path), concurrency=2)
    assert searcher.most_running <= 2


async def test_the_oracle_sees_every_candidate_of_best_of_n(client, searcher, tmp_path):
    store = AnswerStore(tmp_path)
    best = await run(client, store, method="best_of_n", n=4)
    votes = await run(client, store, method="majority", n=4)
    assert all(row.oracle for row in best if row.correct)
    assert sum(row.oracle for row in best) >= sum(row.correct for row in best)
    assert [row.oracle for row in best] == [row.oracle for row in votes]  # the same samples


async def test_a_generator_in_this_process_is_asked_greedily_under_its_own_name(tmp_path):
    ask = EngineAsk(ScriptedGenerator(World(EXAMPLES)), "weights-1", SETTINGS)
    store = AnswerStore(tmp_path)
    rows = await run_method(ask, EXAMPLES, "judge_alone", 1, store, concurrency=4)
    assert {row.method for row in rows} == {"judge_alone"}
    assert all(row.error is None for row in rows)
    assert {(t.method, t.generator, t.temperature) for t in store.traces().values()} == {
        ("greedy", "weights-1", 0.0)
    }
