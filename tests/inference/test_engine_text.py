"""What the engine writes: the model's own text, whoever else is being answered."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from asking import (
    MakeEngine,
    answers,
    arrivals,
    hold_until_all_came,
    prompt_of,
    request,
    rows_of_each_pass,
    together,
)
from PIL import Image as PilImage

from stagebeam.inference.transformers_engine import TransformersEngine
from stagebeam.inference.types import Candidate
from stagebeam.models.load import Loaded
from stagebeam.records import Example, Image
from stagebeam.stages import STAGES

TOKENS = 24


def varied(scenes: list[Example]) -> list[Example]:
    """Questions of different lengths, the third and last without an image."""
    seeing = [e for e in scenes if e.images]
    blind = [e for e in scenes if not e.images]
    picked = [seeing[0], seeing[1], blind[0], seeing[2], blind[1]]
    assert len({len(e.messages[0].text) for e in picked}) > 3
    return picked


def generate(loaded: Loaded, example: Example) -> tuple[list[int], float]:
    """Greedy tokens of stock transformers, and their summed log-probability."""
    prompt = prompt_of(example)
    inputs = loaded.encoder.processor(
        text=loaded.encoder.render(prompt.messages, len(prompt.images), answer_next=True),
        images=[PilImage.open(io.BytesIO(image)) for image in prompt.images] or None,
        add_special_tokens=False,
        return_tensors="pt",
    )
    model: Any = loaded.model
    out = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=TOKENS,
        return_dict_in_generate=True,
        output_logits=True,
    )
    ids = out.sequences[0, inputs["input_ids"].shape[1] :]
    logprobs = torch.cat(out.logits).log_softmax(-1)  # [T, V]
    return ids.tolist(), float(logprobs.gather(-1, ids[:, None]).sum())


async def test_greedy_equals_generate_token_for_token(
    loaded: Loaded, scenes: list[Example], make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(loaded)
    examples = varied(scenes)
    asked = [request(e, max_new_tokens=TOKENS) for e in examples]
    texts = set()
    found = await together(engine, asked, monkeypatch)
    for example, ((candidate,), _) in zip(examples, found, strict=True):
        ids, logprob = generate(loaded, example)
        ended = ids[-1] == loaded.encoder.tokenizer.eos_token_id
        written = ids[:-1] if ended else ids
        decoded = loaded.encoder.tokenizer.decode(written, skip_special_tokens=True)
        assert candidate.text == decoded
        assert (candidate.tokens, candidate.finish) == (len(ids), "end" if ended else "length")
        assert candidate.logprob == pytest.approx(logprob, abs=1e-3)
        texts.add(candidate.text)
    assert len(texts) == len(examples)  # or else equal texts would say little


async def test_a_candidate_is_the_same_alone_and_among_strangers(
    loaded: Loaded, scenes: list[Example], make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [
        request(e, seeds=(n, 10 + n), temperature=1.0, top_p=0.95, max_new_tokens=12 + 3 * n)
        for n, e in enumerate(varied(scenes))
    ]
    engine = make_engine(loaded)
    alone = [await answers(engine, asked) for asked in requests]
    crowded = make_engine(loaded)
    rows = rows_of_each_pass(crowded, monkeypatch)
    crowd = await together(crowded, requests, monkeypatch)
    assert max(rows) == 2 * len(requests)
    for (one, _), (many, _) in zip(alone, crowd, strict=True):
        assert [c.text for c in one] == [c.text for c in many]
        assert [c.logprob for c in one] == pytest.approx([c.logprob for c in many], abs=1e-3)


async def test_32_candidates_write_alone_what_they_write_together(
    taught: Loaded,
    known: list[Example],
    make_engine: MakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = [
        request(known[n % len(known)], seeds=(300 + n,), temperature=1.5, max_new_tokens=40)
        for n in range(32)
    ]
    engine = make_engine(taught)
    alone = [(await answers(engine, asked))[0][0].text for asked in requests]
    crowded = make_engine(taught)
    rows = rows_of_each_pass(crowded, monkeypatch)
    crowd = await together(crowded, requests, monkeypatch)
    assert max(rows) == 32 and len(set(alone)) > 16
    assert [found[0].text for found, _ in crowd] == alone


async def test_what_is_not_done_in_time_is_cut(
    loaded: Loaded, scenes: list[Example], make_engine: MakeEngine
) -> None:
    engine, found = make_engine(loaded), []
    for example in scenes[:10]:
        asked = replace(request(example, max_new_tokens=1_000_000), seconds=0.3)
        (candidate,), usage = await answers(engine, asked)
        assert usage.decode_tokens == candidate.tokens
        found.append(candidate)
    cut = [candidate for candidate in found if candidate.finish == "length"]
    assert cut and all(2 < candidate.tokens < 10_000 and candidate.text for candidate in cut)


async def test_the_first_of_several_stops_ends_a_candidate(
    taught: Loaded, known: list[Example], make_engine: MakeEngine
) -> None:
    engine = make_engine(taught)
    asked = request(known[0], stop="</CAPTION>", max_new_tokens=200)
    (candidate,), _ = await answers(engine, replace(asked, stops=("</CAPTION>", "</SUMMARY>")))
    assert candidate.finish == "stop" and candidate.text.endswith("</SUMMARY>")


async def test_questions_with_different_numbers_of_images_do_not_disturb_each_other(
    loaded: Loaded, scenes: list[Example], make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, blind, *_ = varied(scenes)
    two = Example("two", (*first.images, *second.images), first.messages, "test")
    requests = [request(e) for e in (first, two, blind)]
    engine = make_engine(loaded)
    alone = [(await answers(engine, asked))[0] for asked in requests]
    crowded = make_engine(loaded)
    crowd = [found for found, _ in await together(crowded, requests, monkeypatch)]
    assert [c[0].text for c in alone] == [c[0].text for c in crowd]


async def by_stages(engine: TransformersEngine, example: Example) -> Candidate:
    """The greedy answer, each stage a call of its own, as one candidate."""
    text, tokens, logprob = "", 0, 0.0
    for stage in STAGES:
        asked = request(example, prefix=text, stop=stage.close_tag, max_new_tokens=200)
        (part,), usage = await answers(engine, asked)
        assert part.finish == "stop" and part.text.endswith(stage.close_tag)
        assert usage.cache_hits == bool(text)
        text, tokens = text + part.text, tokens + part.tokens
        logprob += part.logprob
    return Candidate(0, text, tokens, logprob, "stop")


async def test_stage_by_stage_is_the_unbroken_answer(
    taught: Loaded,
    known: list[Example],
    make_engine: MakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For all questions at once too: the kept rows then come out of padded batches."""
    unbroken = make_engine(taught)
    asked = [request(e, stop="</CONCLUSION>", max_new_tokens=200) for e in known]
    whole = [(await answers(unbroken, r))[0][0] for r in asked]
    assert [c.text for c in whole] == [e.messages[-1].text.replace(" <", "<") for e in known]
    alone, crowded = make_engine(taught), make_engine(taught)
    hold_until_all_came(crowded, len(known), monkeypatch)
    crowd = await asyncio.gather(*(by_stages(crowded, e) for e in known))
    for example, one, among, expected in zip(
        known, [await by_stages(alone, e) for e in known], crowd, whole, strict=True
    ):
        for found in (one, among):
            assert (found.text, found.tokens) == (expected.text, expected.tokens), example.id
            assert found.logprob == pytest.approx(expected.logprob, abs=1e-3)


