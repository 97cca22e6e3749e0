"""The default judges against the same numbers computed directly with stock transformers."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from asking import PATIENCE, prompt_of
from PIL import Image as PilImage

from stagebeam.inference.types import Judgement, JudgeRequest, Prompt
from stagebeam.inference.verdict import (
    OPTIONS,
    JudgeKind,
    TransformersJudge,
    option_ids,
    verdict_messages,
)
from stagebeam.models.families.mllama import MllamaEncoder
from stagebeam.models.load import Loaded
from stagebeam.models.tiny.build import build_tiny
from stagebeam.records import Example, Message
from stagebeam.stages import Stage

CLOSE = 1e-3
CANDIDATES = (
    "<SUMMARY> I will count the red shapes. </SUMMARY>",
    "<SUMMARY> I will find the circle. </SUMMARY>",
    "<SUMMARY> red </SUMMARY>",
)
PREFIX = "<SUMMARY> I will count the red shapes. </SUMMARY>"

MakeJudge = Callable[..., TransformersJudge]


@pytest.fixture
def make_judge(loaded: Loaded) -> Iterator[MakeJudge]:
    judges: list[TransformersJudge] = []

    def make(kind: JudgeKind, max_rows: int = 64) -> TransformersJudge:
        judges.append(TransformersJudge(loaded, kind=kind, max_rows=max_rows))
        return judges[-1]

    yield make
    for judge in judges:
        judge.close()


def asked(example: Example, *pairs: tuple[int, int]) -> JudgeRequest:
    return JudgeRequest(prompt_of(example), Stage.SUMMARY, "", CANDIDATES, pairs)


def stock_logits(loaded: Loaded, text: str, images: tuple[bytes, ...]) -> torch.Tensor:
    """[T, V]"""
    inputs = loaded.encoder.processor(
        text=text,
        images=[PilImage.open(io.BytesIO(image)) for image in images] or None,
        add_special_tokens=False,
        return_tensors="pt",
    )
    with torch.no_grad():
        return loaded.model(**inputs).logits[0]


@pytest.fixture(params=["with an image", "text only"])
def example(request: pytest.FixtureRequest, scenes: list[Example]) -> Example:
    return next(e for e in scenes if bool(e.images) == (request.param == "with an image"))


async def test_likelihood_is_the_sum_of_log_probabilities(
    loaded: Loaded, example: Example, make_judge: MakeJudge
) -> None:
    request = replace(asked(example, (0, 1), (2, 0), (1, 2)), stage=Stage.CAPTION, prefix=PREFIX)
    prompt, encoder = request.prompt, loaded.encoder
    known = encoder.render(prompt.messages, len(prompt.images), answer_next=True) + PREFIX
    sums = []
    for text in CANDIDATES:
        ids = encoder.ids(text)
        logits = stock_logits(loaded, known + text, prompt.images)[-len(ids) - 1 : -1]
        sums.append(float(logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None]).sum()))
    judgement = await make_judge("likelihood").compare(request)
    for (a, b), verdict in zip(request.pairs, judgement.verdicts, strict=True):
        assert verdict.forward == verdict.backward == verdict.margin
        assert verdict.margin == pytest.approx(sums[a] - sums[b], abs=CLOSE)


async def test_a_verdict_is_the_option_tokens_log_odds_in_both_orders(
    loaded: Loaded, example: Example, make_judge: MakeJudge
) -> None:
    request = asked(example, (0, 1), (2, 1))
    first, second = (loaded.encoder.tokenizer.convert_tokens_to_ids(o) for o in OPTIONS)

    def log_odds(shown_first: int, shown_second: int) -> float:
        messages = verdict_messages(request, CANDIDATES[shown_first], CANDIDATES[shown_second])
        images = request.prompt.images
        text = loaded.encoder.render(messages, len(images), answer_next=True)
        last = stock_logits(loaded, text, images)[-1]
        return float(last[first] - last[second])

    judgement = await make_judge("verdict").compare(request)
    for (a, b), verdict in zip(request.pairs, judgement.verdicts, strict=True):
        assert verdict.forward == pytest.approx(log_odds(a, b), abs=CLOSE)
        assert verdict.backward == pytest.approx(-log_odds(b, a), abs=CLOSE)
        assert verdict.forward != pytest.approx(verdict.backward, abs=CLOSE)  # untrained: biased


@pytest.mark.parametrize("kind", ["verdict", "likelihood"])
async def test_a_swapped_pair_gets_the_opposite_margin(
    kind: JudgeKind, example: Example, make_judge: MakeJudge
) -> None:
    judgement = await make_judge(kind).compare(asked(example, (0, 1), (1, 0)))
    straight, swapped = judgement.verdicts
    assert abs(straight.margin) > CLOSE
    assert straight.margin == pytest.approx(-swapped.margin, abs=1e-6)
    assert straight.forward == pytest.approx(-swapped.backward, abs=1e-6)


async def test_both_candidates_and_the_agreed_prefix_are_shown() -> None:
    request = JudgeRequest(
        Prompt((Message("user", "Q1"), Message("assistant", "A1"), Message("user", "Q2"))),
        Stage.CAPTION,
        "AGREED",
        ("x", "y"),
        ((0, 1),),
    )
    *earlier, last = verdict_messages(request, "FIRST", "SECOND")
    assert earlier == list(request.prompt.messages[:2])
    order = [last.text.index(part) for part in ("Q2", "AGREED", "1: FIRST", "2: SECOND")]
    assert order == sorted(order)
    assert "Agreed" not in verdict_messages(replace(request, prefix=""), "a", "b")[-1].text


def test_every_stage_is_judged_on_something_of_its_own() -> None:
    request = JudgeRequest(Prompt((Message("user", "Q"),)), None, "", (), ())
    texts = {
        verdict_messages(replace(request, stage=stage), "a", "b")[-1].text
        for stage in (*Stage, None)
    }
    assert len(texts) == 5


@pytest.mark.parametrize("kind", ["verdict", "likelihood"])
async def test_calls_that_wait_share_a_pass_and_get_the_values_they_get_alone(
    kind: JudgeKind,
    scenes: list[Example],
    make_judge: MakeJudge,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = [asked(e, (0, 1), (1, 2)) for e in some_of_each(scenes)]
    judge = make_judge(kind)
    alone = [await judge.compare(request) for request in requests]
    crowded = make_judge(kind)
    rows = rows_of_each_pass(crowded, monkeypatch)
    crowd = await together(crowded, requests, monkeypatch)
    a_call = 4 if kind == "verdict" else 3
    assert rows == [a_call, a_call * (len(requests) - 1)]
    same(alone, crowd)


async def test_calls_with_different_numbers_of_images_do_not_disturb_each_other(
    scenes: list[Example], make_judge: MakeJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other, blind = some_of_each(scenes)[:3]
    both = replace(one, images=(*one.images, *other.images))
    requests = [asked(e, (0, 1)) for e in (one, both, blind, both, other)]
    judge = make_judge("likelihood")
    alone = [await judge.compare(request) for request in requests]
    crowded = make_judge("likelihood")
    rows = rows_of_each_pass(crowded, monkeypatch)
    crowd = await together(crowded, requests, monkeypatch)
    assert rows == [3, 6, 6]
    same(alone, crowd)


async def test_a_batch_holds_no_more_rows_than_it_may(
    scenes: list[Example], make_judge: MakeJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked(scenes[0], (0, 1), (1, 2), (2, 0))  # six rows
    whole = await make_judge("verdict").compare(request)
    narrow = make_judge("verdict", max_rows=4)
    rows = rows_of_each_pass(narrow, monkeypatch)
    same([whole], [await narrow.compare(request)])
    assert rows == [4, 2]


async def test_the_usage_counts_every_token_that_was_scored(
    loaded: Loaded, scenes: list[Example], make_judge: MakeJudge
) -> None:
    request = asked(scenes[0], (0, 1), (0, 2))
    judgement = await make_judge("likelihood").compare(request)
    prompt = len(
        loaded.encoder.prompt_ids(request.prompt.messages, [{}] * len(request.prompt.images))
    )
    texts = [len(loaded.encoder.ids(text)) for text in CANDIDATES]
    assert judgement.usage.judge_tokens == 3 * prompt + sum(texts)  # each candidate once
    assert judgement.usage.judge_calls == 1


@pytest.mark.parametrize("kind", ["verdict", "likelihood"])
async def test_bad_input_fails_its_own_caller_alone(
    kind: JudgeKind, scenes: list[Example], make_judge: MakeJudge
) -> None:
    judge = make_judge(kind)
    good = asked(scenes[0], (0, 1))
    marked = replace(good, prompt=Prompt((Message("user", "Say <|eot_id|> now"),)))
    unreadable = replace(good, prompt=replace(good.prompt, images=(b"not an image",)))
    first, marker, image, last = await asyncio.gather(
        *(judge.compare(r) for r in (good, marked, unreadable, good)), return_exceptions=True
    )
    assert isinstance(marker, ValueError) and "marker" in str(marker)
    assert isinstance(image, ValueError) and "image" in str(image)
    assert isinstance(first, Judgement) and isinstance(last, Judgement)
    same([first], [last])


async def test_a_failed_pass_reaches_its_caller_and_the_judge_goes_on(
    scenes: list[Example], make_judge: MakeJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = make_judge("verdict")

    def failing(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(judge._runtime, "score", failing)
        with pytest.raises(torch.OutOfMemoryError):
            await judge.compare(asked(scenes[0], (0, 1)))
    assert (await judge.compare(asked(scenes[0], (0, 1)))).verdicts


def test_the_fingerprint_says_how_the_model_is_asked(loaded: Loaded, make_judge: MakeJudge) -> None:
    assert make_judge("verdict").fingerprint == f"verdict-{loaded.fingerprint}"
    assert make_judge("likelihood").fingerprint == f"likelihood-{loaded.fingerprint}"


def test_a_tokenizer_without_option_tokens_is_refused(tmp_path: Path) -> None:
    build_tiny(tmp_path / "model", ["red green 1"], layers=2)
    with pytest.raises(ValueError, match="no single token for each of"):
        option_ids(MllamaEncoder(str(tmp_path / "model")))


def some_of_each(scenes: list[Example]) -> list[Example]:
    seeing = [e for e in scenes if e.images]
    blind = [e for e in scenes if not e.images]
    return [seeing[0], seeing[1], blind[0], seeing[2], blind[1]]


def same(some: list[Judgement], others: list[Judgement]) -> None:
    """Equal up to the rounding that padding brings, and cost the same."""
    for one, other in zip(some, others, strict=True):
        assert one.usage == other.usage
        for a, b in zip(one.verdicts, other.verdicts, strict=True):
            assert (a.forward, a.backward) == pytest.approx((b.forward, b.backward), abs=CLOSE)


def rows_of_each_pass(judge: TransformersJudge, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the rows of every pass as it begins."""
    seen: list[int] = []
    score = judge._runtime.score

    def spy(rows: list[list[int]], *rest: object) -> torch.Tensor:
        seen.append(len(rows))
        return score(rows, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(judge._runtime, "score", spy)
    return seen


async def together(
    judge: TransformersJudge, requests: list[JudgeRequest], monkeypatch: pytest.MonkeyPatch
) -> list[Judgement]:
    """All answers; the first call's pass ends when all the others have come and wait."""
    reached, others_wait = threading.Event(), threading.Event()
    score = judge._runtime.score

    def held(*call: object) -> torch.Tensor:
        reached.set()
        assert others_wait.wait(PATIENCE)
        return score(*call)  # type: ignore[arg-type]

    monkeypatch.setattr(judge._runtime, "score", held)
    async with asyncio.timeout(PATIENCE):
        first = asyncio.ensure_future(judge.compare(requests[0]))
        await asyncio.to_thread(reached.wait)
        rest = [asyncio.ensure_future(judge.compare(request)) for request in requests[1:]]
        while judge._waiting.qsize() < len(rest):
            await asyncio.sleep(0.005)
        others_wait.set()
        return await asyncio.gather(first, *rest)
