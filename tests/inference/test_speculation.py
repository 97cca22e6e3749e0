"""Guesses ahead of a pass change no text, whether they come true or not, and save passes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from asking import NEVER, MakeEngine, answers, request, together

from stagebeam.inference.decoding import Row
from stagebeam.inference.drafts import Ahead, Draft, Drafter
from stagebeam.inference.sampling import numbers
from stagebeam.inference.transformers_engine import TransformersEngine
from stagebeam.inference.types import Candidate, GenerateRequest
from stagebeam.models.load import Loaded
from stagebeam.records import Example
from stagebeam.stages import STAGES

CLOSE = 1e-4


class Scripted(Drafter):
    """Guesses, for rows that write `texts` (by their seeds), so many tokens rightly and then some
    wrongly."""

    def __init__(self, texts: dict[int, list[int]], right: dict[int, int], wrong: int = 1) -> None:
        super().__init__(right and max(right.values()) + wrong, 1.0)
        self._texts, self._right, self._wrong = texts, right, wrong
        self._where = {
            number: (seed, at)
            for seed, ids in texts.items()
            for at, number in zip(range(len(ids)), numbers(seed), strict=False)
        }
        self.most = 0  # tokens of a pass

    def draft(self, rows: Sequence[Ahead]) -> list[Draft]:
        drafts = []
        for row in rows:
            seed, at = self._where[row.numbers[0]]
            text, right = self._texts[seed], self._right[seed]
            guesses = text[at : at + right]
            follows = text[at + right] if at + right < len(text) else 0
            guesses += [follows + 1 if follows < 9 else follows - 1] * self._wrong
            drafts.append(Draft([], guesses[: len(row.numbers) - 1]))
        self.most = max(self.most, len(rows) + sum(len(draft.tokens) for draft in drafts))
        return drafts


def scripted(
    engine: TransformersEngine, texts: dict[int, list[int]], right: dict[int, int], wrong: int = 1
) -> Scripted:
    engine._batch._drafter = drafter = Scripted(texts, right, wrong)
    return drafter


def watched(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> dict[int, list[int]]:
    """The tokens of each row that finishes, by its seed."""
    texts: dict[int, list[int]] = {}
    hand_over = engine._hand_over

    def spy(row: Row) -> None:
        texts[row.call.request.seeds[row.index]] = list(row.sampled)
        hand_over(row)

    monkeypatch.setattr(engine, "_hand_over", spy)
    return texts


def assert_same(found: list[Candidate], expected: list[Candidate]) -> None:
    """But for rounding in the log-probabilities."""
    assert [replace(c, logprob=0.0) for c in found] == [replace(c, logprob=0.0) for c in expected]
    assert [c.logprob for c in found] == pytest.approx([c.logprob for c in expected], abs=CLOSE)


@pytest.mark.parametrize("top_p", [0.0, 0.9, 1.0])
async def test_every_family_writes_the_same_whatever_is_guessed(
    built: Loaded,
    scenes: list[Example],
    top_p: float,
    make_engine: MakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one image, with none, with two; right guesses and wrong ones, of different lengths; all
    in one batch. A `top_p` of 0 stands for greedy."""
    seeing = [e for e in scenes if e.images]
    blind = next(e for e in scenes if not e.images)
    two = Example("two", (*seeing[3].images, *seeing[4].images), seeing[3].messages, "test")
    temperature, top_p = (1.0, top_p) if top_p else (0.0, 1.0)
    asked = [
        request(
            example,
            seeds=(2 * n, 2 * n + 1),
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=11 + 3 * n,
        )
        for n, example in enumerate((seeing[0], blind, two, seeing[1]))
    ]
    plain = make_engine(built, draft_tokens=0)
    texts = watched(plain, monkeypatch)
    expected = [(await answers(plain, one))[0] for one in asked]
    for part in (slice(4), slice(1), slice(1, 2)):
        engine = make_engine(built)
        drafter = scripted(engine, texts, {seed: 1 + seed % 6 for seed in texts})
        found = await together(engine, asked[part], monkeypatch)
        for (candidates, _), alone in zip(found, expected[part], strict=True):
            assert_same(candidates, alone)
        assert drafter.drafted > drafter.accepted > 0


@pytest.mark.parametrize("right", [0, 1, 3, 8])
async def test_each_right_guess_saves_a_pass_and_a_wrong_one_costs_none(
    taught: Loaded,
    known: list[Example],
    right: int,
    make_engine: MakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = request(known[0], seeds=(5,), temperature=1.5, max_new_tokens=40)
    plain = make_engine(taught, draft_tokens=0)
    texts = watched(plain, monkeypatch)
    expected, cost = await answers(plain, asked)
    engine = make_engine(taught)
    drafter = scripted(engine, texts, {5: right})
    found, usage = await answers(engine, asked)
    assert_same(found, expected)
    behind = found[0].tokens - 1  # the first one, which comes with the prefill
    assert cost.sequential_passes == 1 + behind
    assert usage == replace(cost, sequential_passes=1 + -(-behind // (1 + right)))
    assert drafter.accepted == behind - (usage.sequential_passes - 1) or right == 8


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.9)])
async def test_whole_answers_are_the_same_with_and_without_guesses(
    wavering: Loaded,
    known: list[Example],
    temperature: float,
    top_p: float,
    make_engine: MakeEngine,
) -> None:
    """Stage by stage, a few candidates each, the first one chosen; on one engine, that learns."""
    plain, guessing = make_engine(wavering, draft_tokens=0), make_engine(wavering)
    passes = {plain: 0, guessing: 0}
    for n, example in enumerate(known):
        text = ""
        for stage in STAGES:
            asked = request(
                example,
                prefix=text,
                stop=stage.close_tag,
                seeds=(n, 100 + n, 200 + n),
                temperature=temperature,
                top_p=top_p,
                max_new_tokens=60,
            )
            expected, cost = await answers(plain, asked)
            found, usage = await answers(guessing, asked)
            assert_same(found, expected)
            passes[plain] += cost.sequential_passes
            passes[guessing] += usage.sequential_passes
            assert replace(usage, sequential_passes=0) == replace(cost, sequential_passes=0)
            text += expected[0].text
    drafter = guessing._batch._drafter
    assert drafter.drafted > drafter.accepted > 0 or temperature == 0
    assert passes[guessing] < 0.95 * passes[plain]


