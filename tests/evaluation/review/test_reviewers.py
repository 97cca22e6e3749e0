"""What a judge's replies come to: pairs of scores, grades, extracted answers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from scripted_grader import Grader, grading, review_config

from stagebeam.evaluation.benchmarks import BENCHMARKS
from stagebeam.evaluation.benchmarks.benchmark import Row, Scored
from stagebeam.evaluation.review.extraction import extract
from stagebeam.evaluation.review.grading import grade, read_grade
from stagebeam.evaluation.review.judge import Judge, Review, reviewing
from stagebeam.evaluation.review.pairwise import read_scores, review_pair
from stagebeam.evaluation.scorers.conclusion import Mode, Outcome

LLAVA, MMVET = BENCHMARKS["LLaVA-Bench"], BENCHMARKS["MMVet"]
_SHOWN = re.compile(r"\[Answer of assistant ([12])\]\n(.*?)\n\[End of the answer", re.DOTALL)

Reviewer = Callable[[Row, str | None, Mode, Judge], Awaitable[Review]]


@asynccontextmanager
async def judged_by(grader: Grader, folder: Path) -> AsyncIterator[Judge]:
    with grading(grader) as url:
        async with reviewing(review_config(url), folder / "replies.jsonl") as judge:
            yield judge


def pair(reference: str, category: str = "conv", index: str = "0") -> Row:
    cells = {"caption": "A dog on a red mat.", "question": "What is there?"}
    return Row(index, {**cells, "gpt4_ans": reference, "category": category})


def shown(prompt: str) -> list[str]:
    return [found[2] for found in _SHOWN.finditer(prompt)]


def by_digit(bias: float = 0.0) -> Callable[[str], str]:
    """Scores an answer by the number in it, and the one that stands first by `bias` more."""

    def says(prompt: str) -> str:
        first, second = (float(re.sub(r"\D", "", text) or 5) for text in shown(prompt))
        return f"{first + bias:g} {second:g}\nThe first says {first:g}."

    return says


@pytest.mark.parametrize(
    "reply, scores",
    [
        ("8 7", (8, 7)),
        ("8.5 10\nBoth are good, the second is fuller.", (8.5, 10)),
        ("\n 8, 7 \nWhy not", (8, 7)),
        ("8,7", (8, 7)),
        ("0 7", None),
        ("8 11", None),
        ("8", None),
        ("8 7 6", None),
        ("87", None),
        ("Assistant 1: 8 Assistant 2: 7", None),
        ("I cannot rate these.\n8 7", None),
        ("nan nan", None),
        ("", None),
    ],
)
def test_two_scores_from_1_to_10_stand_alone_in_the_first_line(
    reply: str, scores: tuple[float, float] | None
) -> None:
    assert read_scores(reply) == scores


async def test_both_orders_are_asked_and_a_position_bias_cancels(tmp_path: Path) -> None:
    grader = Grader(by_digit(bias=2))
    async with judged_by(grader, tmp_path) as judge:
        review = await review_pair(pair("a 6"), "an 8", "compat", judge)
        even = await review_pair(pair("a 7"), "my 7", "compat", judge)
    assert [shown(prompt) for prompt in grader.prompts[:2]] == [["a 6", "an 8"], ["an 8", "a 6"]]
    assert all("A dog on a red mat." in prompt for prompt in grader.prompts)
    assert review.outcome == Outcome("9 to 7", 0.9, 0.7) and review.unread == 0
    assert [reply.text for reply in review.replies] == [
        "8 8\nThe first says 6.",
        "10 6\nThe first says 8.",
    ]
    assert LLAVA.figures([Scored(pair("a 7"), even.outcome)])["Overall"].percent == 100


async def test_the_figure_is_mean_over_mean_in_all_and_by_category(tmp_path: Path) -> None:
    rows = [pair("ref 8", kind, str(n)) for n, kind in enumerate(("conv", "conv", "detail"))]
    async with judged_by(Grader(by_digit()), tmp_path) as judge:
        said = ("my 6", "my 4", "my 8")
        reviews = [
            await review_pair(*asked, "compat", judge) for asked in zip(rows, said, strict=True)
        ]
    scored = [Scored(row, review.outcome) for row, review in zip(rows, reviews, strict=True)]
    figures = LLAVA.figures(scored)
    assert {name: (round(f.percent, 6), f.count) for name, f in figures.items()} == {
        "Overall": (75, 3), "conv": (62.5, 2), "detail": (100, 1),
    }  # fmt: skip
    assert next(iter(figures)) == "Overall"
    assert figures["Overall"].interval is not None and figures["detail"].interval == (100, 100)
    low, high = figures["Overall"].interval
    assert 50 <= low < 75 < high <= 100


def test_a_mean_over_a_mean_is_not_the_mean_of_ratios() -> None:
    outcomes = [Outcome("", 0.2, 1.0), Outcome("", 0.8, 0.2)]
    figures = LLAVA.figures([Scored(pair("a"), outcome) for outcome in outcomes])
    assert figures["Overall"].percent == pytest.approx(100 * 1.0 / 1.2)


@pytest.mark.parametrize("silent", [["my 9", "ref 6"], ["ref 6", "my 9"]])
async def test_a_row_with_an_unread_reply_is_left_out_and_counted(
    silent: list[str], tmp_path: Path
) -> None:
    plain = by_digit()
    grader = Grader(lambda prompt: "Both!" if shown(prompt) == silent else plain(prompt))
    rows = [pair("ref 6"), pair("ref 4")]
    async with judged_by(grader, tmp_path) as judge:
        lost = await review_pair(rows[0], "my 9", "compat", judge)
        kept = await review_pair(rows[1], "my 2", "compat", judge)
    assert lost.outcome == Outcome(None, 0.0) and lost.unread == 1 and len(lost.replies) == 2
    scored = [Scored(row, made.outcome) for row, made in zip(rows, (lost, kept), strict=True)]
    figures = LLAVA.figures(scored)
    assert (figures["Overall"].percent, figures["Overall"].count) == (50, 1)
    assert LLAVA.figures(scored[:1]) == {}


@pytest.mark.parametrize("nothing", [None, "", "  "])
async def test_an_answer_that_is_not_there_scores_lowest(
    nothing: str | None, tmp_path: Path
) -> None:
    async with judged_by(Grader(lambda prompt: "9 9"), tmp_path) as judge:
        review = await review_pair(pair("a 6"), nothing, "strict", judge)
    assert review.outcome == Outcome("1 to 9", 0.1, 0.9)


def vet(gold: str = "a red<AND>dog") -> Row:
    return Row("0", {"question": "What is it?", "answer": gold, "category": "rec,ocr"})


@pytest.mark.parametrize(
    "reply, found",
    [
        ("0.4", 0.4),
        (" 1.0\n", 1.0),
        ("0", 0.0),
        ("1.1", None),
        ("-0.1", None),
        ("nan", None),
        ("0.5.", None),
        ("Grade: 0.5", None),
        ("", None),
    ],
)
def test_a_grade_is_a_number_from_0_to_1_and_nothing_else(reply: str, found: float | None) -> None:
    assert read_grade(reply) == found


async def test_a_grade_counts_for_every_capability(tmp_path: Path) -> None:
    grader = Grader(lambda prompt: "0.6")
    async with judged_by(grader, tmp_path) as judge:
        review = await grade(vet(), "a dog", "compat", judge)
    assert review == Review(Outcome("0.6", 0.6), review.replies, 0)
    (prompt,) = grader.prompts
    end = "Question: What is it?\nCorrect answer: a red <AND> dog\nAnswer: a dog\nGrade:"
    assert prompt.endswith(end)
    figures = MMVET.figures([Scored(vet(), review.outcome)])
    assert {name: figure.percent for name, figure in figures.items()} == {
        "Overall": 60, "ocr": 60, "rec": 60,
    }  # fmt: skip


@pytest.mark.parametrize(
    "mode, said, outcome, temperatures",
    [
        ("compat", ["hm", "1.5", "0.3"], Outcome("0.3", 0.3), [0, 0.5, 1]),
        ("compat", ["hm"] * 5, Outcome(None, 0.0), [0, 0.5, 1, 1.5, 2]),
        ("strict", ["hm", "0.3"], Outcome(None, 0.0), [0]),
        ("strict", ["0.3"], Outcome("0.3", 0.3), [0]),
    ],
)
async def test_compat_asks_for_a_grade_five_times_and_strict_once(
    mode: Mode, said: list[str], outcome: Outcome, temperatures: list[float], tmp_path: Path
) -> None:
    left = iter(said)
    grader = Grader(lambda prompt: next(left))
    async with judged_by(grader, tmp_path) as judge:
        review = await grade(vet(), "a dog", mode, judge)
    assert review.outcome == outcome
    assert [request["temperature"] for request in grader.requests] == temperatures
    assert review.unread == len(temperatures) - (outcome.said is not None)


def vista(kind: str = "free_form", of: str = "integer", answer: str = "7") -> Row:
    cells = {"question": "Hint: an integer.\nQuestion: How many?", "answer": answer}
    about = {"question_type": kind, "answer_type": of, "answer_option": "B"}
    choices = "['3', '7']" if kind == "multi_choice" else ""
    return Row("0", {**cells, **about, "choices": choices})


@pytest.mark.parametrize("mode", ["compat", "strict"])
@pytest.mark.parametrize(
    "row, reply",
    [(vista(), "7"), (vista(of="float", answer="7.50"), "7.5"), (vista("multi_choice"), "B")],
)
async def test_what_the_rule_can_read_needs_no_judge(
    row: Row, reply: str, mode: Mode, tmp_path: Path
) -> None:
    grader = Grader(lambda prompt: "8")
    async with judged_by(grader, tmp_path) as judge:
        review = await extract(row, reply, mode, judge)
    assert review.outcome.score == 1 and review.replies == () and grader.requests == []


@pytest.mark.parametrize("mode", ["compat", "strict"])
@pytest.mark.parametrize(
    "row, extracted, outcome, unread",
    [
        (vista(), " 7\n", Outcome("7", 1.0), 0),
        (vista(), "8", Outcome("8", 0.0), 0),
        (vista(), "seven", Outcome(None, 0.0), 1),
        (vista("multi_choice"), "B", Outcome("B", 1.0), 0),
        (vista("multi_choice"), "A", Outcome("A", 0.0), 0),
        (vista("multi_choice"), "either", Outcome(None, 0.0), 1),
    ],
)
async def test_the_judge_extracts_and_the_rule_scores(
    row: Row, extracted: str, outcome: Outcome, unread: int, mode: Mode, tmp_path: Path
) -> None:
    grader = Grader(lambda prompt: extracted)
    async with judged_by(grader, tmp_path) as judge:
        review = await extract(row, "I count some of them, I think.", mode, judge)
    assert (review.outcome, review.unread, len(review.replies)) == (outcome, unread, 1)
    (prompt,) = grader.prompts
    assert prompt.endswith(
        "Question: How many?\nResponse: I count some of them, I think.\nFinal answer:"
    )


@pytest.mark.parametrize("reviewer, row", [(grade, vet()), (extract, vista())])
@pytest.mark.parametrize("nothing", [None, " "])
async def test_a_reply_that_says_nothing_is_wrong_without_a_judge(
    reviewer: Reviewer, row: Row, nothing: str | None, tmp_path: Path
) -> None:
    grader = Grader(lambda prompt: "1.0")
    async with judged_by(grader, tmp_path) as judge:
        assert await reviewer(row, nothing, "compat", judge) == Review(Outcome(None, 0.0))
    assert grader.requests == []
