"""One call's fault is its own: bad input, a caller that leaves, a model that fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from asking import PATIENCE, MakeEngine, answers, request

from stagebeam.inference import transformers_engine
from stagebeam.inference.decoding import Call
from stagebeam.inference.transformers_engine import TransformersEngine
from stagebeam.models.encoder import EncodedRow
from stagebeam.models.family import on_device
from stagebeam.models.load import Loaded
from stagebeam.records import Example, Image, Message

FOREVER = 1_000_000  # tokens
CPU = torch.device("cpu")


def broken(example: Example) -> Example:
    return replace(example, images=(Image(b"not an image"),))


async def test_a_broken_image_fails_its_own_caller_alone(
    loaded: Loaded, scenes: list[Example], make_engine: MakeEngine
) -> None:
    engine = make_engine(loaded)
    good = request(scenes[0])
    (expected,), _ = await answers(make_engine(loaded), good)
    async with asyncio.TaskGroup() as calls:
        one = calls.create_task(answers(engine, good))
        with pytest.raises(ValueError, match="image"):
            await answers(engine, request(broken(scenes[0])))
        two = calls.create_task(answers(engine, good))
    for (candidate,), _ in (one.result(), two.result()):
        assert candidate.text == expected.text


@pytest.mark.parametrize("marker", ["<|eot_id|>", "<|start_header_id|>", "<|image|>"])
async def test_chat_markers_in_a_question_and_in_an_answer_are_words(
    loaded: Loaded, scenes: list[Example], make_engine: MakeEngine, marker: str
) -> None:
    """The answer is that of `generate` after ids in which the marker steers nothing."""
    marked = replace(scenes[0], messages=(Message("user", f"Say {marker} now"),))
    prefix = f"red {marker} blue"
    (candidate,), _ = await answers(make_engine(loaded), request(marked, prefix=prefix))
    encoder, tokenizer = loaded.encoder, loaded.encoder.tokenizer
    images = [encoder.image(image.bytes) for image in marked.images]
    ids = encoder.prompt_ids(marked.messages, images) + encoder.text_ids(prefix)
    plain = encoder.prompt_ids((Message("user", "Say now"),), images)
    control = tokenizer.convert_tokens_to_ids(marker)
    assert ids.count(control) == plain.count(control)
    batch = on_device(encoder.collate([EncodedRow(ids, ids, tuple(images))], left=True), CPU)
    inputs = loaded.family.generation(loaded.model, batch, encoder.normalisation)
    out = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=24)[0, len(ids) :]
    assert candidate.text == tokenizer.decode(out, skip_special_tokens=True)


async def test_a_conversation_longer_than_the_model_reads_is_refused(
    loaded: Loaded, scenes: list[Example], make_engine: MakeEngine
) -> None:
    long = replace(scenes[0], messages=(Message("user", "red " * 1_100),))
    with pytest.raises(ValueError, match=r"^The conversation has 1\d+ tokens, images included"):
        await answers(make_engine(loaded), request(long))


async def endless(loaded: Loaded, scenes: list[Example], make_engine: MakeEngine) -> Example:
    """A question whose greedy answer does not end by itself soon."""
    for example in scenes[:20]:
        (candidate,), _ = await answers(make_engine(loaded), request(example, max_new_tokens=100))
        if candidate.finish == "length":
            return example
    raise AssertionError("every answer ended")


@pytest.mark.parametrize("while_waiting", [False, True])
async def test_a_caller_that_leaves_frees_its_rows(
    loaded: Loaded, scenes: list[Example], make_engine: MakeEngine, while_waiting: bool
) -> None:
    question = await endless(loaded, scenes, make_engine)
    engine = make_engine(loaded, max_rows=2)
    holding = asyncio.ensure_future(
        answers(engine, request(question, seeds=(0, 1), max_new_tokens=FOREVER))
    )
    await until(lambda: len(engine._batch.rows) == 2)
    if while_waiting:  # one more in the queue behind it, which leaves first
        queued = asyncio.ensure_future(
            answers(engine, request(question, seeds=(2, 3), max_new_tokens=FOREVER))
        )
        await until(lambda: bool(engine._waiting))
        queued.cancel()
    waiting = asyncio.ensure_future(answers(engine, request(scenes[0], seeds=(0,))))
    await asyncio.sleep(0.1)
    assert not waiting.done()  # both rows are taken
    holding.cancel()
    (candidate,), _ = await asyncio.wait_for(waiting, PATIENCE)
    assert candidate.text
    await until(lambda: not engine._batch.rows)


async def test_closing_the_iterator_is_leaving(
    loaded: Loaded, scenes: list[Example], make_engine: MakeEngine
) -> None:
    engine = make_engine(loaded)
    question = await endless(loaded, scenes, make_engine)
    asked = request(question, seeds=(0, 1, 2, 3), max_new_tokens=FOREVER)
    items = engine.propose(asked)
    first = asyncio.ensure_future(anext(items))
    await until(lambda: bool(engine._batch.rows))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await items.aclose()
    await until(lambda: not engine._batch.rows)
    assert (await answers(engine, request(scenes[0])))[0]


async def test_a_call_that_cannot_join_fails_alone(
    loaded: Loaded, scenes: list[Example], make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where memory runs out while its rows are laid beside the others."""
    engine = make_engine(loaded)
    (expected,), _ = await answers(make_engine(loaded), request(scenes[0]))
    join = engine._batch.join

    def failing(call: Call, *rest: Any) -> None:
        join(call, *rest)
        if call.live == 3:
            raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(engine._batch, "join", failing)
    async with asyncio.TaskGroup() as calls:
        good = calls.create_task(answers(engine, request(scenes[0])))
        with pytest.raises(torch.OutOfMemoryError):
            await answers(engine, request(scenes[1], seeds=(0, 1, 2)))
    assert good.result()[0][0].text == expected.text


async def test_a_failed_pass_reaches_everyone_in_it_and_the_engine_goes_on(
    loaded: Loaded, scenes: list[Example], make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: TransformersEngine = make_engine(loaded)

    def failing(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(engine._batch, "step", failing)
        results = await asyncio.gather(
            *(answers(engine, request(e)) for e in scenes[:3]), return_exceptions=True
        )
    assert all(isinstance(result, torch.OutOfMemoryError) for result in results)
    (candidate,), _ = await answers(engine, request(scenes[0]))
    (expected,), _ = await answers(make_engine(loaded), request(scenes[0]))
    assert candidate.text == expected.text


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


async def test_an_engine_that_works_is_healthy_and_one_that_hangs_or_ended_is_not(
    loaded: Loaded,
    scenes: list[Example],
    make_engine: MakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = make_engine(loaded)
    await engine.check()
    await answers(engine, request(scenes[0]))
    held, let_go = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        held.set()
        let_go.wait(PATIENCE)

    monkeypatch.setattr(engine._batch, "step", hang)
    monkeypatch.setattr(transformers_engine, "STUCK_S", 0.05)
    asking = asyncio.create_task(answers(engine, request(scenes[0])))
    await asyncio.to_thread(held.wait, PATIENCE)
    await asyncio.sleep(0.1)
    with pytest.raises(RuntimeError, match="in one step"):
        await engine.check()
    monkeypatch.undo()
    let_go.set()
    await asking
    await asyncio.sleep(0.1)
    await engine.check()  # idle for longer than any step
    engine.close()
    with pytest.raises(RuntimeError, match="has ended"):
        await engine.check()