async def test_32_candidates_write_alone_what_they_write_together(
    wavering: Loaded,
    known: list[Example],
    make_engine: MakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = [
        request(known[n % len(known)], seeds=(300 + n,), temperature=1.0, max_new_tokens=40)
        for n in range(32)
    ]
    engine = make_engine(wavering)
    alone = [(await answers(engine, asked))[0][0].text for asked in requests]
    crowded = make_engine(wavering)
    crowd = await together(crowded, requests, monkeypatch)
    assert [found[0].text for found, _ in crowd] == alone
    assert engine._batch._drafter.accepted > 0 < crowded._batch._drafter.accepted


async def test_a_stop_among_guesses_ends_the_row_and_keeps_what_was_written(
    taught: Loaded, known: list[Example], make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guesses know what the model writes behind the tag, so that all of them hold."""
    plain = make_engine(taught, draft_tokens=0)
    texts = watched(plain, monkeypatch)
    asked = request(known[0], stop=STAGES[0].close_tag, max_new_tokens=200)
    ((expected,), _), (whole,) = await answers(plain, asked), await whole_text(plain, known[0])
    engine = make_engine(taught)
    scripted(engine, {0: texts[0]}, {0: 7}, wrong=0)
    (found,), usage = await answers(engine, asked)
    assert_same([found], [expected])
    assert found.finish == "stop" and (found.tokens - 1) % 8  # it ended amid a pass
    assert usage.sequential_passes == 1 + -(-(found.tokens - 1) // 8)
    look, ids = engine.encode(asked.prompt, found.text)
    kept, covered = engine._reader.store.find(look.digest, ids) or (None, 0)
    known_too, _ = plain._reader.store.find(look.digest, ids) or (None, 0)
    assert kept is not None and known_too is not None
    assert covered == len(kept.ids) == len(ids) - 1  # the tag itself never went through the model
    torch.testing.assert_close(kept.kv, known_too.kv, atol=CLOSE, rtol=CLOSE)
    engine._batch._drafter = Drafter(8, 24.0)
    rest = replace(asked, prefix=found.text, stops=(STAGES[3].close_tag,))
    (further,), cost = await answers(engine, rest)
    assert found.text + further.text == whole.text and cost.prefill_tokens == 1


async def whole_text(engine: TransformersEngine, example: Example) -> list[Candidate]:
    return (await answers(engine, request(example, stop="</CONCLUSION>", max_new_tokens=200)))[0]


@pytest.mark.parametrize("most", [1, 2, 7, 9, 10])
async def test_no_row_writes_more_than_it_may_nor_puts_more_through_the_model(
    taught: Loaded,
    known: list[Example],
    most: int,
    make_engine: MakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = make_engine(taught, draft_tokens=0)
    texts = watched(plain, monkeypatch)
    (long,), _ = await answers(plain, request(known[0], max_new_tokens=30))
    engine = make_engine(taught)
    drafter = scripted(engine, dict(texts), {0: 8})
    (found,), _ = await answers(engine, request(known[0], max_new_tokens=most))
    assert (found.tokens, found.finish) == (most, "length") and long.text.startswith(found.text)
    assert drafter.most <= max(0, most - 1)


async def test_an_end_token_among_guesses_ends_the_row(
    taught: Loaded, known: list[Example], make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(known[0], stop=NEVER, max_new_tokens=200)
    plain = make_engine(taught, draft_tokens=0)
    texts = watched(plain, monkeypatch)
    expected, _ = await answers(plain, asked)
    assert expected[0].finish == "end"
    engine = make_engine(taught)
    scripted(engine, {0: texts[0]}, {0: 5}, wrong=3)
    found, _ = await answers(engine, asked)
    assert_same(found, expected)


async def test_a_caller_who_leaves_takes_guessed_rows_along_and_the_others_go_on(
    wavering: Loaded, known: list[Example], make_engine: MakeEngine
) -> None:
    engine = make_engine(wavering)
    asked = request(known[0], seeds=(1, 2), temperature=1.0, max_new_tokens=60)
    expected, _ = await answers(make_engine(wavering, draft_tokens=0), asked)
    for _ in range(3):  # in which it has learnt to guess
        await answers(engine, asked)

    async def leave() -> None:
        away: GenerateRequest = replace(asked, seeds=(3, 4, 5, 6))
        async for _ in engine.propose(away):
            return

    (found, _), *_ = await asyncio.gather(answers(engine, asked), leave(), leave())
    assert_same(found, expected)
    assert engine._batch._drafter.accepted > 0


async def test_a_text_that_was_written_before_takes_a_fraction_of_the_passes(
    taught: Loaded, known: list[Example], make_engine: MakeEngine
) -> None:
    asked = request(known[0], stop="</CONCLUSION>", max_new_tokens=200)
    engine = make_engine(taught)
    (first,), cost = await answers(engine, asked)
    (again,), usage = await answers(engine, asked)
    assert again.text == first.text
    assert usage.sequential_passes < (first.tokens - 1) / 2
    assert cost.sequential_passes <= first.tokens
