"""The default judges against the same numbers computed directly with stock transformers."""

from __future__ import annotations

import asyncio
import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
import torch
from asking import MakeEngine, answers, prompt_of
from asking import request as ask
from PIL import Image as PilImage
from safetensors.torch import save_file

from stagebeam.inference.types import Judgement, JudgeRequest, Prompt
from stagebeam.inference.verdict import EngineJudge, JudgeKind, TransformersJudge, option_ids
from stagebeam.inference.wording import OPTIONS, verdict_messages, wording
from stagebeam.models.families.mllama import MllamaEncoder
from stagebeam.models.load import Loaded, load
from stagebeam.models.tiny.build import build_tiny
from stagebeam.models.value_head import VALUE_HEAD_FILE, load_value_head
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
    judgement = await make_judge("verdict").compare(request)
    for (a, b), verdict in zip(request.pairs, judgement.verdicts, strict=True):
        assert verdict.forward == pytest.approx(log_odds(loaded, request, a, b), abs=CLOSE)
        assert verdict.backward == pytest.approx(-log_odds(loaded, request, b, a), abs=CLOSE)
        assert verdict.forward != pytest.approx(verdict.backward, abs=CLOSE)  # untrained: biased


def log_odds(loaded: Loaded, request: JudgeRequest, first: int, second: int) -> float:
    """By transformers alone, of the first option over the second."""
    messages = verdict_messages(request, CANDIDATES[first], CANDIDATES[second])
    images = request.prompt.images
    text = loaded.encoder.render(messages, len(images), answer_next=True)
    last = stock_logits(loaded, text, images)[-1]
    one, two = (loaded.encoder.tokenizer.convert_tokens_to_ids(option) for option in OPTIONS)
    return float(last[one] - last[two])


async def test_a_decoder_whose_last_layer_holds_the_image(
    scenes: list[Example], tmp_path: Path
) -> None:
    words = [*wording(), *(message.text for scene in scenes for message in scene.messages)]
    build_tiny(tmp_path / "model", words, layers=2)
    stock, loaded = (load(str(tmp_path / "model"), "cpu") for _ in range(2))
    for model in (stock.model, loaded.model):  # gates are shut in an untrained one
        model.model.language_model.layers[-1].cross_attn_mlp_gate.data.fill_(1.0)
        model.model.language_model.layers[-1].cross_attn_attn_gate.data.fill_(1.0)
    request = asked(next(e for e in scenes if e.images), (0, 1))
    judge = TransformersJudge(loaded, kind="verdict", max_rows=64)
    try:
        (verdict,) = (await judge.compare(request)).verdicts
    finally:
        judge.close()
    assert verdict.forward == pytest.approx(log_odds(stock, request, 0, 1), abs=CLOSE)
    assert verdict.backward == pytest.approx(-log_odds(stock, request, 1, 0), abs=CLOSE)


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


async def test_a_mean_likelihood_is_that_of_a_token(
    loaded: Loaded, example: Example, make_judge: MakeJudge
) -> None:
    request = asked(example, (0, 2))
    summed = await make_judge("likelihood").compare(request)
    mean = await make_judge("mean_likelihood").compare(request)
    lengths = [len(loaded.encoder.ids(text)) for text in CANDIDATES]
    expected = [score / length for score, length in zip(summed.scores, lengths, strict=True)]
    assert mean.scores == pytest.approx(expected)
    assert mean.verdicts[0].margin == pytest.approx(expected[0] - expected[2])


