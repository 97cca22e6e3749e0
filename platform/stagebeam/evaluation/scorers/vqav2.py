"""VQAv2's accuracy (Antol et al., arXiv 1505.00468; Goyal et al., arXiv 1612.00837).

Ten people answered each question; a reply is right as far as three of them said the same, averaged
over leaving each of them out. Texts are made alike first, as the public evaluation does, here for
every question (it leaves them as they are where all ten agree).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from statistics import fmean

from stagebeam.evaluation.scorers.punctuation import without_punctuation

ENOUGH = 3  # people who said the same

_ARTICLES = {"a", "an", "the"}
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(_DIGITS)}}
# Written with an apostrophe missing, these get it back.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've
mustn't must've needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've
someone'd someone'd've someone'll someone's something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll
you're you've
"""


def _misspelt(word: str) -> set[str]:
    """The word without each choice of its apostrophes."""
    first, *rest = word.split("'")
    return {
        first + "".join(mark + part for mark, part in zip(marks, rest, strict=True))
        for marks in product(("", "'"), repeat=len(rest))
    }


_WITH_APOSTROPHE = {wrong: word for word in _CONTRACTIONS.split() for wrong in _misspelt(word)}


def vqa_accuracy(said: str, answers: Sequence[str]) -> float:
    """From 0 to 1. `answers` are those of all people, repetitions included."""
    reply, known = plain(said), [plain(answer) for answer in answers]
    same = known.count(reply)
    return fmean(min(1.0, (same - (answer == reply)) / ENOUGH) for answer in known)


def plain(text: str) -> str:
    """Lower case, digits for small numbers, no articles, little punctuation, one space."""
    words = without_punctuation(text.replace("\n", " ").replace("\t", " ").strip()).lower().split()
    said = (_NUMBERS.get(word, word) for word in words)
    return " ".join(_WITH_APOSTROPHE.get(word, word) for word in said if word not in _ARTICLES)