async def test_equal_seeds_give_equal_texts_and_others_other_texts(
    loaded: Loaded, scenes: list[Example], make_engine: MakeEngine
) -> None:
    asked = request(scenes[0], seeds=(7, 8, 7, 9), temperature=1.0)
    engine = make_engine(loaded)
    first, _ = await answers(engine, asked)
    texts = [c.text for c in first]
    assert texts[0] == texts[2] and len(set(texts)) == 3
    for other in (engine, make_engine(loaded, kv_bytes=0)):  # with and without kept rows
        again, _ = await answers(other, asked)
        assert [c.text for c in again] == texts


async def test_the_text_says_how_it_finished(
    taught: Loaded, known: list[Example], make_engine: MakeEngine
) -> None:
    engine = make_engine(taught)

    async def one(**settings: Any) -> Candidate:
        (candidate,), _ = await answers(engine, request(known[0], **settings))
        return candidate

    cut = await one(max_new_tokens=5)
    assert (cut.finish, cut.tokens) == ("length", 5)
    stopped = await one(stop="</SUMMARY>", max_new_tokens=200)
    assert stopped.finish == "stop" and stopped.text.endswith("</SUMMARY>")
    assert stopped.text.startswith(cut.text)
    ended = await one(max_new_tokens=200)
    assert ended.finish == "end" and ended.text.endswith("</CONCLUSION>")
    assert ended.tokens == len(taught.encoder.ids(ended.text)) + 1  # the end token was sampled too


async def test_a_chat_marker_that_the_model_samples_is_no_part_of_the_text(
    loaded: Loaded, scenes: list[Example], make_engine: MakeEngine
) -> None:
    """An untrained model samples some; as text they would open turns in a later prompt."""
    asked = request(scenes[0], seeds=tuple(range(32)), temperature=2.0)
    candidates, _ = await answers(make_engine(loaded), asked)
    assert not any("<|" in candidate.text for candidate in candidates)


async def test_candidates_come_as_they_finish(
    taught: Loaded, known: list[Example], make_engine: MakeEngine
) -> None:
    asked = request(
        known[0], stop="</SUMMARY>", seeds=tuple(range(8)), temperature=3.0, max_new_tokens=60
    )
    came, _ = await arrivals(make_engine(taught), asked)
    lengths = [c.tokens for c in came]
    assert lengths == sorted(lengths) and len(set(lengths)) > 2


async def test_a_picture_decides_the_text(
    loaded: Loaded, scenes: list[Example], make_engine: MakeEngine
) -> None:
    """Or else equal texts would say nothing about images."""
    first, second = [e for e in scenes if e.images][:2]
    swapped = Example("x", (Image(second.images[0].bytes),), first.messages, "test")
    engine = make_engine(loaded)
    (a,), _ = await answers(engine, request(first))
    (b,), _ = await answers(engine, request(swapped))
    assert a.text != b.text