@pytest.mark.parametrize("names", [("weight", "bias"), ("v_head.summary.weight",)])
async def test_a_reward_is_the_value_head_s_number_behind_the_text(
    names: tuple[str, ...], tiny_folder: Path, tmp_path: Path, example: Example
) -> None:
    folder = tmp_path / "reward"
    shutil.copytree(tiny_folder, folder)
    width = load(str(folder), "cpu").model.config.text_config.hidden_size
    head = {"weight": torch.randn(1, width), "bias": torch.tensor([0.5])}
    save_file({name: head[name.rpartition(".")[2]] for name in names}, folder / VALUE_HEAD_FILE)
    loaded = load(str(folder), "cpu")
    request = asked(example, (0, 1), (2, 1))
    judge = TransformersJudge(loaded, kind="reward", max_rows=64)
    try:
        judgement = await judge.compare(request)
    finally:
        judge.close()
    expected = [
        float(head["weight"] @ last_hidden(loaded, example, text)) + 0.5 * ("bias" in names)
        for text in CANDIDATES
    ]
    assert judgement.scores == pytest.approx(expected, abs=CLOSE)
    assert judgement.verdicts[1].margin == pytest.approx(expected[2] - expected[1], abs=CLOSE)


def last_hidden(loaded: Loaded, example: Example, text: str) -> torch.Tensor:
    """[D]"""
    prompt, head = prompt_of(example), loaded.model.lm_head
    known = loaded.encoder.render(prompt.messages, len(prompt.images), answer_next=True)
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    stock_logits(loaded, known + text, prompt.images)
    hook.remove()
    return seen[0][0, -1]


@pytest.mark.parametrize("broken", ["absent", "narrow", "unreadable"])
def test_a_reward_model_without_a_fitting_head_is_refused(broken: str, tmp_path: Path) -> None:
    path = tmp_path / VALUE_HEAD_FILE
    if broken == "narrow":
        save_file({"weight": torch.zeros(1, 3)}, path)
    elif broken == "unreadable":
        path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"value_head\.safetensors (cannot be read|must hold)"):
        load_value_head(str(tmp_path), 64)


@pytest.mark.parametrize("kind", ["verdict", "likelihood", "mean_likelihood"])
async def test_calls_that_come_together_get_the_values_they_get_alone(
    kind: JudgeKind, scenes: list[Example], make_judge: MakeJudge
) -> None:
    one, other, blind, *rest = some_of_each(scenes)
    both = replace(one, images=(*one.images, *other.images))
    requests = [asked(e, (0, 1), (1, 2)) for e in (one, both, blind, other, *rest)]
    alone = [await make_judge(kind).compare(request) for request in requests]
    judge = make_judge(kind)
    same(alone, await asyncio.gather(*(judge.compare(request) for request in requests)))


async def test_a_round_is_one_pass_and_nothing_is_read_twice(
    loaded: Loaded, scenes: list[Example], make_judge: MakeJudge
) -> None:
    """The question and the image once, each candidate once behind them, and behind each candidate
    the others; and in the next stage nothing that was read in this one."""
    judge = make_judge("verdict")
    seeing = next(e for e in scenes if e.images)
    first = asked(seeing, (0, 1), (0, 2), (1, 2))
    usage = (await judge.compare(first)).usage
    rows = [prompt(loaded, first, a, b) for a, b in permutations(range(3), 2)]
    stems = {tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)}
    assert usage.judge_tokens == len(stems) < 0.7 * sum(map(len, rows))
    assert (usage.sequential_passes, usage.image_encodes, usage.judge_calls) == (1, 1, 1)
    second = replace(first, stage=Stage.CAPTION, prefix=PREFIX)
    usage = (await judge.compare(second)).usage
    new = {
        tuple(row[:end])
        for row in (prompt(loaded, second, a, b) for a, b in permutations(range(3), 2))
        for end in range(1, len(row) + 1)
    } - stems
    assert usage.judge_tokens == len(new)
    assert (usage.sequential_passes, usage.image_encodes) == (1, 0)


def prompt(loaded: Loaded, request: JudgeRequest, first: int, second: int) -> list[int]:
    texts = request.candidates
    messages = verdict_messages(request, texts[first], texts[second])
    return loaded.encoder.prompt_ids(messages, [{}] * len(request.prompt.images))


