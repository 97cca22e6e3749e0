"""What a whole answer costs on real engines: the floor of the design, exactly, for every method.

One image encoding a replica; the prompt prefilled once; of forward passes that wait for one
another, no more than the longest candidate of each stage and one for each judge round.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from asking import MakeEngine, prompt_of

from stagebeam.inference.verdict import EngineJudge, TransformersJudge
from stagebeam.models.load import Loaded
from stagebeam.records import Example
from stagebeam.search import SearchSettings, Trace, answer
from stagebeam.search.calibration import Row, calibrate, write_calibration
from stagebeam.search.seeds import question_key
from stagebeam.search.settings import Method

METHODS: list[tuple[Method, int]] = [
    ("greedy", 1),
    ("majority", 4),
    ("best_of_n", 4),
    ("stage_beam", 1),
    ("stage_beam", 2),
    ("stage_beam", 4),
    ("stage_beam", 8),
]


@pytest.fixture
def judge(wavering: Loaded) -> Iterator[TransformersJudge]:
    judge = TransformersJudge(wavering, kind="verdict", max_rows=64)
    yield judge
    judge.close()


def settings(method: Method, n: int) -> SearchSettings:
    return SearchSettings(method=method, candidates=n, temperature=1.0, max_new_tokens=60)


def prompt_tokens(loaded: Loaded, example: Example) -> int:
    prompt = prompt_of(example)
    return len(loaded.encoder.prompt_ids(prompt.messages, [{}] * len(prompt.images)))


def rounds(trace: Trace) -> int:
    """Calls to the judge; round 0 is the rule's."""
    return sum(len({m.round for m in stage.matches if m.round > 0}) for stage in trace.stages)


def longest(trace: Trace) -> int:
    return sum(max(c.tokens for c in stage.candidates) for stage in trace.stages)


@pytest.mark.parametrize(("method", "n"), METHODS)
async def test_an_answer_costs_no_more_than_the_floor(
    method: Method,
    n: int,
    wavering: Loaded,
    known: list[Example],
    make_engine: MakeEngine,
    judge: TransformersJudge,
) -> None:
    engine = make_engine(wavering)
    ids = {"generator_id": "g", "judge_id": "j"}
    trace = await answer(prompt_of(known[0]), engine, judge, settings(method, n), **ids)
    usage = trace.usage
    assert usage.image_encodes == 1 + bool(rounds(trace))  # the judge is a replica of its own
    forks = n * (len(trace.stages) - 1)  # each takes the closing tag itself
    assert usage.prefill_tokens == prompt_tokens(wavering, known[0]) + forks
    assert usage.sequential_passes <= longest(trace) + rounds(trace)
    assert usage.judge_calls == rounds(trace)
    if method == "stage_beam" and n > 1:
        assert rounds(trace) > 0  # or else the bound says little


async def test_a_judge_on_the_generator_s_replica_encodes_no_image_of_its_own(
    wavering: Loaded, known: list[Example], make_engine: MakeEngine
) -> None:
    engine = make_engine(wavering)
    judge = EngineJudge(engine, "likelihood", 64)
    ids = {"generator_id": "g", "judge_id": "j"}
    trace = await answer(prompt_of(known[0]), engine, judge, settings("stage_beam", 4), **ids)
    assert rounds(trace) and trace.usage.image_encodes == 1
    tokens = sum(c.tokens for stage in trace.stages for c in stage.candidates)
    assert trace.usage.judge_tokens <= tokens + rounds(trace)  # nothing but the candidates


async def test_questions_at_once_cost_what_each_costs_alone(
    wavering: Loaded, known: list[Example], make_engine: MakeEngine, judge: TransformersJudge
) -> None:
    engine = make_engine(wavering)
    ids = {"generator_id": "g", "judge_id": "j"}
    traces = await asyncio.gather(
        *(
            answer(prompt_of(example), engine, judge, settings("stage_beam", 4), **ids)
            for example in known
        )
    )
    for example, trace in zip(known, traces, strict=True):
        encodes = len(example.images) * (1 + bool(rounds(trace)))
        assert trace.usage.image_encodes == encodes
        assert trace.usage.sequential_passes <= longest(trace) + rounds(trace)


async def test_retracing_goes_by_the_scores_of_a_real_judge(
    wavering: Loaded, known: list[Example], make_engine: MakeEngine, tmp_path: Path
) -> None:
    """Calibrated by searches that never go back, then allowed to."""
    engine, prompt = make_engine(wavering), prompt_of(known[0])
    judge = EngineJudge(engine, "likelihood", 64)
    ids = {"generator_id": "g", "judge_id": "j"}
    free = replace(settings("stage_beam", 4), method="retrace", max_retraces=0)
    traces = [await answer(prompt, engine, judge, replace(free, seed=s), **ids) for s in range(4)]
    path = tmp_path / "calibration.json"
    write_calibration(calibrate(traces, [Row(id="known", digest=question_key(prompt))]), path)
    bound = replace(free, max_retraces=3, calibration=path)
    found = [await answer(prompt, engine, judge, replace(bound, seed=s), **ids) for s in range(8)]
    assert any(trace.retraces for trace in found)
    for trace in found:
        assert trace.conclusion is not None
        last = trace.stages[-1]
        scores = {c.index: c.score for c in last.candidates if c.score is not None}
        assert scores[last.winner] == max(scores.values())
