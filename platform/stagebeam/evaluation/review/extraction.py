"""MathVista's review (Lu et al., arXiv 2310.02255): a judge finds the short answer in a long one.

An answer that the rule can read is scored by the rule alone. For the others the judge writes the
short answer, and the rule reads that; a failed call or an unreadable one is wrong, and counted.
"""

from __future__ import annotations

from stagebeam.evaluation.benchmarks.benchmark import Row
from stagebeam.evaluation.benchmarks.scoring import score_mathvista
from stagebeam.evaluation.review.judge import Judge, Review
from stagebeam.evaluation.scorers.conclusion import Mode, Outcome

PROMPT = "mathvista-1"

_TASK = """\
Find the final answer in a response to a question, in the form that the question's hint asks for. \
Do not solve the question and do not correct the response. Reply with the final answer alone."""
_EXAMPLES = (  # question with its hint, response, final answer
    (
        "Hint: Please answer with an integer and give the final value, such as 1, 2 or 3.\n"
        "Question: How many bars are taller than the red one?",
        "Looking from left to right, four of the bars are taller than the red one.",
        "4",
    ),
    (
        "Hint: Please answer with a number with one decimal place and give the final value.\n"
        "Question: What share of the circle is shaded?",
        "Three of the ten equal parts are shaded, so the shaded share is 0.3 of the circle.",
        "0.3",
    ),
    (
        "Hint: Please answer with a number with two decimal places and give the final value.\n"
        "Question: What do two pencils cost? (Unit: $)",
        "One pencil costs $0.65, and therefore two of them come to $1.30 in all.",
        "1.30",
    ),
    (
        "Hint: Please answer with a Python list and give the final list, such as [1, 2, 3].\n"
        "Question: Between which two months do sales fall the most?",
        "The steepest fall of the line is from month 5 to month 6.",
        "[5, 6]",
    ),
    (
        "Hint: Please give the letter of the right option, such as A, B, C or D.\n"
        "Question: How long is the side AB?\nChoices:\n(A) 3\n(B) 4\n(C) 5",
        "By the theorem of Pythagoras, AB is the root of 9 + 16, which makes it 5.",
        "C",
    ),
)


async def extract(row: Row, answer: str | None, mode: Mode, judge: Judge) -> Review:
    """By the rule, where it can read the answer, else by what the judge finds in it."""
    if answer is None or not answer.strip():
        return Review(Outcome(None, 0.0))
    found = score_mathvista(row, answer, mode)
    if found.said is not None:
        return Review(found)
    reply = await judge.ask(_prompt(row, answer), PROMPT)
    if reply.text is None:
        return Review(Outcome(None, 0.0), (reply,))
    outcome = score_mathvista(row, reply.text.strip(), mode)
    if outcome.said is None:  # compat reads numbers only where they are right
        readable = score_mathvista(row, reply.text.strip(), "strict").said
        outcome = Outcome(readable, outcome.score)
    return Review(outcome, (reply,), int(outcome.said is None))


def _prompt(row: Row, answer: str) -> str:
    asked = _case(row.cells["question"].strip(), answer.strip())
    examples = [_case(*example[:2]) + f" {example[2]}" for example in _EXAMPLES]
    return "\n\n".join((_TASK, *examples, asked))


def _case(question: str, response: str) -> str:
    return f"{question}\nResponse: {response}\nFinal answer:"
