from dataclasses import replace

import pytest

from stagebeam.evaluation.answers import (
    AnswerRow,
    AnswerStore,
    compare,
    method_result,
    summarise,
)
from stagebeam.evaluation.results import JudgeCard
from stagebeam.evaluation.statistics import wilson
from stagebeam.records import Example, Message
from stagebeam.search.trace import CandidateTrace, StageTrace, Trace, UsageTrace
from stagebeam.stages import STAGES, render


def example(name: str = "q1", gold: str = "two") -> Example:
    turns = (Message("user", "How many?"), Message("assistant", "!"))
    return Example(name, (), turns, "test", answer=gold, category="count")


def trace(*said: str, winner: int = 0, **usage: int) -> Trace:
    """Whole answers with these conclusions."""
    texts = [render(dict.fromkeys(STAGES, one)) for one in said]
    stage = StageTrace(
        stage="ANSWER",
        planned=len(texts),
        candidates=tuple(
            CandidateTrace(index=i, text=t, tokens=9, logprob=-1, finish="stop", valid=True)
            for i, t in enumerate(texts)
        ),
        winner=winner,
        usage=UsageTrace(),
    )
    return Trace(
        id="-".join(said),
        messages=(),
        image_digests=(),
        method="best_of_n",
        candidates=len(said),
        tournament="none",
        temperature=1.0,
        top_p=1.0,
        seed=0,
        generator="g",
        judge=None,
        stages=(stage,),
        text=texts[winner],
        conclusion=said[winner],
        problems=(),
        usage=UsageTrace(**usage),
    )


def row(method: str, name: str, right: bool, n: int = 1, seconds: float = 1.0, **usage: int):
    found = trace("two" if right else "six", **usage)
    return AnswerRow.of(method, n, example(name), found, seconds)


def test_a_trace_is_scored_by_its_conclusion_and_the_oracle_by_any_candidates():
    scored = AnswerRow.of("best_of_n", 2, example(), trace("six", "two", winner=0), 1.5)
    assert (scored.correct, scored.oracle, scored.conclusion) == (False, True, "six")
    hopeless = AnswerRow.of("best_of_n", 2, example(), trace("six", "ten"), 1.5)
    assert hopeless.oracle is False


def test_a_result_has_means_of_the_counters_and_the_median_of_the_seconds():
    rows = [
        row("greedy", "a", True, seconds=1, decode_tokens=10, judge_tokens=2),
        row("greedy", "b", True, seconds=2, decode_tokens=20, judge_tokens=4),
        row("greedy", "c", False, seconds=60, decode_tokens=60, judge_tokens=0),
    ]
    result = method_result(rows)
    assert (result.correct, result.questions) == (2, 3)
    assert result.cost.tokens == 30
    assert result.cost.judge_tokens == 2
    assert result.cost.seconds == 2
    assert result.by_category["count"].questions == 3


def test_a_failed_question_is_wrong_is_counted_and_has_no_cost():
    rows = [
        row("greedy", "a", True, decode_tokens=10),
        AnswerRow.failure("greedy", 1, example("b"), "APIConnectionError: down", 99),
    ]
    result = method_result(rows)
    assert (result.accuracy, result.questions, result.failed) == (0.5, 2, 1)
    assert result.failures == {"APIConnectionError: down": 1}
    assert (result.cost.tokens, result.cost.seconds) == (10, 1)


def test_a_method_that_always_failed_has_no_result():
    rows = [AnswerRow.failure("greedy", 1, example(), "APIConnectionError: down", 1)]
    with pytest.raises(ValueError, match="All 1 questions to greedy failed: APIConnectionError"):
        method_result(rows)


def test_methods_are_paired_by_question_whatever_the_order():
    rows = {
        "stage_beam@2": [row("stage_beam", "a", True), row("stage_beam", "b", False)],
        "greedy": [row("greedy", "b", False), row("greedy", "a", False)],
    }
    found = compare("stage_beam@2", "greedy", rows)
    assert (found.only_first, found.only_second, found.difference) == (1, 0, 0.5)


def test_methods_that_were_asked_other_questions_are_not_compared():
    rows = {"stage_beam@2": [row("stage_beam", "a", True)], "greedy": [row("greedy", "b", True)]}
    with pytest.raises(ValueError, match="not asked the same questions"):
        compare("stage_beam@2", "greedy", rows)


