from functools import partial

import pytest

from stagebeam.evaluation.claim import label, write_claim
from stagebeam.evaluation.results import SEARCHES, Comparison

GAIN, LOSS, OPEN = (0.08, 0.03, 0.13, 0.002), (-0.06, -0.1, -0.02, 0.004), (0.01, -0.02, 0.04, 0.6)


def against(
    second: str,
    figures: tuple[float, float, float, float],
    n: int = 4,
    first: str = "stage_beam",
) -> Comparison:
    difference, low, high, p = figures
    return Comparison(
        first=f"{first}@{n}",
        second=second,
        first_accuracy=0.85,
        second_accuracy=0.85 - difference,
        difference=difference,
        interval=(low, high),
        p=p,
        questions=256,
        only_first=30,
        only_second=10,
    )


def test_a_gain_names_its_size_interval_and_p():
    claim = write_claim([against("greedy", GAIN), against("judge_alone", GAIN)])
    assert (
        "On 256 held-out questions stage beam with N = 4 has 85.0% right: a gain is shown over"
        " greedy (+8.0 points, 95 % interval +3.0 to +13.0, p = 0.002)." in claim
    )
    assert "also better than the judge's own model answering alone (77.0% right" in claim


def test_what_is_not_shown_is_said_not_to_be_shown():
    claim = write_claim([against("greedy", GAIN), against("majority@4", OPEN)])
    assert "a gain is shown over greedy (" in claim
    assert "neither a gain nor a loss is shown against majority of 4 (" in claim
    assert "gain is shown over majority" not in claim


def test_a_loss_is_said_plainly():
    claim = write_claim([against("greedy", OPEN), against("best_of_n@4", LOSS)])
    assert "it is shown to be worse than best of 4 (" in claim
    assert "a gain is shown" not in claim


def test_a_better_judge_alone_takes_the_credit():
    claim = write_claim([against("greedy", GAIN), against("judge_alone", LOSS)])
    assert "The judge's own model answering alone is better (91.0% right" in claim
    assert "asking it directly beats searching with it" in claim


def test_no_gain_over_the_judge_alone_leaves_the_question_open():
    claim = write_claim([against("greedy", GAIN), against("judge_alone", OPEN)])
    assert "No gain is shown over the judge's own model answering alone" in claim
    assert "does not separate search from the judge's training" in claim


def test_a_judge_that_was_not_asked_alone_is_mentioned():
    assert "was not asked alone" in write_claim([against("greedy", GAIN)])


def test_the_claim_is_for_the_largest_n_not_the_best():
    claim = write_claim([against("greedy", GAIN, n=2), against("greedy", OPEN, n=16)])
    assert "N = 16" in claim and "N = 2 " not in claim
    assert "a gain is shown" not in claim


def test_without_stage_beam_nothing_is_claimed_of_it():
    assert "nothing is claimed" in write_claim([])
    claim = write_claim([against("greedy", GAIN, first="retrace")])
    assert "Stage beam was not measured" in claim and "questions retracing with N = 4" in claim


def test_retracing_has_a_claim_of_its_own_behind_that_of_stage_beam():
    retrace = partial(against, first="retrace")
    ours = [retrace("greedy", GAIN), retrace("stage_beam@4", LOSS), against("greedy", OPEN)]
    claim = write_claim(ours)
    first, second = claim.split("On 256 held-out questions ")[1:]
    assert first.startswith("stage beam with N = 4 has") and "neither a gain nor" in first
    assert second.startswith("retracing with N = 4 has") and "a gain is shown over greedy" in second
    assert "it is shown to be worse than stage beam, N = 4" in second


DOUBT = "The judge was not measured, so no gain from search is claimed."


@pytest.mark.parametrize("alone", [GAIN, LOSS, OPEN])
def test_with_a_doubt_about_the_judge_no_difference_is_called_a_gain(alone):
    comparisons = [
        against("greedy", GAIN),
        against("majority@4", LOSS),
        against("judge_alone", alone),
    ]
    claim = write_claim(comparisons, DOUBT)
    assert claim.endswith(DOUBT)
    assert "it has more right than greedy (+8.0 points" in claim
    assert "it is shown to be worse than majority of 4 (" in claim
    assert "a gain is shown" not in claim and "also better" not in claim


@pytest.mark.parametrize(
    "figures, shown",
    [
        (GAIN, 1),
        (LOSS, -1),
        (OPEN, 0),
        ((0.05, 0.001, 0.1, 0.06), 0),  # the interval excludes zero, the exact test does not agree
        ((0.05, -0.001, 0.1, 0.04), 0),  # and the other way round
    ],
)
def test_shown_needs_both_the_interval_and_the_exact_test(figures, shown):
    assert against("greedy", figures).shown == shown


def test_every_method_has_a_name_for_people():
    names = ["greedy", "judge_alone", *(f"{method}@2" for method in (*SEARCHES, "oracle"))]
    assert len({label(name) for name in names}) == len(names)
    assert label("majority@2") == "majority of 2"
