"""Benchmarks from small files of the published form: read, asked, scored, added up."""

from __future__ import annotations

import base64
import csv
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from stagebeam.evaluation.benchmarks import BENCHMARKS
from stagebeam.evaluation.benchmarks.benchmark import Benchmark, Figures, Row, Scored
from stagebeam.evaluation.scorers.conclusion import Mode, Outcome

PICTURE = bytes(range(120))
BASE64 = base64.b64encode(PICTURE).decode()

Cells = dict[str, object]
Write = Callable[..., Benchmark]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A benchmark's file, of rows that have an image and an answer A unless they say otherwise."""

    def made(name: str, *rows: Cells) -> Benchmark:
        benchmark = BENCHMARKS[name]
        base: Cells = {"image": BASE64, "question": "Which?", "answer": "A"}
        full = [{"index": n, **base, **row} for n, row in enumerate(rows)]
        columns = list(dict.fromkeys(key for row in full for key in row))
        with (tmp_path / benchmark.file).open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n")
            writer.writeheader()
            writer.writerows(full)
        return benchmark

    return made


def score(benchmark: Benchmark, folder: Path, replies: Sequence[str], mode: Mode) -> list[Scored]:
    assert benchmark.score is not None
    rows = list(benchmark.rows(folder))
    return [
        Scored(row, benchmark.score(row, reply, mode))
        for row, reply in zip(rows, replies, strict=True)
    ]


def percents(figures: Figures) -> dict[str, float]:
    return {name: round(figure.percent, 4) for name, figure in figures.items()}


def options(**cells: object) -> Cells:
    return {"A": "one", "B": "two", "C": "three", **cells}


def test_a_row_has_its_cells_its_options_and_its_image_or_anothers(
    write: Write, tmp_path: Path
) -> None:
    rows = options(hint="Look."), options(image="0", C="", answer="B")
    first, second = write("MMStar", *rows).rows(tmp_path)
    assert first.index == "0" and first.choices == {"A": "one", "B": "two", "C": "three"}
    assert second.choices == {"A": "one", "B": "two"} and second.cells["answer"] == "B"
    assert first.images == second.images == (PICTURE,)
    asked = BENCHMARKS["MMStar"].prompt(first)
    assert asked == "Look.\nWhich?\nA. one\nB. two\nC. three"


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"question": " "}, r"row 1: The row has no question\.$"),
        ({"index": ""}, r"row 1: The row has no index\.$"),
        ({"image": "77"}, r"row 1: The image is that of row 77, which is not there\.$"),
    ],
)
def test_a_row_that_cannot_be_asked_ends_the_reading(
    row: Cells, reason: str, write: Write, tmp_path: Path
) -> None:
    benchmark = write("MMStar", options(**row))
    with pytest.raises(ValueError, match=reason):
        list(benchmark.rows(tmp_path))


def test_a_file_without_a_column_that_is_needed_is_named(write: Write, tmp_path: Path) -> None:
    mathvista = write("MathVista", {"answer_type": "text"})
    with pytest.raises(ValueError, match="no column answer_option, question_type, choices"):
        list(mathvista.rows(tmp_path))
    llava = write(
        "LLaVA-Bench", {"caption": "A cat.", "gpt4_ans": "It is a cat.", "category": "conv"}
    )
    (row,) = llava.rows(tmp_path)
    assert row.cells["gpt4_ans"] == "It is a cat."
    with pytest.raises(ValueError, match=r"MMVet\.tsv: No such file"):
        list(BENCHMARKS["MMVet"].rows(tmp_path))


def test_a_file_is_told_from_the_published_one(write: Write, tmp_path: Path) -> None:
    benchmark = write("MMStar", options())
    assert benchmark.published(tmp_path) is False
    md5 = hashlib.md5((tmp_path / benchmark.file).read_bytes()).hexdigest()
    assert replace(benchmark, md5=md5).published(tmp_path) is True
    assert replace(benchmark, md5=None).published(tmp_path) is None