def test_a_summary_compares_stage_beam_with_every_method_of_its_n_and_the_judge_alone():
    rows = {"greedy": [row("greedy", "a", True)], "judge_alone": [row("judge_alone", "a", True)]}
    for n in (2, 4):
        for method in ("majority", "best_of_n", "stage_beam"):
            rows[f"{method}@{n}"] = [row(method, "a", True, n, decode_tokens=7, judge_tokens=3)]
    found = summarise(rows)
    assert [(c.first, c.second) for c in found.comparisons] == [
        (f"stage_beam@{n}", other)
        for n in (2, 4)
        for other in ("greedy", f"majority@{n}", f"best_of_n@{n}", "judge_alone")
    ]
    assert set(found.oracle) == set(found.majority) == {"2", "4"}


def test_every_method_has_its_figures_and_retracing_is_compared_like_stage_beam():
    methods = ("majority", "best_of_n", "sentence_beam", "stage_beam", "retrace")
    rows = {"greedy": [row("greedy", "a", True)]}
    rows |= {f"{m}@2": [row(m, "a", True, 2, decode_tokens=7)] for m in methods}
    found = summarise(rows)
    assert all(getattr(found, method)["2"].cost.tokens == 7 for method in methods)
    assert [(c.first, c.second) for c in found.comparisons] == [
        *(("stage_beam@2", other) for other in ("greedy", *(f"{m}@2" for m in methods[:3]))),
        *(("retrace@2", other) for other in ("greedy", *(f"{m}@2" for m in methods[:4]))),
    ]


def test_the_oracle_is_right_where_any_candidate_is_and_wrong_where_none_is():
    rows = {
        "greedy": [row("greedy", name, False) for name in "abc"],
        "best_of_n@2": [
            AnswerRow.of("best_of_n", 2, example(name), trace(*said), 1)
            for name, said in (("a", ("six", "two")), ("b", ("two", "two")), ("c", ("six", "ten")))
        ],
    }
    found = summarise(rows)
    assert found.best_of_n["2"].correct == 1
    assert found.oracle["2"].correct == 2


def test_the_oracle_costs_what_majority_costs_or_best_of_n_without_its_judge():
    rows = {
        "greedy": [row("greedy", "a", True)],
        "best_of_n@2": [row("best_of_n", "a", False, 2, decode_tokens=20, judge_tokens=9)],
    }
    assert summarise(rows).oracle["2"].cost.judge_tokens == 0
    assert summarise(rows).oracle["2"].cost.tokens == 20
    rows["majority@2"] = [row("majority", "a", True, 2, decode_tokens=18)]
    assert summarise(rows).oracle["2"].cost.tokens == 18


def test_every_method_and_the_judge_alone_are_held_against_greedy():
    rows = {
        "greedy": [row("greedy", "a", False), row("greedy", "b", True)],
        "majority@2": [row("majority", "b", True, 2), row("majority", "a", True, 2)],
        "judge_alone": [row("judge_alone", "a", False), row("judge_alone", "b", False)],
    }
    found = {c.first: c for c in summarise(rows).against_greedy}
    assert {c.second for c in found.values()} == {"greedy"}
    assert (found["majority@2"].only_first, found["majority@2"].only_second) == (1, 0)
    assert (found["judge_alone"].only_first, found["judge_alone"].only_second) == (0, 1)


def test_methods_at_equal_tokens_are_never_compared_with_a_cheaper_one():
    rows = {"greedy": [row("greedy", "a", True, decode_tokens=1)]}
    for name, n, tokens in (("majority", 2, 20), ("majority", 8, 80), ("stage_beam", 2, 20)):
        judged = 30 if name == "stage_beam" else 0
        spent = {"decode_tokens": tokens, "judge_tokens": judged}
        rows[f"{name}@{n}"] = [row(name, "a", name == "majority", n, **spent)]
    found = {(e.first, e.method): e for e in summarise(rows).equal_tokens}
    ours = found["stage_beam@2", "majority"]
    assert (ours.first_tokens, ours.second, ours.second_tokens) == (50, "majority@8", 80)
    assert ours.comparison is not None and ours.comparison.only_second == 1
    dear = found["majority@8", "stage_beam"]
    assert (dear.second, dear.second_tokens, dear.comparison) == ("stage_beam@2", 50, None)


