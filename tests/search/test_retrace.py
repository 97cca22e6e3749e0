"""Going back a stage where no candidate is good enough."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stagebeam.inference.types import Candidate, GenerateRequest, Judgement, Usage
from stagebeam.search import Trace, answer, events
from stagebeam.search.events import CandidatesScored, Retraced, StageDecided
from stagebeam.search.state import SearchError, UnfitError
from stagebeam.search.trace import RetraceTrace
from stagebeam.stages import STAGES, Stage, wrap


@dataclass
class Numbered:
    """The k-th candidate of a stage, over all calls, says `k`; or what `said` makes of it."""

    said: Callable[[Stage, int], str] | None = None
    finish: Callable[[Stage, int], str] = lambda stage, number: "stop"
    requests: list[GenerateRequest] = field(default_factory=list)
    drawn: dict[Stage, int] = field(default_factory=dict)

    async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
        self.requests.append(request)
        stage = next(s for s in STAGES if s.close_tag in request.stops)
        start = self.drawn.get(stage, 0)
        self.drawn[stage] = start + len(request.seeds)
        for index in range(len(request.seeds)):
            number = start + index
            body = str(number) if self.said is None else self.said(stage, number)
            text, finish = wrap(stage, body), self.finish(stage, number)
            yield Candidate(index, text, 3, -3.0, finish)  # type: ignore[arg-type]
        yield Usage(decode_tokens=3 * len(request.seeds), sequential_passes=3)


def rising(text: str) -> float:
    """Later candidates score higher."""
    return float([word for word in text.split() if word.isdigit()][-1])


@pytest.fixture
def ask(kit: SimpleNamespace, tmp_path: Path) -> Any:
    async def ask(
        generator: Any,
        judge: Any = None,
        cutoffs: dict[str, float] | None = None,
        **changed: Any,
    ) -> Trace:
        path = kit.calibration(tmp_path, **(cutoffs or {}))
        judge = judge or kit.ScriptedJudge(rising, pointwise=True)
        wanted = kit.settings(method="retrace", calibration=path, **changed)
        return await answer(kit.ask(), generator, judge, wanted, generator_id="g1", judge_id="j1")

    return ask


async def test_m_candidates_are_spread_over_the_kept_ones_of_the_stage_before(ask: Any) -> None:
    generator = Numbered()
    trace = await ask(generator, candidates=4, kept=2)
    assert [len(r.seeds) for r in generator.requests] == [4, 2, 2, 2, 2, 2, 2]
    summaries = [f"<SUMMARY> {n} </SUMMARY>" for n in (3, 2)]
    assert [r.prefix for r in generator.requests[1:3]] == summaries
    assert trace.stages[0].candidates[0].parent is None
    assert [c.parent for c in trace.stages[1].candidates] == [3, 3, 2, 2]
    assert [len(s.candidates) for s in trace.stages] == [4] * 4 and trace.retraces == ()


@pytest.mark.parametrize(("n", "kept", "spread"), [(5, 2, [3, 2]), (3, 4, [1, 1, 1]), (1, 2, [1])])
async def test_an_uneven_number_gives_the_better_ones_more(
    ask: Any, n: int, kept: int, spread: list[int]
) -> None:
    generator = Numbered()
    await ask(generator, candidates=n, kept=kept)
    captions = [r for r in generator.requests if r.stops == ("</CAPTION>",)]
    assert [len(r.seeds) for r in captions] == spread


async def test_the_answer_is_the_way_to_the_conclusion_with_the_highest_score(ask: Any) -> None:
    def score(text: str) -> float:
        return -rising(text) if "CONCLUSION" in text else rising(text)

    trace = await ask(Numbered(), SimpleJudge(score), candidates=4, kept=2)
    # The first conclusion continues reasoning 3, which continues caption 2 of summary 2.
    assert [s.winner for s in trace.stages] == [2, 2, 3, 0]
    assert trace.text == "".join(map(wrap, STAGES, "2230"))
    for before, stage in zip(trace.stages, trace.stages[1:], strict=False):
        assert stage.candidates[stage.winner].parent == before.winner
    assert [c.score for c in trace.stages[3].candidates] == [0, -1, -2, -3]


class SimpleJudge:
    """Scores without comparing; keeps its requests."""

    def __init__(self, score: Callable[[str], float]) -> None:
        self.score, self.requests = score, []

    async def compare(self, request: Any) -> Any:
        self.requests.append(request)
        scores = tuple(map(self.score, request.candidates))
        return Judgement((), Usage(judge_tokens=5), scores)


async def test_a_stage_without_a_good_enough_candidate_draws_the_stage_before_again(
    ask: Any,
) -> None:
    """Captions score their number: 0 to 3 at first, 4 to 7 after one retrace."""
    generator = Numbered()
    trace = await ask(generator, cutoffs={"CAPTION": 5.0}, candidates=4, kept=2)
    assert trace.retraces == (
        RetraceTrace(stage="CAPTION", back_to="SUMMARY", best=3.0, cutoff=5.0),
    )
    asked = [(r.stops[0], len(r.seeds)) for r in generator.requests[:6]]
    assert asked == [("</SUMMARY>", 4), *[("</CAPTION>", 2)] * 2] * 2
    summary, caption, *_ = trace.stages
    assert [c.index for c in summary.candidates] == [c.index for c in caption.candidates]
    assert len(summary.candidates) == 8 and summary.planned == 4
    assert [c.parent for c in caption.candidates] == [3, 3, 2, 2, 7, 7, 6, 6]
    assert summary.usage.decode_tokens == caption.usage.decode_tokens == 24
    seeds = [seed for r in generator.requests for seed in r.seeds]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("retraces", [0, 1, 3])
async def test_a_stage_goes_back_so_often_and_then_on_with_the_best_it_has(
    ask: Any, retraces: int
) -> None:
    trace = await ask(Numbered(), cutoffs={"REASONING": 1e9}, max_retraces=retraces)
    assert [r.stage for r in trace.retraces] == ["REASONING"] * retraces
    assert {r.back_to for r in trace.retraces} <= {"CAPTION"}
    assert len(trace.stages[1].candidates) == 4 * (1 + retraces)
    assert trace.problems == () and trace.conclusion is not None


async def test_the_summary_is_exempt(ask: Any) -> None:
    trace = await ask(Numbered(), cutoffs={"SUMMARY": 1e9})
    assert trace.retraces == ()


async def test_a_score_that_equals_the_cutoff_is_good_enough(ask: Any) -> None:
    assert (await ask(Numbered(), cutoffs={"CAPTION": 3.0})).retraces == ()


async def test_an_earlier_candidate_that_is_better_is_kept_over_those_drawn_again(
    ask: Any,
) -> None:
    def score(text: str) -> float:
        return -rising(text)

    trace = await ask(Numbered(), SimpleJudge(score), cutoffs={"CAPTION": 1.0}, max_retraces=1)
    assert len(trace.retraces) == 1
    assert trace.stages[1].winner == 0 and trace.stages[0].winner == 0


async def test_copies_under_one_parent_merge_and_are_scored_once(ask: Any) -> None:
    judge = SimpleJudge(lambda text: 0.0)
    trace = await ask(Numbered(said=lambda stage, number: "same"), judge, candidates=4)
    assert [len(r.candidates) for r in judge.requests] == [1] * 4
    assert [c.merged_into for c in trace.stages[0].candidates] == [None, 0, 0, 0]
    assert all(r.pairs == () for r in judge.requests)


async def test_the_judge_scores_after_the_text_that_is_continued(ask: Any) -> None:
    judge = SimpleJudge(rising)
    await ask(Numbered(), judge, candidates=2, kept=2)
    caption = [r for r in judge.requests if r.stage is Stage.CAPTION]
    assert [r.prefix for r in caption] == [f"<SUMMARY> {n} </SUMMARY>" for n in (1, 0)]


async def test_calls_that_run_side_by_side_count_once_in_passes(ask: Any) -> None:
    trace = await ask(Numbered(), candidates=4, kept=2)
    assert [s.usage.sequential_passes for s in trace.stages] == [3 + 1] * 4
    assert [s.usage.judge_calls for s in trace.stages] == [1, 2, 2, 2]


async def test_a_candidate_without_its_tags_is_not_scored_or_continued(ask: Any) -> None:
    class Careless(Numbered):
        async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
            async for item in super().propose(request):
                if isinstance(item, Candidate) and item.index == 3:
                    item = replace(item, text="3 </SUMMARY>")
                yield item

    judge = SimpleJudge(rising)
    trace = await ask(Careless(), judge, candidates=4, kept=2)
    assert not trace.stages[0].candidates[3].valid
    assert [c.parent for c in trace.stages[1].candidates] == [2, 2, 1, 1]
    assert trace.stages[0].candidates[3].score is None


async def test_where_all_are_cut_the_answer_ends_with_the_likeliest(ask: Any) -> None:
    def finish(stage: Stage, number: int) -> str:
        return "length" if stage is Stage.CAPTION else "stop"

    trace = await ask(Numbered(finish=finish), candidates=2, max_retraces=1)
    assert [s.stage for s in trace.stages] == ["SUMMARY", "CAPTION"]


async def test_without_any_tags_one_that_reached_its_stop_is_built_upon(ask: Any) -> None:
    class Untagged(Numbered):
        async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
            async for item in super().propose(request):
                if isinstance(item, Candidate) and not request.prefix:
                    finish = ("length", "stop")[item.index]
                    item = replace(item, text=f"{item.index} </SUMMARY>", finish=finish)
                yield item

    generator = Untagged()
    trace = await ask(generator, candidates=2)
    assert trace.stages[0].winner == 1 and len(trace.stages) == 4
    assert generator.requests[1].prefix == "1 </SUMMARY>"


async def test_a_judge_that_compares_only_is_an_error_in_one_sentence(
    kit: SimpleNamespace, ask: Any
) -> None:
    with pytest.raises(UnfitError, match="retrace needs a judge that scores each candidate"):
        await ask(Numbered(), kit.ScriptedJudge(rising))


@pytest.mark.parametrize("scores", [(1.0,), (1.0, float("nan"), 2.0, 3.0)])
async def test_scores_that_are_missing_or_no_numbers_are_a_broken_protocol(
    ask: Any, scores: tuple[float, ...]
) -> None:
    class Broken:
        async def compare(self, request: Any) -> Judgement:
            return Judgement((), Usage(), scores)

    with pytest.raises(SearchError, match="for 4 candidates of SUMMARY"):
        await ask(Numbered(), Broken())


async def test_without_its_judge_it_goes_on_by_log_probability_and_never_back(
    kit: SimpleNamespace, ask: Any
) -> None:
    trace = await ask(Numbered(), kit.FailingJudge(), cutoffs={"cutoff": 0.0}, candidates=2)
    assert trace.retraces == () and trace.problems == ()
    assert [s.winner for s in trace.stages] == [0] * 4
    assert trace.usage.judge_failures == 8


async def test_a_limit_finishes_the_best_so_far(ask: Any) -> None:
    trace = await ask(Numbered(), candidates=4, max_answer_tokens=32)
    assert trace.limited == "tokens"
    assert trace.text.startswith("<SUMMARY> 2 </SUMMARY><CAPTION> 3 </CAPTION>")
    assert [s.stage for s in trace.stages] == ["SUMMARY", "CAPTION", "REST"]
    assert trace.usage.decode_tokens <= 32


async def test_branches_that_draw_side_by_side_share_what_is_left(ask: Any) -> None:
    generator = Numbered()
    await ask(generator, candidates=4, max_answer_tokens=100)
    caption = [r for r in generator.requests if r.stops == ("</CAPTION>",)]
    # 75 to search with; the four summaries took 12.
    assert [r.sampling.max_new_tokens for r in caption] == [63 // 4] * 2


async def test_its_winners_are_told_in_order_at_the_end_and_its_retraces_before(
    kit: SimpleNamespace, tmp_path: Path
) -> None:
    wanted = kit.settings(method="retrace", calibration=kit.calibration(tmp_path, CONCLUSION=5.0))
    judge = kit.ScriptedJudge(rising, pointwise=True)
    told = [
        event
        async for event in events(
            kit.ask(), Numbered(), judge, wanted, generator_id="g1", judge_id="j1"
        )
    ]
    decided = [e.visit for e in told if isinstance(e, StageDecided)]
    assert decided == [0, 1, 2, 3]
    first = next(i for i, e in enumerate(told) if isinstance(e, StageDecided))
    assert any(isinstance(e, Retraced) for e in told[:first])
    assert not any(isinstance(e, CandidatesScored | Retraced) for e in told[first:])


async def test_a_failing_branch_ends_the_other(kit: SimpleNamespace, ask: Any) -> None:
    stopped = asyncio.Event()

    class Half(Numbered):
        async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
            if not request.prefix:
                async for item in super().propose(request):
                    yield item
            elif "3" in request.prefix:
                await asyncio.sleep(0.01)
                raise ConnectionError("a replica died")
            else:
                try:
                    await asyncio.Event().wait()
                finally:
                    stopped.set()

    with pytest.raises(ConnectionError, match="a replica died"):
        await ask(Half())
    assert stopped.is_set()


async def test_it_needs_a_calibration_of_these_models(kit: SimpleNamespace, tmp_path: Path) -> None:
    async def ask(
        path: Path | None, generator_id: str = "g1", judge_id: str = "j1", **changed: Any
    ) -> None:
        wanted = kit.settings(method="retrace", calibration=path, **changed)
        await answer(
            kit.ask(),
            Numbered(),
            SimpleJudge(rising),
            wanted,
            generator_id=generator_id,
            judge_id=judge_id,
        )

    path = kit.calibration(tmp_path)
    await ask(path)
    await ask(None, max_retraces=0)  # never goes back
    for wrong, words in (
        ((None,), "retrace needs a calibration; make one with `stagebeam calibrate`."),
        ((tmp_path / "none.json",), "There is no calibration at"),
        ((path, "g2"), "made with the generator g1, and this one is g2; calibrate again."),
        ((path, "g1", "j2"), "made with the judge j1, and this one is j2"),
    ):
        with pytest.raises(ValueError, match=words):
            await ask(*wrong)  # type: ignore[arg-type]
