from __future__ import annotations

from dataclasses import replace

import pytest

from stagebeam.search import SearchSettings
from stagebeam.search_config import SearchConfig


def test_a_recipes_search_section_becomes_settings_with_the_same_defaults() -> None:
    assert SearchSettings(**SearchConfig().model_dump()) == SearchSettings()


@pytest.mark.parametrize(
    ("n", "form"), [(1, "round_robin"), (4, "round_robin"), (5, "finals"), (16, "finals")]
)
def test_auto_is_round_robin_up_to_four_and_bracket_above(n: int, form: str) -> None:
    assert SearchSettings(candidates=n).form == form


def test_a_named_tournament_is_kept_whatever_n_is() -> None:
    assert SearchSettings(candidates=2, tournament="chain").form == "chain"
    assert SearchSettings(candidates=9, tournament="round_robin").form == "round_robin"


def test_greedy_is_one_candidate_at_temperature_zero_whatever_was_asked() -> None:
    greedy = SearchSettings(method="greedy", candidates=8, temperature=0.7)
    assert (greedy.n, greedy.sampling.temperature, greedy.needs_judge) == (1, 0.0, False)


def test_greedy_settings_can_be_overridden_back_to_a_search() -> None:
    greedy = SearchSettings(method="greedy", candidates=8, temperature=0.7)
    beam = replace(greedy, method="stage_beam")
    assert (beam.n, beam.sampling.temperature, beam.form) == (8, 0.7, "finals")


def test_only_judged_methods_with_several_candidates_need_a_judge() -> None:
    assert SearchSettings(method="best_of_n", candidates=2).needs_judge
    assert SearchSettings(method="stage_beam", candidates=2).needs_judge
    assert not SearchSettings(method="stage_beam", candidates=1).needs_judge
    assert not SearchSettings(method="majority", candidates=8).needs_judge


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            {"method": "magic"},
            "method must be one of greedy, majority, best_of_n, sentence_beam, stage_",
        ),
        (
            {"tournament": "duel"},
            "tournament must be one of chain, bracket, round_robin, finals, arrival, a",
        ),
        ({"candidates": 0}, "candidates must be at least 1"),
        ({"temperature": -0.1}, "temperature must be 0 or above"),
        ({"temperature": float("nan")}, "temperature must be 0 or above"),
        ({"temperature": 0}, "At temperature 0 all 4 candidates of stage_beam"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.1}, "at most 1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"tie_margin": -1.0}, "tie_margin must be 0 or above"),
    ],
)
def test_what_cannot_be_searched_with_is_refused_in_one_sentence(
    wrong: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        SearchSettings(**wrong)  # type: ignore[arg-type]
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)


def test_temperature_zero_is_fine_for_a_single_candidate() -> None:
    assert SearchSettings(candidates=1, temperature=0).sampling.temperature == 0
