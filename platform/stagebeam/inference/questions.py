"""Ids of the questions of a judge's round, in which each text is tokenised once.

All questions of a round are alike up to the label before the first candidate, and each candidate
stands in several of them. A tokenizer gives the label's end, a letter before a space, a border
whatever stands around it: so what follows a label can be tokenised by itself, for each candidate
once, and put together. Where a tokenizer or a template does otherwise, which one whole question of
the round shows, and where a text has a chat marker, every question is tokenised whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from stagebeam.inference.reading import Look
from stagebeam.inference.types import JudgeRequest
from stagebeam.inference.wording import LABEL, behind_first, behind_second, verdict_messages
from stagebeam.models.encoder import RowEncoder


def question_ids(
    encoder: RowEncoder, request: JudgeRequest, orders: Sequence[tuple[int, int]], look: Look
) -> list[list[int]]:
    """For each of `orders`, in which candidates are shown, the ids up to where the judge answers.

    Raises ValueError where the template refuses the conversation.
    """
    texts = request.candidates
    joined = _joined(encoder, request, orders, look)
    if joined is not None:
        return joined
    seen = look.images, look.places
    return [
        encoder.prompt_ids(verdict_messages(request, texts[a], texts[b]), *seen) for a, b in orders
    ]


def _joined(
    encoder: RowEncoder, request: JudgeRequest, orders: Sequence[tuple[int, int]], look: Look
) -> list[list[int]] | None:
    """The same from parts; None where that would not do."""
    texts = request.candidates
    # a template may strip what stands at a message's end: the one that would show it is tried
    a, b = max(orders, key=lambda order: len(texts[order[1]]) - len(texts[order[1]].rstrip()))
    messages = verdict_messages(request, texts[a], texts[b])
    if encoder.spelling.find([*texts, *(message.text for message in messages)]) is not None:
        return None
    question = encoder.prompt_text(messages, look.images, look.places)
    _, shown, end = question.rpartition(behind_first(texts[a]) + behind_second(texts[b]))
    if not shown or LABEL in end:  # stripped; what was found may then be a quotation before it
        return None
    label = len(encoder.ids(LABEL))

    def behind(text: str) -> list[int]:
        return encoder.ids(LABEL + text)[label:]

    first = {i: behind(behind_first(texts[i])) for i in {order[0] for order in orders}}
    second = {i: behind(behind_second(texts[i]) + end) for i in {order[1] for order in orders}}
    whole, known = encoder.ids(question), first[a] + second[b]
    start = len(whole) - len(known)
    if start <= 0 or whole[start:] != known:
        return None
    return [whole[:start] + first[i] + second[j] for i, j in orders]