def test_names_and_files_and_checksums_are_those_of_one_benchmark_each() -> None:
    assert all(name == benchmark.name for name, benchmark in BENCHMARKS.items())
    by_file = {(b.file, b.md5) for b in BENCHMARKS.values()}
    assert len(by_file) == len({file for file, _ in by_file}) == len(BENCHMARKS) - 3  # the -R ones
    assert all(b.md5 is None or len(b.md5) == 32 for b in BENCHMARKS.values())
    assert all(b.review is not None for b in BENCHMARKS.values() if b.score is None)
    assert {n for n, b in BENCHMARKS.items() if b.score is None} == {
        "MMVet", "MMVet-R", "LLaVA-Bench", "LLaVA-Bench-COCO",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["MMStar", "AI2D", "AI2D-unmasked", "ScienceQA", "MMMU"])
def test_the_mean_of_hits_in_all_and_by_category(name: str, write: Write, tmp_path: Path) -> None:
    kinds = ("plant", "plant", "stone", "plant")
    rows = [options(category=kind) for kind in kinds]
    scored = score(write(name, *rows), tmp_path, ["A", "B", "who knows", "A"], "compat")
    figures = BENCHMARKS[name].figures(scored)
    assert percents(figures) == {"Overall": 50.0, "plant": 66.6667, "stone": 0.0}
    assert [s.outcome.said for s in scored] == ["A", "B", None, "A"]
    overall = figures["Overall"]
    assert overall.count == 4 and overall.interval is not None
    assert overall.interval[0] < 50 < overall.interval[1]


def test_rotations_are_right_together_or_not_at_all(write: Write, tmp_path: Path) -> None:
    rows = [
        options(index=index, category=kind, **{"l2-category": f"{kind}s"})
        for index, kind in ((7, "tree"), (1_000_007, "tree"), (8, "tree"), (2_000_008, "tree"))
    ] + [options(index=9, category="bush", **{"l2-category": "bushs"})]
    benchmark = write("MMBench", *rows)
    scored = score(benchmark, tmp_path, ["A", "A", "A", "B", "A"], "compat")
    figures = benchmark.figures(scored)
    assert percents(figures) == {
        "Overall": 66.6667, "bush": 100, "bushs": 100, "tree": 50, "trees": 50,
    }  # fmt: skip
    assert figures["Overall"].count == 3 and figures["tree"].count == 2
    named = [Scored(Row("seven", {}), Outcome("A", 1.0))]
    with pytest.raises(ValueError, match="index 'seven' of a circular benchmark is no number"):
        benchmark.figures(named)


def test_reasoning_subsets_count_each_kept_dimension_alike(write: Write, tmp_path: Path) -> None:
    kept = ["instance reasoning", "logical reasoning", "math", "science & technology"]
    kinds = [*kept, "math", "math", "math", "coarse perception"]
    benchmark = write("MMStar-R", *(options(category=kind) for kind in kinds))
    replies = ["A", "B", "A", "B", "A", "A", "B", "A"]
    figures = benchmark.figures(score(benchmark, tmp_path, replies, "compat"))
    assert percents(figures) == {"Overall": 43.75, **dict(zip(kept, (100, 0, 75, 0), strict=True))}
    some = write("MMStar-R", options(category="math"))
    with pytest.raises(
        ValueError, match="no row of instance reasoning, logical reasoning, science"
    ):
        some.figures(score(some, tmp_path, ["A"], "compat"))


def test_mmbench_r_goes_by_its_dimensions_over_rotations(write: Write, tmp_path: Path) -> None:
    kinds = ("attribute_reasoning", "logic_reasoning", "relation_reasoning", "logic_reasoning")
    rows = [
        options(index=index, category="x", **{"l2-category": kind})
        for index, kind in zip((1, 2, 3, 1_000_002), kinds, strict=True)
    ]
    benchmark = write("MMBench-R", *rows)
    figures = benchmark.figures(score(benchmark, tmp_path, ["A", "A", "A", "B"], "compat"))
    assert percents(figures)["Overall"] == 66.6667 and percents(figures)["logic_reasoning"] == 0


