"""What counts as a usable reply, phrase by phrase, and what the limits promise."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebeam.data.annotate.checks import (
    FaultyError,
    Turn,
    check_description,
    check_staged,
    check_turns,
    read_verdict,
)
from stagebeam.data.annotate.client import draw_seed
from stagebeam.data.annotate.control import Budget, Pace, Stop, StoppedError
from stagebeam.data.annotate.journal import NAME, Journal, Reply
from stagebeam.data.annotate.output import staged_row
from stagebeam.data.annotate.staged import questions
from stagebeam.data.annotate.wording import FOLDER, load_wording
from stagebeam.records import Example, Image, Message
from stagebeam.stages import STAGES, parse, render

PLAIN = st.text(st.characters(categories=["Lu", "Ll"], max_codepoint=127), min_size=1, max_size=20)


def reply(content: str, reasoning: str = "", finish_reason: str = "stop") -> Reply:
    return Reply(content, reasoning, finish_reason, 10, 5, 0.0)


def staged(reasoning: str = "It follows.") -> str:
    return render(dict(zip(STAGES, ("Look.", "A cat.", reasoning, "B"), strict=True)))


def fault(content: str, question: str = "What?", **fields: str) -> str:
    with pytest.raises(FaultyError) as caught:
        check_staged(reply(content, **fields), question)
    assert caught.value.reason.endswith(".")
    return caught.value.fault


LEAKS = [
    "This matches the standard answer.",
    "The Standard  Answer is B.",
    "as the reference\nanswer says",
    "consistent with the provided answer",
    "in line with the given correct answer",
    "The expected answer is 3.",
    "the answer you provided",
    "The answer was given as B.",
    "the ground truth is B",
    "the ground-truth label",
    "According to the answer key, B.",
    "Based on the provided hint, B.",
    "The hint says that it is B.",
    "this confidential note",
]
CLEAN = [
    "Therefore the correct answer is B.",
    "Among the given answer choices, B fits.",
    "The provided answer options are A and B.",
    "The standard form of the equation is given.",
    "The question asks for the answer in metres.",
    "The given angle is 30 degrees.",
    "We cannot determine the colour from above.",
    "I can see the sign.",
]


@pytest.mark.parametrize("phrase", LEAKS)
def test_a_leak_is_caught(phrase: str) -> None:
    assert fault(staged(phrase)) == "leak"


@pytest.mark.parametrize("phrase", CLEAN)
def test_plain_reasoning_is_no_leak(phrase: str) -> None:
    assert parse(check_staged(reply(staged(phrase)), "What?")).valid


@given(
    st.sampled_from(["standard answer", "reference answer", "answer key", "as an AI"]),
    st.sampled_from([" ", "\n", "  ", "\t"]),
    st.booleans(),
    st.integers(0, 3),
    PLAIN,
)
def test_a_leak_is_caught_in_any_stage_case_and_spacing(
    phrase: str, space: str, upper: bool, stage: int, around: str
) -> None:
    bodies = dict.fromkeys(STAGES, around)
    said = phrase.replace(" ", space)
    bodies[STAGES[stage]] = f"{around}, {said.upper() if upper else said}; {around}"
    assert fault(render(bodies)) in {"leak", "refusal"}


def test_a_phrase_of_the_question_is_no_leak() -> None:
    text = staged("The answer key on the desk is blue.")
    assert fault(text) == "leak"
    check_staged(reply(text), "What colour is the Answer key?")


@pytest.mark.parametrize(
    "phrase",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, I cannot see the image.",
        "As an AI language model, I have no eyes.",
        "I am unable to view images.",
        "I don't have the ability to see.",
    ],
)
def test_a_refusal_is_caught_with_and_without_tags(phrase: str) -> None:
    assert fault(phrase) == fault(staged(phrase)) == "refusal"


@pytest.mark.parametrize(
    "content",
    [
        "B",
        "",
        staged().replace("</REASONING>", ""),
        staged() + staged(),
        staged() + " And so on.",
        staged().replace("SUMMARY", "X"),
        staged().replace("Look.", " "),
        staged("See < summary > above."),
    ],
)
def test_a_reply_that_is_not_staged_is_a_format_fault(content: str) -> None:
    assert fault(content) == "format"


def test_a_reply_at_its_longest_is_cut_off() -> None:
    assert fault(staged()[:-5], finish_reason="length") == "cut off"


@given(st.text(max_size=200), st.text(max_size=200))
def test_no_reply_breaks_the_checks(content: str, reasoning: str) -> None:
    try:
        assert parse(check_staged(reply(content, reasoning), "What?")).valid
    except FaultyError as error:
        assert error.reason
    read_verdict(reply(content))
    for check in (check_turns, check_description):
        try:
            check(reply(content))
        except FaultyError as error:
            assert error.reason


def test_stages_in_the_field_of_reasoning_are_joined_with_the_conclusion() -> None:
    whole = staged()
    three, _, _ = whole.partition(" <CONCLUSION>")
    assert check_staged(reply("B", three), "What?") == whole
    # the thoughts of a model that thinks first are not part of the answer
    assert check_staged(reply(whole, "Let me see; the standard answer is B."), "What?") == whole
    assert fault("", reasoning=three) == "format"


@pytest.mark.parametrize("text", ["Yes", "yes.", " **Yes** ", "YES!", "'yes'\n"])
def test_yes_is_read(text: str) -> None:
    assert read_verdict(reply(text)) is True


@pytest.mark.parametrize("text", ["No", "no.", "*No*"])
def test_no_is_read(text: str) -> None:
    assert read_verdict(reply(text)) is False


@given(st.text())
def test_only_the_bare_word_is_a_verdict(text: str) -> None:
    verdict = read_verdict(reply(text))
    words = "".join(c for c in text.casefold() if c.isalpha())
    assert verdict is None or words == ("yes" if verdict else "no")


@pytest.mark.parametrize("text", ["", "Yes and no", "Yes, they agree", "Maybe", "Not sure", "N"])
def test_more_than_the_word_is_no_verdict(text: str) -> None:
    assert read_verdict(reply(text)) is None


def turns_text(*pairs: tuple[str, str]) -> str:
    return "\n".join(f"Question:\n{q}\n===\nAnswer:\n{a}\n===" for q, a in pairs)


@given(st.lists(st.tuples(PLAIN, PLAIN), min_size=1, max_size=5))
def test_turns_are_read_back(pairs: list[tuple[str, str]]) -> None:
    assert check_turns(reply(turns_text(*pairs))) == tuple(Turn(*pair) for pair in pairs)


@pytest.mark.parametrize(
    "text",
    [
        "A cat.",
        "Question:\nWhat?\n===",
        "Question:\nWhat?\n===\nAnswer:\n===",
        "Answer:\nA cat.\n===\nQuestion:\nWhat?\n===",
        "Question:\nWhat?\nAnswer:\nA cat.\n===",
        "Sure!\nQuestion:\nWhat?\n===\nAnswer:\nA cat.\n===",
        turns_text(("What?", "A cat. <image>")),
        turns_text(("What? <CAPTION>", "A cat.")),
    ],
)
def test_turns_that_do_not_alternate_are_a_format_fault(text: str) -> None:
    with pytest.raises(FaultyError) as caught:
        check_turns(reply(text))
    assert caught.value.fault == "format"


@pytest.mark.parametrize(
    "said",
    [
        "According to the captions, a cat.",
        "The description mentions a cat.",
        "The bounding box is wide.",
        "It is at [0.1, 0.25, 0.3, 0.4].",
        "Not mentioned in the context.",
        "The provided information shows a cat.",
    ],
)
def test_speaking_of_captions_or_boxes_is_a_leak(said: str) -> None:
    for text, check in ((turns_text(("What?", said)), check_turns), (said, check_description)):
        with pytest.raises(FaultyError) as caught:
            check(reply(text))
        assert caught.value.fault == "leak"


def test_complex_reasoning_is_one_question() -> None:
    with pytest.raises(FaultyError, match="2 questions"):
        check_turns(reply(turns_text(("What?", "A."), ("Why?", "B."))), most=1)


def test_every_shipped_prompt_loads_and_its_own_examples_pass_the_checks() -> None:
    for path in FOLDER.glob("*.yaml"):
        kind = json.dumps(path.read_text()).split("kind: ")[1].split("\\n")[0]
        wording = load_wording(path.stem, kind)  # type: ignore[arg-type]
        assert path.stem == f"{wording.name}_v{wording.version}"
        for example in wording.examples:
            if kind == "detail":
                check_description(reply(example.reply))
            else:
                check_turns(reply(example.reply), most=1 if kind == "complex" else None)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("name: x\nversion: 1\nkind: staged\nask: a", "kind staged has a check"),
        ("name: x\nversion: 1\nkind: detail\nask: a", "kind detail has questions"),
        ("name: x\nversion: 1\nkind: complex\nask: '{{ a'", "cannot be read"),
        ("name: x\nversion: 1\nkind: complex\nask: a", "for kind complex, not staged"),
        ("- a", "cannot be read"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_wrong_prompt_file_is_one_sentence(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=says):
        load_wording(str(path), "staged")


def test_an_unknown_prompt_names_the_shipped_ones() -> None:
    with pytest.raises(ValueError, match="no prompt cot_v9; shipped are cot_self_v1, cot_v1"):
        load_wording("cot_v9", "staged")


def example(*texts: str, **fields: object) -> Example:
    roles = ("user", "assistant") * (len(texts) // 2)
    messages = tuple(Message(r, t) for r, t in zip(roles, texts, strict=True))  # type: ignore[arg-type]
    return Example(**{"id": "e", "images": (), "messages": messages, "source": "s", **fields})  # type: ignore[arg-type]


def test_options_and_short_answer_are_hints_of_the_last_turn_alone() -> None:
    row = example("Q1", "A1", "Q2", staged(), answer="Bee", choices=("Ant", "Bee"))
    first, last = questions(row)
    assert (first.standard_answer, first.hints) == ("A1", ())
    assert last.standard_answer == "B"  # the conclusion of a turn that is staged already
    assert last.hints == ("The options are A: Ant; B: Bee.", "In short, the answer is: Bee.")


def test_seeds_differ_by_every_part_and_fit_31_bits() -> None:
    seeds = {
        draw_seed(*p) for p in [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0)]
    }
    assert len(seeds) == 4 and all(0 <= seed < 2**31 for seed in seeds)
    assert draw_seed(0, "a", 0) == draw_seed(0, "a", 0)


def test_an_image_is_named_by_content_and_stays_in_its_folder() -> None:
    row = staged_row(
        example("Q", "A", source="../../etc", images=(Image(b"x", "a/B.PNG"), Image(b"y", "b.jpg")))
    )
    assert [Path(path).suffix for path in row.row["image"]] == [".png", ".jpg"]
    assert all(not path.startswith(".") and ".." not in path for path in row.row["image"])


def test_a_torn_last_line_is_dropped_and_what_was_in_flight_counts_as_unsure(
    tmp_path: Path,
) -> None:
    with Journal(tmp_path, {"model": "m"}) as journal:
        journal.replied(journal.sent("a", "k", 5.0), "a", Reply("hi", "", "stop", 1, 2, 3.0))
        journal.failed(journal.sent("b", "k", 5.0), "500", unsure=False)
        journal.sent("c", "k", 5.0)
    path = tmp_path / NAME
    whole = path.read_bytes()
    for length in range(len(whole) - 40, len(whole)):
        path.write_bytes(whole[:length])
        with Journal(tmp_path, {"model": "m"}) as journal:
            assert journal.find("a") == Reply("hi", "", "stop", 1, 2, 3.0)
            assert journal.find("b") is journal.find("c") is None
            assert journal.totals.killed == 0 and path.read_bytes().endswith(b"\n")
    path.write_bytes(whole)
    with Journal(tmp_path, {"model": "m"}) as journal:
        assert (journal.totals.killed, journal.totals.unsure_cost) == (1, 5.0)
        assert journal.totals.spent == 8.0
    path.write_bytes(whole.replace(b'"replied"', b'"rep', 1))
    with pytest.raises(ValueError, match=r"Line 3 of .* is damaged"):
        Journal(tmp_path, {"model": "m"})
    assert NAME in {p.name for p in tmp_path.iterdir()}


async def test_the_budget_waits_for_calls_in_flight_and_then_says_no() -> None:
    budget = Budget(10.0, spent=1.0)
    assert await budget.reserve(6.0)
    waiting = asyncio.create_task(budget.reserve(6.0))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    await budget.settle(6.0, 2.0)
    assert await waiting
    await budget.settle(6.0, 6.0)
    assert not await budget.reserve(1.5)


async def test_tokens_a_minute_hold_with_corrections() -> None:
    pace = Pace(None, 60_000, Stop())  # one in a millisecond
    started = time.monotonic()
    for _ in range(4):
        await pace.turn(200)
        pace.correct(-150)
    assert 0.14 < time.monotonic() - started < 0.5


async def test_a_stop_ends_every_wait() -> None:
    stop = Stop()
    pace = Pace(1, None, stop)
    await pace.turn(1)
    waiting = [asyncio.create_task(pace.turn(1)), asyncio.create_task(stop.sleep(60))]
    await asyncio.sleep(0)
    stop.set("enough")
    assert all(
        isinstance(e, StoppedError) for e in await asyncio.gather(*waiting, return_exceptions=True)
    )
