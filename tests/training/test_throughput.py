"""Utilisation against numbers reckoned by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stagebeam.training.contracts import StepReport
from stagebeam.training.throughput import peak_flops, utilisation

REPORT = StepReport(
    step=1,
    loss=1.0,
    tokens=10,
    rows=4,
    ranks=3,
    learning_rate=1e-3,
    grad_norm=1.0,
    forward_flops=1e12,
    recomputed=False,
    seconds=2.0,
    data_wait_seconds=0.0,
    peak_flops=None,
    memory_bytes=0,
)


def test_mfu_counts_three_forward_passes_over_all_devices() -> None:
    assert utilisation(REPORT, peak=1e12) == pytest.approx((0.5, 0.5))


def test_recomputing_counts_for_the_hardware_alone() -> None:
    used = utilisation(replace(REPORT, recomputed=True), peak=1e12)
    assert used == pytest.approx((0.5, 4 / 6))


def test_the_recipe_says_the_peak() -> None:
    assert peak_flops(989) == 989e12
