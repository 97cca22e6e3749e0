from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

from stagebeam.inference.types import Candidate, Usage, Verdict


def test_usage_adds_every_counter() -> None:
    one = Usage(*range(1, len(fields(Usage)) + 1))
    assert one + one == Usage(*(2 * n for n in range(1, len(fields(Usage)) + 1)))
    assert one + Usage() == one


def test_a_constant_position_bias_cancels_in_the_margin() -> None:
    assert Verdict(forward=2.0 + 0.7, backward=2.0 - 0.7).margin == 2.0


def test_the_mean_log_probability_is_a_token_and_an_empty_candidate_has_one() -> None:
    assert Candidate(0, "a b", 4, -6.0, "stop").mean_logprob == -1.5
    assert Candidate(0, "", 0, 0.0, "end").mean_logprob == 0.0


def test_search_imports_neither_torch_nor_ray() -> None:
    code = "import sys, stagebeam.search; print({'torch', 'ray'} & set(sys.modules))"
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        check=True,
        text=True,
    )
    assert told.stdout.strip() == "set()"
