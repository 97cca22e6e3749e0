"""The table of real sizes in the docs is what the estimate says."""

from __future__ import annotations

import pytest

from jobs.sizes import MEMORY_GIB, PAGE, RECIPES, ROOT, replaced, size_of, table
from stagebeam.recipe import load_recipe


def rows(*names: str) -> list[str]:
    folder = ROOT / "jobs" / "recipes"
    text = table([size_of(load_recipe(folder / f"{name}.yaml")) for name in names])
    return text.splitlines()


def test_the_page_has_the_predictions_of_the_papers_recipe() -> None:
    """All of them are looked at in the slow tests."""
    page = PAGE.read_text(encoding="utf-8").splitlines()
    assert set(rows(RECIPES[0])) <= set(page)


@pytest.mark.slow
def test_the_page_is_what_the_command_writes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert replaced(page, "\n".join(rows(*RECIPES)) + "\n") == page


def test_models_have_the_parameters_that_are_published() -> None:
    counts = {
        "llava-o1-llama3.2-11b-1n8g-zero3": 10_670_220_835,
        "llava-o1-llama3.2-90b-4n8g-zero3": 88_593_355_323,
        "llava-o1-qwen2.5-vl-7b-1n8g-zero3": 8_292_166_656,
    }
    for name, count in counts.items():
        size = size_of(load_recipe(ROOT / "jobs" / "recipes" / f"{name}.yaml"))
        assert sum(size.full.parameters.values()) == count
        peak = size.full.batches[-1].memory.peak / 2**30
        assert peak < 0.9 * MEMORY_GIB["H100"], "the recipe's comment says that it fits"
        assert size.typical.duration and size.full.duration
        assert size.typical.duration.hours < size.full.duration.hours
