"""Guesses: where they come from, and how many are worth a pass."""

from __future__ import annotations

import pytest

from stagebeam.inference.drafts import LOOK_BACK, Ahead, Draft, Drafter

A, B, C, D, E = range(5)
HALF = [0.5] * 9  # a row that can take eight guesses


def drafter(longest: int = 8, price: float = 100.0) -> Drafter:
    return Drafter(longest, price)


def written(known: Drafter, tokens: list[int], number: float = 0.5) -> None:
    """A row draws these tokens one by one, each with the same number."""
    for at in range(LOOK_BACK, len(tokens)):
        row = Ahead(tokens[at - LOOK_BACK : at], [number])
        known.learn(row, Draft(), tokens[at : at + 1])


def drafted(known: Drafter, *rows: Ahead) -> list[list[int]]:
    return [draft.tokens for draft in known.draft(rows)]


def told(known: Drafter, row: Ahead, *tokens: int, times: int = 1) -> None:
    """A row is guessed, and writes these tokens."""
    for _ in range(times):
        (draft,) = known.draft([row])
        known.learn(row, draft, tokens)


def test_what_was_written_is_guessed_where_a_text_goes_the_same_way() -> None:
    known = drafter()
    assert drafted(known, Ahead([A, B, C], HALF)) == [[]]
    written(known, [A, B, C, D, E, A])
    assert drafted(known, Ahead([A, B, C], HALF)) == [[D, E, A]]
    assert drafted(known, Ahead([E, E, E], HALF)) == [[]]


def test_a_prompt_is_guessed_from_too() -> None:
    known = drafter()
    known.read([A, B, C, D])
    assert drafted(known, Ahead([A, B, C], HALF)) == [[D]]


def test_the_longest_context_that_is_known_decides() -> None:
    known = drafter()
    written(known, [A, B, C, D])
    written(known, [E, B, C, E])
    assert drafted(known, Ahead([A, B, C], HALF))[0][0] == D
    assert drafted(known, Ahead([E, B, C], HALF))[0][0] == E
    assert drafted(known, Ahead([D, B, C], HALF))[0][0] in (D, E)


def test_the_nearest_number_tells_the_token() -> None:
    """As it does where logits are equal: the token is a step function of the number."""
    known = drafter(longest=1)
    for number, token in ((0.1, D), (0.4, E), (0.9, A)):
        written(known, [A, B, C, token], number)
    for number, token in ((0.0, D), (0.2, D), (0.3, E), (0.5, E), (0.7, A), (0.99, A)):
        assert drafted(known, Ahead([A, B, C], [number, 0.5])) == [[token]]


def test_guesses_stop_at_the_setting_and_at_what_a_row_may_still_write() -> None:
    known = drafter(longest=2)
    written(known, [A, B, C] * 5)
    assert [known.room(left) for left in (1, 2, 3, 9)] == [0, 1, 2, 2]
    assert drafted(known, Ahead([A, B, C], HALF[:3])) == [[A, B]]
    assert drafted(known, Ahead([A, B, C], HALF[:2])) == [[A]]
    assert drafted(known, Ahead([A, B, C], HALF[:1])) == [[]]


def test_the_setting_0_guesses_nothing() -> None:
    known = drafter(longest=0)
    written(known, [A, B, C] * 5)
    assert known.room(9) == 0 and drafted(known, Ahead([A, B, C], HALF)) == [[]]


def test_guesses_that_fail_are_made_no_more_and_come_back_once_they_would_hold() -> None:
    known = drafter(price=10)
    row = Ahead([A, B, C], HALF[:2])
    written(known, [A, B, C, D])
    assert drafted(known, row) == [[D]]
    for token in (E, A, B) * 40:  # whatever was drawn last, the next one is another
        told(known, row, token)
    assert drafted(known, row) == [[]]
    before = known.drafted
    told(known, row, D, times=10)
    assert known.drafted == before  # it is seen that they would hold before any is taken up
    told(known, row, D, times=60)
    assert drafted(known, row) == [[D]]


def test_what_came_true_is_counted() -> None:
    known = drafter()
    written(known, [A, B, C, D, E, A])
    told(known, Ahead([A, B, C], HALF), D, E, B)
    assert (known.drafted, known.accepted) == (3, 2)


@pytest.mark.parametrize("price", [4.0, 24.0, 1000.0])
def test_a_fuller_pass_takes_fewer_guesses_a_row_and_a_dearer_one_more(price: float) -> None:
    def mean_of(rows: int, price: float) -> float:
        known = drafter(price=price)
        written(known, [A, B, C, D, E] * 4)
        told(known, Ahead([A, B, C], HALF), D, E, A, B, C, D, E, A, B, times=10)
        drafts = drafted(known, *[Ahead([A, B, C], HALF)] * rows)
        return sum(map(len, drafts)) / rows

    means = [mean_of(rows, price) for rows in (1, 8, 64)]
    assert means == sorted(means, reverse=True)
    assert mean_of(8, price) <= mean_of(8, 8 * price)


def test_what_is_not_worth_a_pass_is_not_put_into_it() -> None:
    """A pass costs 1.3 times as much with a guess; one that holds one time in five is too few."""
    known = drafter(price=24)
    written(known, [D, D, C, D])
    assert drafted(known, Ahead([A, B, C], HALF[:2])) == [[]]  # two tokens of three are unknown
    assert drafted(known, Ahead([D, D, C], HALF[:2])) == [[D]]


def test_a_pass_has_a_bounded_number_of_guesses() -> None:
    known = drafter(price=1e9)
    written(known, [A, B, C] * 5)
    drafts = drafted(known, *[Ahead([A, B, C], HALF)] * 64)
    assert sum(map(len, drafts)) == 256 - 64


def test_memory_is_bounded_and_what_is_old_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagebeam.inference.drafts._CONTEXTS", 30)
    known = drafter()
    written(known, [A, B, C, D])
    for start in range(100, 200):
        written(known, [start, start + 1, start + 2, start + 3])
    assert len(known._drawn) == 30
    assert drafted(known, Ahead([A, B, C], HALF)) == [[]]
    assert drafted(known, Ahead([199, 200, 201], HALF)) == [[202]]
    for step in range(1000):
        written(known, [A, B, C, D], step / 1000)
    assert all(len(drawn) <= 8 for drawn in known._drawn.values())
    assert all(drawn == sorted(drawn) for drawn in known._drawn.values())
