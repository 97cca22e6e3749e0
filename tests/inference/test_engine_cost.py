"""What a call costs: the counters are exact, and nothing is computed twice.

Where passes are counted, nothing is guessed: each brings a row one token. What guesses save is in
test_speculation.py.
"""

from __future__ import annotations

import pytest
from asking import NEVER, MakeEngine, answers, prompt_of, request, rows_of_each_pass, together

from stagebeam.inference.types import Usage
from stagebeam.models.load import Loaded
from stagebeam.records import Example
from stagebeam.stages import STAGES


def prompt_length(loaded: Loaded, example: Example) -> int:
    prompt = prompt_of(example)
    return len(loaded.encoder.prompt_ids(prompt.messages, [{}] * len(prompt.images)))


async def test_a_stage_goes_on_without_a_prefill_and_the_image_is_encoded_once(
    taught: Loaded, known: list[Example], make_engine: MakeEngine
) -> None:
    engine = make_engine(taught, draft_tokens=0)
    text = ""
    for stage in STAGES:
        asked = request(
            known[0], prefix=text, stop=stage.close_tag, seeds=(1, 2, 3), max_new_tokens=200
        )
        candidates, usage = await answers(engine, asked)
        first = not text
        assert usage == Usage(
            image_encodes=1 if first else 0,
            # later, the closing tag alone, by each row: it was sampled, and never went through
            # the model
            prefill_tokens=prompt_length(taught, known[0]) if first else 3,
            decode_tokens=sum(c.tokens for c in candidates),
            sequential_passes=candidates[0].tokens,  # the first token comes with the prefill
            cache_hits=0 if first else 1,
        )
        text += candidates[0].text


async def test_passes_follow_the_longest_candidate(
    taught: Loaded, known: list[Example], make_engine: MakeEngine
) -> None:
    asked = request(
        known[0], stop="</SUMMARY>", seeds=tuple(range(8)), temperature=3.0, max_new_tokens=60
    )
    candidates, usage = await answers(make_engine(taught, draft_tokens=0), asked)
    lengths = [c.tokens for c in candidates]
    assert len(set(lengths)) > 2
    assert usage.sequential_passes == max(lengths)
    assert usage.decode_tokens == sum(lengths)


async def test_the_same_call_again_prefills_nothing(
    loaded: Loaded, scenes: list[Example], make_engine: MakeEngine
) -> None:
    engine = make_engine(loaded, draft_tokens=0)
    asked = request(scenes[0])
    (first,), _ = await answers(engine, asked)
    (again,), usage = await answers(engine, asked)
    assert again == first
    assert usage == Usage(
        decode_tokens=again.tokens, sequential_passes=again.tokens - 1, cache_hits=1
    )


async def test_a_prefix_that_was_never_written_costs_its_own_tokens(
    loaded: Loaded, scenes: list[Example], make_engine: MakeEngine
) -> None:
    engine = make_engine(loaded)
    example = next(e for e in scenes if e.images)
    await answers(engine, request(example))
    prefix = "<SUMMARY> I will count the red shapes. </SUMMARY>"
    (candidate,), usage = await answers(engine, request(example, prefix=prefix))
    assert usage.prefill_tokens == len(loaded.encoder.ids(prefix))
    assert (usage.image_encodes, usage.cache_hits) == (0, 1)
    (fresh,), _ = await answers(make_engine(loaded), request(example, prefix=prefix))
    assert candidate.text == fresh.text


async def test_without_memory_for_rows_everything_is_prefilled_and_the_text_is_the_same(
    taught: Loaded, known: list[Example], make_engine: MakeEngine
) -> None:
    poor = make_engine(taught, kv_bytes=0)
    (first,), _ = await answers(poor, request(known[0], stop="</SUMMARY>", max_new_tokens=200))
    asked = request(known[0], prefix=first.text, stop="</CAPTION>", max_new_tokens=200)
    (second,), usage = await answers(poor, asked)
    written = len(taught.encoder.ids(first.text))
    assert usage.prefill_tokens == prompt_length(taught, known[0]) + written
    assert usage.cache_hits == 0
    assert usage.image_encodes == 0  # images have a memory of their own
    assert (first.text + second.text) in known[0].messages[-1].text.replace(" <", "<")


async def test_another_image_is_another_prompt(
    loaded: Loaded, scenes: list[Example], make_engine: MakeEngine
) -> None:
    engine = make_engine(loaded)
    first, second = [e for e in scenes if e.images][:2]
    await answers(engine, request(first))
    swapped = Example("x", second.images, first.messages, "test")
    _, usage = await answers(engine, request(swapped))
    assert (usage.image_encodes, usage.cache_hits) == (1, 0)
    assert usage.prefill_tokens == prompt_length(loaded, swapped)


async def test_a_text_only_question_encodes_no_image(
    loaded: Loaded, scenes: list[Example], make_engine: MakeEngine
) -> None:
    blind = next(e for e in scenes if not e.images)
    _, usage = await answers(make_engine(loaded), request(blind))
    assert usage.image_encodes == 0 and usage.prefill_tokens == prompt_length(loaded, blind)


async def test_rows_of_all_calls_share_passes_up_to_the_limit(
    loaded: Loaded, scenes: list[Example], make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(loaded, max_rows=6)
    rows = rows_of_each_pass(engine, monkeypatch)
    calls = [request(e, seeds=(0, 1, 2), temperature=1.0, stop=NEVER) for e in scenes[:5]]
    await together(engine, calls, monkeypatch)
    assert max(rows) == 6
    rows.clear()
    wide = request(scenes[0], seeds=tuple(range(9)), temperature=1.0)
    candidates, _ = await answers(engine, wide)  # a call over the limit goes alone
    assert len(candidates) == 9 and max(rows) == 9
