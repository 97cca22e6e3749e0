"""Scorers of a benchmark's rows over the rules for replies, and how rows are asked."""

from __future__ import annotations

import string

from stagebeam.data.sources.questions import prompt as options_prompt
from stagebeam.evaluation.benchmarks.benchmark import Row
from stagebeam.evaluation.matching import (
    NO_ANSWER,
    match_choice,
    match_mathvista,
    match_yes_no,
)
from stagebeam.evaluation.scorers.chartqa import relaxed_match
from stagebeam.evaluation.scorers.conclusion import Mode, Outcome, conclusion_of
from stagebeam.evaluation.scorers.docvqa import anls
from stagebeam.evaluation.scorers.listed import listed
from stagebeam.evaluation.scorers.mmmu import mmmu_choice, mmmu_open
from stagebeam.evaluation.scorers.scienceqa import science_choice
from stagebeam.evaluation.scorers.vqav2 import vqa_accuracy
from stagebeam.search.votes import normalise

SHORT = "Answer with a single word or phrase."
YES_OR_NO = "Answer with yes or no."


def ask_options(row: Row) -> str:
    """The hint, the question and the options, a line each."""
    hint, question = row.cells.get("hint", "").strip(), row.cells["question"].strip()
    return options_prompt(question, tuple(row.choices.values()), hint)


def ask_short(row: Row) -> str:
    return f"{ask_options(row)}\n{SHORT}"


def ask_yes_no(row: Row) -> str:
    return f"{row.cells['question'].strip()}\n{YES_OR_NO}"


def ask_plain(row: Row) -> str:
    return row.cells["question"].strip()


def score_choice(row: Row, reply: str, mode: Mode) -> Outcome:
    return _chosen(row, match_choice(reply, row.choices, mode))


def score_science(row: Row, reply: str, mode: Mode) -> Outcome:
    choices = row.choices
    strict = mode == "strict"
    said = match_choice(reply, choices, mode) if strict else science_choice(reply.strip(), choices)
    return _chosen(row, said)


def score_yes_no(row: Row, reply: str, mode: Mode) -> Outcome:
    said = match_yes_no(reply, mode)
    right = said.lower() == row.cells["answer"].strip().lower()
    return Outcome(None if said == "Unknown" else said, float(right))


def score_mathvista(row: Row, reply: str, mode: Mode) -> Outcome:
    """Without a judge that extracts: what the reply says by itself."""
    asked = {**row.cells, "prediction": reply}
    found = match_mathvista({**asked, "res": reply}, mode)
    said = None if found.prefetched is None else str(found.prefetched)
    return Outcome(said, float(found.hit))


def score_mmmu(row: Row, reply: str, mode: Mode) -> Outcome:
    """A question without options has a free answer, or a list of them."""
    choices = row.choices
    if choices:
        strict = mode == "strict"
        said = match_choice(reply, choices, mode) if strict else mmmu_choice(reply, choices)
        return _chosen(row, said)
    answers = answers_of(row)
    if mode == "compat":
        return Outcome(reply, float(mmmu_open(reply, answers)))
    free = conclusion_of(reply)
    right = free is not None and normalise(free) in map(normalise, answers)
    return Outcome(free, float(right))


def score_chartqa(row: Row, reply: str, mode: Mode) -> Outcome:
    said = _said(reply, mode)
    return Outcome(said, float(said is not None and relaxed_match(said, answers_of(row))))


def score_docvqa(row: Row, reply: str, mode: Mode) -> Outcome:
    said = _said(reply, mode)
    return Outcome(said, 0.0 if said is None else anls(said, answers_of(row)))


def score_vqav2(row: Row, reply: str, mode: Mode) -> Outcome:
    said = _said(reply, mode)
    return Outcome(said, 0.0 if said is None else vqa_accuracy(said, answers_of(row)))


def answers_of(row: Row) -> list[str]:
    """The `answer` cell: a list as Python writes it, or one answer."""
    text = row.cells["answer"].strip()
    several = listed(text) if text.startswith("[") else None
    return several or [text]


def _chosen(row: Row, letter: str | None) -> Outcome:
    gold = row.cells["answer"].strip().upper()
    if gold not in string.ascii_uppercase or not gold:
        raise ValueError(f"The answer of row {row.index} is no letter: {gold!r}.")
    return Outcome(None if letter == NO_ANSWER else letter, float(letter == gold))


def _said(reply: str, mode: Mode) -> str | None:
    return reply if mode == "compat" else conclusion_of(reply)
