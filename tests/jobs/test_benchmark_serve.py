"""The serving benchmark: how it loads a server, what it calls lost and changed, and a short run."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from jobs.benchmarks import serve as benchmark
from jobs.benchmarks.figures import write_figures
from jobs.benchmarks.search_models import Lesson, taught_folder
from jobs.benchmarks.serve_chaos import figures_of
from jobs.benchmarks.serve_load import Reply, arrivals, ask_at, decisions, percentile

LESSON = Lesson("miniature", layers=2, steps=60, rows_a_step=16, learning_rate=5e-3)


def test_arrivals_are_poisson_at_the_rate_and_the_same_for_a_seed() -> None:
    due = arrivals(4.0, 4000, seed=1)
    gaps = np.diff(due)
    assert due[0] == 0 and min(gaps) > 0
    assert np.mean(gaps) == pytest.approx(0.25, rel=0.05)
    assert np.std(gaps) == pytest.approx(0.25, rel=0.1)  # as wide as its mean
    assert due == arrivals(4.0, 4000, seed=1) != arrivals(4.0, 4000, seed=2)


async def test_a_server_that_is_not_there_costs_answers_and_not_the_run() -> None:
    replies = await ask_at("http://127.0.0.1:9", [{}, {}], [0.0, 0.05])
    assert [(reply.status, reply.decisions) for reply in replies] == [(0, None)] * 2


def test_lost_and_changed_are_told_apart() -> None:
    calm = [Reply(1.0, 200, name) for name in "abcd"]
    disturbed = [
        Reply(3.0, 200, "a"),
        Reply(2.0, 200, "other"),
        Reply(5.0, 503, None),
        Reply(1.0, 200, "d"),
    ]
    figures = figures_of(calm, disturbed, kills=7)
    assert (figures.lost, figures.changed, figures.kills) == (1, 1, 7)
    assert (figures.worst_s, figures.worst_calm_s) == (5.0, 1.0)
    with pytest.raises(ValueError, match="1 questions had no answer in calm"):
        figures_of(disturbed, calm, kills=0)


def test_percentiles_are_of_all_questions() -> None:
    replies = [Reply(float(second), 200, "") for second in range(101)]
    assert (percentile(replies, 50), percentile(replies, 99)) == (50, 99)


def test_decisions_leave_out_what_they_cost() -> None:
    def trace(seconds: float, winner: int) -> dict[str, object]:
        stage = {
            "stage": "SUMMARY",
            "winner": winner,
            "candidates": [{"text": "one", "tokens": 3}],
            "matches": [{"a": 0, "b": 1, "winner": winner, "margin": seconds}],
            "usage": {"seconds": seconds},
        }
        return {"id": "i", "text": "one", "stages": [stage], "usage": {"seconds": seconds}}

    assert decisions(trace(1.0, 0)) == decisions(trace(2.0, 0)) != decisions(trace(1.0, 1))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_run_leaves_all_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "_LOADS", ((0.3, 2), (0.6, 2)))
    monkeypatch.setattr(benchmark, "_AT_ONCE", 2)
    folder = taught_folder(LESSON, tmp_path)
    console = Console(file=io.StringIO(), width=120)
    figures = benchmark.run(folder, folder, 2, 8, console)
    output = tmp_path / "serve.json"
    write_figures(figures, output, console, benchmark.tables(figures))
    written = json.loads(output.read_text())
    assert written["same_answers"] == len(written["served_over_in_process_pairs"]) == 2
    assert (written["lost"], written["changed"]) == (0, 0)
    for name in ("served_over_in_process", "throughput_8_over_1", "p50_s", "p99_s"):
        assert written[name] > 0
    assert all(value > 0 for hop, value in written["hops_ms"].items() if "searcher" not in hop)