def bad(text: str, finish: str = "stop", valid: bool = True, index: int = 1) -> CandidateTrace:
    return CandidateTrace(index=index, text=text, tokens=9, logprob=-1, finish=finish, valid=valid)


def test_fallbacks_are_counted_by_kind():
    whole = trace("two", judge_failures=3)
    worse = (bad("no tags", valid=False), bad("cut", "length", valid=False, index=2))
    stage = whole.stages[0]
    stage = stage.model_copy(update={"candidates": (*stage.candidates, *worse)})
    limited = whole.model_copy(update={"stages": (stage,), "limited": "tokens"})
    mute = whole.model_copy(update={"text": "nothing", "conclusion": None, "stages": ()})
    rows = [
        AnswerRow.of("best_of_n", 2, example("a"), limited, 1),
        AnswerRow.of("best_of_n", 2, example("b"), mute, 1),
        AnswerRow.failure("best_of_n", 2, example("c"), "down", 1),
    ]
    counted = method_result(rows).fallbacks
    assert counted is not None
    assert counted.model_dump() == {
        "unread": 1,
        "untagged": 2,
        "cut": 1,
        "limited": 1,
        "judge_failures": 6,
    }


def test_a_conclusion_that_names_no_option_could_not_be_read():
    choices = replace(example(gold="B"), choices=("one", "two"))
    for said, unread in (("B", 0), ("A", 0), ("two", 0), ("C", 1), ("one or two", 1)):
        found = AnswerRow.of("greedy", 1, choices, trace(said), 1)
        assert found.fallbacks is not None and found.fallbacks.unread == unread, said


def test_answers_of_a_release_that_did_not_count_fallbacks_have_none():
    old = row("greedy", "a", True).model_copy(update={"fallbacks": None})
    assert method_result([old, row("greedy", "b", True)]).fallbacks is None


def test_only_a_judge_with_a_card_above_chance_lets_a_gain_be_claimed():
    names = [str(number) for number in range(40)]
    rows = {
        "greedy": [row("greedy", name, False) for name in names],
        "stage_beam@2": [row("stage_beam", name, True, 2) for name in names],
    }

    def claim(right: int) -> str:
        low, high = wilson(right, 100)
        shares = {"accuracy": right / 100, "interval": (low, high), "pairs": 100}
        rest = {"ties": 0, "swap_consistency": 1, "mean_margin": 0, "first_position_share": None}
        return summarise(rows, JudgeCard(**shares, **rest, correct=right, by_stage={})).claim

    assert "a gain is shown over greedy" in claim(80)
    for doubtful in (claim(55), claim(20), summarise(rows).claim):
        assert "gain is shown" not in doubtful and "no gain from search is claimed" in doubtful
        assert "it has more right than greedy" in doubtful
    assert "was not measured on pairs with known answers" in summarise(rows).claim
    assert "not shown to be better than chance (55.0% of 100 pairs" in claim(55)


def test_a_store_opened_again_knows_what_is_finished_but_asks_failures_anew(tmp_path):
    store = AnswerStore(tmp_path)
    store.add(row("greedy", "a", True), trace("two"))
    store.add(AnswerRow.failure("greedy", 1, example("b"), "down", 1), None)
    again = AnswerStore(tmp_path)
    assert again.finished("greedy", 1, example("a")) is not None
    assert again.finished("greedy", 1, example("b")) is None
    assert again.finished("majority", 1, example("a")) is None
    assert again.finished("greedy", 1, replace(example("a"), answer="9")) is None
    assert set(again.traces()) == {"two"}
    assert AnswerStore(tmp_path, fresh=True).empty
    assert not again._traces.exists()


def test_a_line_that_a_killed_run_left_half_written_is_dropped(tmp_path):
    store = AnswerStore(tmp_path)
    store.add(row("greedy", "a", True), trace("two"))
    for name in ("answers.jsonl", "traces.jsonl"):
        with (tmp_path / name).open("a") as lines:
            lines.write('{"method": "gre')
    again = AnswerStore(tmp_path)
    again.add(row("greedy", "b", True), trace("six"))
    assert set(AnswerStore(tmp_path).traces()) == {"two", "six"}
    assert AnswerStore(tmp_path).finished("greedy", 1, example("b")) is not None


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "answers.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"answers\.jsonl:1 is not an answer"):
        AnswerStore(tmp_path)
