from dataclasses import replace

import pytest

from stagebeam.evaluation.answers import (
    AnswerRow,
    AnswerStore,
    compare,
    method_result,
    summarise,
)
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