def test_a_graded_row_counts_for_every_capability_that_it_names() -> None:
    graded = (("ocr,math", 0.5), ("spat", 1.0), ("math, spat", 0.0))
    scored = [Scored(Row("1", {"category": names}), Outcome("", s)) for names, s in graded]
    found = percents(BENCHMARKS["MMVet"].figures(scored))
    assert found == {"Overall": 50.0, "math": 25.0, "ocr": 50.0, "spat": 50.0}
    assert percents(BENCHMARKS["MMVet-R"].figures(scored))["Overall"] == 37.5


def test_hallusionbench_has_three_accuracies_and_their_mean(write: Write, tmp_path: Path) -> None:
    rows = [
        {"index": f"{n}_a_b_0_{figure}_0", "answer": answer, "category": "VD", "l2-category": "map"}
        for n, (figure, answer) in enumerate(((0, "Yes"), (1, "No")))
    ]
    benchmark = write("HallusionBench", *rows)
    scored = score(benchmark, tmp_path, ["yes, it is", "Perhaps"], "compat")
    assert [one.outcome.said for one in scored] == ["Yes", None]
    found = percents(benchmark.figures(scored))
    assert found["Overall"] == round((50 + 50 + 0) / 3, 4)
    assert (found["aAcc"], found["fAcc"], found["qAcc"], found["qAcc map"]) == (50, 50, 0, 0)


def test_mathvista_goes_by_task_and_by_every_skill(write: Write, tmp_path: Path) -> None:
    free = {"question_type": "free_form", "answer_type": "integer", "answer": 7, "choices": ""}
    rows = (
        {**free, "answer_option": "", "task": "figure", "skills": "['algebra', 'counting']"},
        {**free, "answer_option": "B", "task": "figure", "skills": "counting"},
    )
    picked = {"question_type": "multi_choice", "choices": "['3', '7']", "answer_type": "text"}
    benchmark = write("MathVista", rows[0], {**rows[1], **picked})
    scored = score(benchmark, tmp_path, ["about 7", "B"], "compat")
    assert [one.outcome.said for one in scored] == [None, "B"]
    assert percents(benchmark.figures(scored)) == {
        "Overall": 50, "algebra": 0, "counting": 50, "figure": 50,
    }  # fmt: skip
    assert [one.outcome.score for one in score(benchmark, tmp_path, ["7", "7"], "strict")] == [1, 1]


@pytest.mark.parametrize(
    "name, answer, reply, scores",
    [
        ("ChartQA", "['50', '51']", "52", 1.0),
        ("ChartQA", "50", "60", 0.0),
        ("DocVQA", "['ACME Corp', 'acme']", "acme corp.", 0.9),
        ("VQAv2", str(["two"] * 3 + ["3"] * 7), "2", 0.9),
        ("MMMU", "['12', 'twelve']", "So the answer is twelve", 1.0),
    ],
)
def test_free_answers_may_be_several(
    name: str, answer: str, reply: str, scores: float, write: Write, tmp_path: Path
) -> None:
    benchmark = write(name, {"answer": answer, "split": "human"})
    (one,) = score(benchmark, tmp_path, [reply], "compat")
    assert one.outcome.score == pytest.approx(scores)


@pytest.mark.parametrize("name", [n for n, b in BENCHMARKS.items() if b.score is not None])
def test_strictly_a_reply_without_a_conclusion_says_nothing(name: str) -> None:
    benchmark = BENCHMARKS[name]
    assert benchmark.score is not None
    cells = {"answer": "A", "A": "yes", "B": "no", "question": "Which?"}
    cells |= {"question_type": "multi_choice", "answer_option": "A", "choices": "['a', 'b']"}
    outcome = benchmark.score(Row("1", cells), "<CAPTION> A </CAPTION> A", "strict")
    assert outcome == Outcome(None, 0.0)


def test_an_answer_that_is_no_letter_is_a_fault_of_the_file(write: Write, tmp_path: Path) -> None:
    benchmark = write("MMStar", options(answer="one"))
    with pytest.raises(ValueError, match="answer of row 0 is no letter: 'ONE'"):
        score(benchmark, tmp_path, ["A"], "compat")
