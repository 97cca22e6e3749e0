"""The staged text: whatever comes in is read, and what is valid comes back whole."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stagebeam.stages import (
    STAGES,
    TAGS,
    Fault,
    Problem,
    Stage,
    conclusion,
    find_tags,
    parse,
    render,
    stage_body,
    wrap,
)

SUMMARY, CAPTION, REASONING, CONCLUSION = STAGES
S, C, R, E = (wrap(stage, body) for stage, body in zip(STAGES, "scre", strict=True))
WHOLE = " ".join((S, C, R, E))

# Model output as it comes: tags in any order, pieces of tags, white space, words.
messy = st.lists(
    st.one_of(st.sampled_from(TAGS), st.sampled_from(["<", ">", "/", " ", "\n"]), st.text())
).map("".join)
bodies = st.text(min_size=1).filter(lambda t: t.strip() and not find_tags(t))
answers = st.fixed_dictionaries({stage: bodies for stage in STAGES})


@given(st.one_of(st.text(), messy))
def test_parse_reads_any_text_and_its_findings_agree(text: str) -> None:
    answer = parse(text)

    assert answer.valid == (not answer.problems)
    assert answer.conclusion == conclusion(text)
    for body in answer.bodies.values():
        assert body == body.strip() and not [tag for tag in TAGS if tag in body]
    missing = {p.stage for p in answer.problems if p.fault is Fault.MISSING}
    assert missing == set(STAGES) - set(answer.bodies)


@st.composite
def nearly_valid(draw: st.DrawFn) -> str:
    """The four stages, with up to two pieces dropped, moved or put in."""
    pieces = [S, C, R, E]
    for _ in range(draw(st.integers(0, 2))):
        taken = pieces.pop(draw(st.integers(0, len(pieces) - 1)))
        put = draw(st.sampled_from([taken, "", " ", "word", *TAGS, S, E, "<CAPTION> </CAPTION>"]))
        pieces.insert(draw(st.integers(0, len(pieces))), put)
    return draw(st.sampled_from(["", " ", "\n\n"])).join(pieces)


WELL_FORMED = re.compile(
    r"\s*"
    + r"\s*".join(rf"<{s}>(?!\s*</)(?:(?!</?(?:{'|'.join(STAGES)})>).)+</{s}>" for s in STAGES)
    + r"\s*",
    re.DOTALL,
)


@given(nearly_valid())
def test_a_text_is_valid_exactly_if_it_is_the_four_stages_in_order(text: str) -> None:
    assert parse(text).valid == bool(WELL_FORMED.fullmatch(text))


@given(answers)
def test_every_answer_that_can_be_written_is_read_back(written: dict[Stage, str]) -> None:
    answer = parse(render(written))

    assert answer.valid
    assert answer.bodies == {stage: body.strip() for stage, body in written.items()}


@given(st.lists(st.text(" \n\t", max_size=3), min_size=5, max_size=5))
def test_white_space_between_stages_is_free(gaps: list[str]) -> None:
    text = gaps[0] + "".join(s + gap for s, gap in zip((S, C, R, E), gaps[1:], strict=True))
    assert parse(text) == parse(WHOLE)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (f"{S} {C} {R}", [Problem(Fault.MISSING, CONCLUSION)]),
        (f"{S} {C} {R} {E} {E}", [Problem(Fault.REPEATED, CONCLUSION)]),
        (f"{C} {S} {R} {E}", [Problem(Fault.MISPLACED, SUMMARY)]),
        (
            f"{S} {C} {R} <CONCLUSION> 4",
            [Problem(Fault.UNCLOSED, CONCLUSION), Problem(Fault.MISSING, CONCLUSION)],
        ),
        (f"{S} {C} {R} </REASONING> {E}", [Problem(Fault.UNOPENED, REASONING)]),
        (f"{S} {C} <REASONING> \n</REASONING> {E}", [Problem(Fault.EMPTY, REASONING)]),
        (f"Sure! {WHOLE}", [Problem(Fault.STRAY_TEXT)]),
        (f"{S} {C} and {R} {E}", [Problem(Fault.STRAY_TEXT)]),
        (f"{WHOLE} I hope this helps.", [Problem(Fault.STRAY_TEXT)]),
        # A stage that opens inside another leaves the outer one open, and counts itself.
        (
            f"<SUMMARY> s {C} {R} {E}",
            [Problem(Fault.UNCLOSED, SUMMARY), Problem(Fault.MISSING, SUMMARY)],
        ),
        # A stage that is closed by another's tag: both are wrong.
        (
            f"<SUMMARY> s </CAPTION> {C} {R} {E}",
            [
                Problem(Fault.UNCLOSED, SUMMARY),
                Problem(Fault.UNOPENED, CAPTION),
                Problem(Fault.MISSING, SUMMARY),
            ],
        ),
        (WHOLE, []),
        ("", [Problem(Fault.MISSING, stage) for stage in STAGES]),
    ],
)
def test_every_fault_is_named(text: str, problems: list[Problem]) -> None:
    assert list(parse(text).problems) == problems


def test_the_first_occurrence_of_a_stage_counts() -> None:
    assert conclusion(f"{WHOLE} {wrap(CONCLUSION, 'other')}") == "e"


def test_tags_are_read_to_the_letter_in_model_output() -> None:
    assert parse("<summary> s </summary>").bodies == {}
    assert conclusion("no tags at all") is None


def test_a_problem_reads_as_words() -> None:
    found = [str(p) for p in parse(f"x {S} {C} {R}").problems]
    assert found == ["stray_text", "CONCLUSION missing"]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: wrap(SUMMARY, " \n"), "SUMMARY stage is empty"),
        (lambda: wrap(CAPTION, "a </SUMMARY> b"), "CAPTION stage contains a stage tag"),
        (lambda: render({SUMMARY: "s"}), "missing: CAPTION, REASONING, CONCLUSION"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(call: Callable[[], str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("<CAPTION> a red cube </CAPTION>", "a red cube"),
        (" \n<CAPTION>a red cube</CAPTION>\n", "a red cube"),
        ("<CAPTION> </CAPTION>", None),
        ("<CAPTION> a red cube", None),
        ("a red cube </CAPTION>", None),
        ("a red cube", None),
        ("<SUMMARY> a red cube </SUMMARY>", None),
        ("Well, <CAPTION> a red cube </CAPTION>", None),
        ("<CAPTION> a red cube </CAPTION> indeed", None),
        ("<CAPTION> a <SUMMARY> red </CAPTION>", None),
        ("<CAPTION> a </CAPTION> <CAPTION> b </CAPTION>", None),
        ("</CAPTION> a <CAPTION>", None),
    ],
)
def test_a_candidate_has_a_body_only_if_it_is_exactly_one_whole_stage(
    text: str, body: str | None
) -> None:
    assert stage_body(CAPTION, text) == body


@given(st.sampled_from(STAGES), st.one_of(bodies, messy))
def test_stage_body_is_the_inverse_of_wrap(stage: Stage, text: str) -> None:
    try:
        written = wrap(stage, text)
    except ValueError:
        return
    assert stage_body(stage, written) == text.strip()


@pytest.mark.parametrize(
    "tag",
    [*TAGS, "<summary>", "</Conclusion>", "< CAPTION >", "<\n/ reasoning\t>", "</ SUMMARY>"],
)
def test_a_tag_in_a_users_text_is_found_however_it_is_written(tag: str) -> None:
    assert find_tags(f"What is this? {tag} A cat.") == (tag,)


@pytest.mark.parametrize(
    "text",
    ["", "Give a summary.", "a < b > c", "SUMMARY>", "<SUMMARY", "<b>CONCLUSION</b>", "<SUMMARYX>"],
)
def test_ordinary_text_is_not_taken_for_a_tag(text: str) -> None:
    assert find_tags(text) == ()


@given(messy)
def test_a_text_without_tag_likes_opens_and_closes_no_stage(text: str) -> None:
    assume(not find_tags(text))
    assert parse(text).bodies == {}
    assert not [p for p in parse(text).problems if p.fault not in (Fault.MISSING, Fault.STRAY_TEXT)]


@pytest.mark.parametrize("text", ["<" + " " * 100_000, "< " * 50_000, "<SUMMARY" + " " * 100_000])
def test_a_hostile_text_is_searched_in_linear_time(text: str) -> None:
    started = time.process_time()
    assert find_tags(text) == ()
    assert time.process_time() - started < 1.0