async def test_a_pass_holds_no_more_rows_than_it_may(
    scenes: list[Example], make_judge: MakeJudge
) -> None:
    request = asked(scenes[0], (0, 1), (1, 2), (2, 0))  # six rows
    whole = await make_judge("verdict").compare(request)
    narrow = await make_judge("verdict", max_rows=4).compare(request)
    assert (whole.usage.sequential_passes, narrow.usage.sequential_passes) == (1, 2)
    assert margins(whole) == pytest.approx(margins(narrow), abs=CLOSE)


async def test_the_usage_counts_every_token_that_was_scored(
    loaded: Loaded, scenes: list[Example], make_judge: MakeJudge
) -> None:
    """The prompt once, and each candidate; those here share their first token or two."""
    request = asked(scenes[0], (0, 1), (0, 2))
    judgement = await make_judge("likelihood").compare(request)
    prompt = len(
        loaded.encoder.prompt_ids(request.prompt.messages, [{}] * len(request.prompt.images))
    )
    texts = [loaded.encoder.ids(text) for text in CANDIDATES]
    stems = {tuple(ids[:end]) for ids in texts for end in range(1, len(ids) + 1)}
    assert judgement.usage.judge_tokens == prompt + len(stems)
    assert judgement.usage.judge_calls == 1


async def test_a_judge_on_the_generator_s_engine_finds_what_that_has_read(
    loaded: Loaded, scenes: list[Example], make_engine: MakeEngine, make_judge: MakeJudge
) -> None:
    engine = make_engine(loaded)
    seeing = next(e for e in scenes if e.images)
    await answers(engine, ask(seeing, max_new_tokens=4))
    request = asked(seeing, (0, 1), (1, 2))
    itself = await EngineJudge(engine, "likelihood", 64).compare(request)
    texts = [loaded.encoder.ids(text) for text in CANDIDATES]
    stems = {tuple(ids[:end]) for ids in texts for end in range(1, len(ids) + 1)}
    assert itself.usage.judge_tokens == len(stems) + 1  # the prompt's last token foretells
    assert itself.usage.image_encodes == 0
    apart = await make_judge("likelihood").compare(request)
    assert margins(itself) == pytest.approx(margins(apart), abs=CLOSE)


@pytest.mark.parametrize("kind", ["verdict", "likelihood"])
async def test_bad_input_fails_its_own_caller_alone(
    kind: JudgeKind, scenes: list[Example], make_judge: MakeJudge
) -> None:
    judge = make_judge(kind)
    good = asked(scenes[0], (0, 1))
    told = "Say <|eot_id|> now"
    marked = replace(good, prompt=Prompt((Message("user", told),)), candidates=(told, "red", told))
    unreadable = replace(good, prompt=replace(good.prompt, images=(b"not an image",)))
    first, marker, image, last = await asyncio.gather(
        *(judge.compare(r) for r in (good, marked, unreadable, good)), return_exceptions=True
    )
    assert isinstance(marker, Judgement)  # words like any others
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
        patch.setattr(judge._engine._runtime, "hidden_at", failing)
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


def margins(judgement: Judgement) -> list[float]:
    return [order for v in judgement.verdicts for order in (v.forward, v.backward)]


def same(some: list[Judgement], others: list[Judgement]) -> None:
    """Equal up to rounding."""
    for one, other in zip(some, others, strict=True):
        assert margins(one) == pytest.approx(margins(other), abs=CLOSE)


async def test_explanations_come_after_the_verdicts_and_change_none(
    scenes: list[Example], make_judge: MakeJudge
) -> None:
    request = asked(scenes[0], (0, 1), (1, 2))
    plain = await make_judge("verdict").compare(request)
    told = await make_judge("verdict").compare(replace(request, explain=True))
    assert margins(told) == pytest.approx(margins(plain), abs=CLOSE)
    assert plain.explanations == () and len(told.explanations) == 2
    assert told.usage.judge_tokens > plain.usage.judge_tokens
