"""MMVet's review (Yu et al., arXiv 2308.02490): a judge model grades an answer from 0.0 to 1.0.

In `compat` a reply that is no such number is asked for again, four times and warmer each time, as
VLMEvalKit does, and then the answer's grade is 0; in `strict` it is 0 at once. Both are counted.
"""

from __future__ import annotations

from stagebeam.evaluation.benchmarks.benchmark import Row
from stagebeam.evaluation.review.judge import Judge, Reply, Review
from stagebeam.evaluation.scorers.conclusion import Mode, Outcome

PROMPT = "mmvet-1"

_TRIES = {"compat": 5, "strict": 1}
_WARMER = 0.5  # than the try before
_TASK = """\
You grade an answer to a question about an image against the correct answer. The grade is one of \
0.0 (wholly wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9 and 1.0 (wholly right).
<AND> in the correct answer joins parts that are all needed for 1.0; an answer with some of them \
gets a share. <OR> joins parts of which any one is enough for 1.0.
Reply with the grade alone."""
_EXAMPLES = (  # question, correct answer, answer, grade
    ("Which sizes are in stock?", "S <AND> XL", "Only M", "0.0"),
    ("Which sizes are in stock?", "S <AND> XL", "XL", "0.5"),
    ("Which sizes are in stock?", "S <AND> XL", "S or M, hard to say", "0.5"),
    ("Which sizes are in stock?", "S <AND> XL", "Both S and XL are", "1.0"),
    ("What is the animal on the left?", "puma <OR> cougar", "A cougar at rest", "1.0"),
    (
        "Why is the drawing funny?",
        "The cat reads a book on how to train people while its owner, who believes that he trains "
        "the cat, reads one on how to train cats. Each thinks that it is in charge.",
        "A man and his cat are both reading books about training.",
        "0.4",
    ),
    (
        "Why is the drawing funny?",
        "The cat reads a book on how to train people while its owner, who believes that he trains "
        "the cat, reads one on how to train cats. Each thinks that it is in charge.",
        "The owner studies how to train his cat, and the cat studies how to train its owner, so "
        "each believes that it has the upper hand.",
        "1.0",
    ),
)


async def grade(row: Row, answer: str | None, mode: Mode, judge: Judge) -> Review:
    """The answer's grade. The judge is not asked about an answer that says nothing: that is 0."""
    if answer is None or not answer.strip():
        return Review(Outcome(None, 0.0))
    prompt = _prompt(row, answer)
    replies: list[Reply] = []
    for number in range(_TRIES[mode]):
        reply = await judge.ask(prompt, PROMPT, warmer=_WARMER * number)
        replies.append(reply)
        if reply.text is None:
            break  # its tries are used up
        found = read_grade(reply.text)
        if found is not None:
            return Review(Outcome(f"{found:g}", found), tuple(replies), len(replies) - 1)
    unread = sum(not reply.failed for reply in replies)
    return Review(Outcome(None, 0.0), tuple(replies), unread)


def read_grade(reply: str) -> float | None:
    """The number from 0 to 1 that is all of the reply, else None."""
    try:
        found = float(reply)
    except ValueError:
        return None
    return found if 0 <= found <= 1 else None


def _prompt(row: Row, answer: str) -> str:
    gold = row.cells["answer"].strip()
    for joint in ("<AND>", "<OR>"):
        gold = gold.replace(joint, f" {joint} ")
    asked = (row.cells["question"].strip(), " ".join(gold.split()), answer.strip())
    examples = [_case(*example[:3]) + f" {example[3]}" for example in _EXAMPLES]
    return "\n\n".join((_TASK, *examples, _case(*asked)))


def _case(question: str, gold: str, answer: str) -> str:
    return f"Question: {question}\nCorrect answer: {gold}\nAnswer: {answer}\nGrade:"
