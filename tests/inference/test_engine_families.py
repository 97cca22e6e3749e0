"""Every family on the engine: the texts of `generate`, alone and in a crowd, and weighed alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from asking import MakeEngine, answers, prompt_of, request, together

from stagebeam.inference.reading import Span
from stagebeam.inference.types import Prompt
from stagebeam.models.encoder import IGNORE, EncodedRow
from stagebeam.models.family import on_device
from stagebeam.models.load import Loaded
from stagebeam.records import Example, Message

TOKENS = 16
CLOSE = 1e-3


@pytest.fixture(scope="module")
def questions(scenes: list[Example]) -> list[Example]:
    """With one image, with none, with two; of different lengths."""
    seeing = [e for e in scenes if e.images]
    blind = [e for e in scenes if not e.images]
    two = Example("two", (*seeing[3].images, *seeing[4].images), seeing[3].messages, "test")
    return [seeing[0], blind[0], two, seeing[1], blind[1]]


def alone(loaded: Loaded, example: Example) -> EncodedRow:
    prompt = prompt_of(example)
    images = tuple(loaded.encoder.image(image) for image in prompt.images)
    ids = loaded.encoder.prompt_ids(prompt.messages, images)
    return EncodedRow(ids, [IGNORE] * len(ids), images)


def generated(loaded: Loaded, example: Example) -> list[int]:
    """Greedy tokens of transformers' own `generate`."""
    return greedy_ids(loaded, alone(loaded, example))


def greedy_ids(loaded: Loaded, row: EncodedRow) -> list[int]:
    batch = on_device(loaded.encoder.collate([row], left=True), loaded.model.device)
    with torch.no_grad():
        inputs = loaded.family.generation(loaded.model, batch, loaded.encoder.normalisation)
        out = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)
    (ids,) = out.tolist()
    return ids[len(row.input_ids) :] if "input_ids" in inputs else ids


async def test_greedy_equals_generate_token_for_token(
    built: Loaded,
    questions: list[Example],
    make_engine: MakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = [request(e, max_new_tokens=TOKENS) for e in questions]
    found = await together(make_engine(built), asked, monkeypatch)
    texts = set()
    for example, ((candidate,), _) in zip(questions, found, strict=True):
        ids = generated(built, example)
        assert candidate.tokens == len(ids)
        tokenizer: Any = built.encoder.tokenizer
        assert candidate.text == tokenizer.decode(ids, skip_special_tokens=True)
        texts.add(candidate.text)
    assert len(texts) > len(questions) / 2  # or else equal texts would say little


async def test_images_in_later_turns_are_seen_where_they_stand(
    built: Loaded, questions: list[Example], make_engine: MakeEngine
) -> None:
    """Token for token as `generate` has it; the place of an image changes the answer."""
    two = questions[2]
    turns = (*two.messages[:1], Message("assistant", "red"), Message("user", "red ?"))
    images = tuple(image.bytes for image in two.images)
    engine, texts = make_engine(built), set()
    for places in ((), (0, 2), (2, 2)):
        prompt = Prompt(turns, images, places)
        arrays = tuple(built.encoder.image(image) for image in images)
        ids = built.encoder.prompt_ids(turns, arrays, places)
        row = EncodedRow(ids, [IGNORE] * len(ids), arrays)
        asked = replace(request(two, max_new_tokens=TOKENS), prompt=prompt)
        (candidate,), _ = await answers(engine, asked)
        tokenizer: Any = built.encoder.tokenizer
        expected = tokenizer.decode(greedy_ids(built, row), skip_special_tokens=True)
        assert candidate.text == expected, places
        texts.add(candidate.text)
    assert len(texts) > 1


async def test_a_candidate_is_the_same_alone_and_among_strangers(
    built: Loaded,
    questions: list[Example],
    make_engine: MakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = [
        request(e, seeds=(n, 10 + n), temperature=1.0, max_new_tokens=8 + 3 * n)
        for n, e in enumerate(questions)
    ]
    engine = make_engine(built)
    each = [(await answers(engine, one))[0] for one in asked]
    crowd = await together(make_engine(built), asked, monkeypatch)
    for found, (among, _) in zip(each, crowd, strict=True):
        assert [c.text for c in found] == [c.text for c in among]
        assert [c.logprob for c in found] == pytest.approx([c.logprob for c in among], abs=CLOSE)


async def test_going_on_from_a_prefix_encodes_no_image_and_writes_what_a_fresh_engine_writes(
    built: Loaded, questions: list[Example], make_engine: MakeEngine
) -> None:
    engine = make_engine(built)
    for example in questions[:3]:
        await answers(engine, request(example))
        further = request(example, prefix="<SUMMARY> red </SUMMARY>")
        (candidate,), usage = await answers(engine, further)
        assert (usage.image_encodes, usage.cache_hits) == (0, 1)
        assert usage.prefill_tokens == len(built.encoder.ids(further.prefix))
        (fresh,), cost = await answers(make_engine(built), further)
        assert cost.image_encodes == len(example.images)
        assert candidate.text == fresh.text


async def test_rows_that_are_weighed_together_weigh_what_they_weigh_alone(
    built: Loaded, questions: list[Example], make_engine: MakeEngine
) -> None:
    engine = make_engine(built)
    for example in questions[:3]:
        look = engine.look(prompt_of(example))
        row = alone(built, example)
        tails = [built.encoder.ids(text) for text in ("red red circle", "red square", "red red 2")]
        spans = [Span(row.input_ids + tail, len(row.input_ids)) for tail in tails]
        options = tuple(tails[1])
        weights = await engine.weigh(look, spans, options)
        for tail, logprob, odds in zip(tails, weights.logprobs, weights.options, strict=True):
            logits = logits_of(built, row, tail)  # [1 + tail, V]
            told = logits.log_softmax(-1)[:-1].gather(-1, torch.tensor(tail)[:, None])
            assert logprob == pytest.approx(float(told.sum()), abs=CLOSE)
            assert odds == pytest.approx(logits[-1, list(options)].tolist(), abs=CLOSE)


def logits_of(loaded: Loaded, row: EncodedRow, tail: list[int]) -> torch.Tensor:
    """From the row's last token on."""
    whole = EncodedRow(
        row.input_ids + tail, [IGNORE] * (len(row.input_ids) + len(tail)), row.images
    )
    batch = on_device(loaded.encoder.collate([whole]), loaded.model.device)
    with torch.no_grad():
        logits = loaded.family.forward(loaded.model, batch, loaded.encoder.normalisation)
    return logits[0, len(row.input_ids) - 1 :]
