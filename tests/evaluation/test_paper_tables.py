"""The paper's layout, with published figures and ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from stagebeam.evaluation import published
from stagebeam.evaluation.benchmarks import BENCHMARKS
from stagebeam.evaluation.paper_tables import NONE, Run, paper_tables, read_run
from stagebeam.evaluation.tables import Table

SIX = tuple(published.BENCHMARKS.values())


def figures(name: str, methods: dict[str, float], **changes: Any) -> dict[str, Any]:
    """As an evaluation writes them."""
    return {
        "benchmark": name,
        "file": f"{name}.tsv",
        "sha256": "00",
        "published": True,
        "mode": "compat",
        "rows": 100,
        "methods": {
            method: {
                "failed": 0,
                "unmatched": 0,
                "figures": {
                    "Overall": {
                        "percent": percent,
                        "count": 100,
                        "interval": [percent - 5, percent + 5],
                    }
                },
            }
            for method, percent in methods.items()
        },
    } | changes


def write(folder: Path, *told: dict[str, Any], recipe: dict[str, Any] | None = None) -> Run:
    for one in told:
        path = folder / "benchmarks" / one["benchmark"] / "figures.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(one))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe or {"name": "ours-11b"}))
    return read_run(folder)


def row_of(table: Table, name: str) -> tuple[str, ...]:
    (row,) = (row for row in table.rows if row[0] == name)
    return row[1:]


def test_every_published_column_is_a_benchmark_that_can_be_asked():
    assert set(SIX) <= set(BENCHMARKS)


def test_published_figures_stand_marked_with_the_mean_of_their_six():
    main, ablation, scaling = paper_tables([])
    assert row_of(main, "LLaVA-CoT (published)") == (
        *("57.6", "75.0", "60.3", "54.8", "78.7", "47.8"),
        "62.4",
    )
    assert row_of(main, "Llama-3.2-11B-Vision-Instruct (published)")[-1] == "56.6"
    assert [row[0] for row in ablation.rows] == [
        "Llama-3.2-11B-Vision-Instruct (published)",
        "direct training (published)",
        "without tags (published)",
        "LLaVA-CoT (published)",
    ]
    assert [row[1] for row in scaling.rows] == ["60.3", "61.7", "62.3", "62.9", "60.9", "58.4"]
    assert [row[0] for row in scaling.rows][-2:] == ["best of 10", "sentence beam, N = 2"]


def test_ours_stand_beside_them_and_what_was_not_measured_is_a_dash(tmp_path):
    run = write(
        tmp_path,
        figures("MMStar", {"greedy": 50, "stage_beam@2": 51, "stage_beam@4": 52}),
        figures("MMVet", {"greedy": 40, "stage_beam@4": 44, "majority@4": 41}),
    )
    main, ablation, scaling = paper_tables([run])
    greedy = row_of(main, "ours-11b, greedy (ours)")
    assert greedy[0] == "50.0 (45.0 to 55.0)"
    assert greedy[1] == NONE and greedy[-1] == NONE
    assert row_of(main, "ours-11b, stage beam, N = 4 (ours)")[0].startswith("52.0")
    assert not [row for row in main.rows if "N = 2" in row[0]]
    assert row_of(ablation, "ours-11b, greedy (ours)") == greedy
    assert row_of(scaling, "stage beam, N = 4") == ("62.9", "44.0 (39.0 to 49.0)")
    assert row_of(scaling, "stage beam, N = 3") == ("62.3", NONE)
    assert row_of(scaling, "majority of 4") == (NONE, "41.0 (36.0 to 46.0)")


def test_an_average_needs_all_six(tmp_path):
    run = write(tmp_path, *(figures(name, {"greedy": 10.0 * i}) for i, name in enumerate(SIX)))
    main, ablation, _ = paper_tables([run])
    assert row_of(main, "ours-11b, greedy (ours)")[-1] == "25.0"
    assert row_of(ablation, "ours-11b, greedy (ours)")[-1] == "25.0"


def test_runs_of_the_ablation_are_told_apart_by_their_recipes_names(tmp_path):
    runs = [
        write(
            tmp_path / name,
            figures("MMStar", {"greedy": percent}),
            recipe={"name": name, "evaluation": {"benchmarks": None}},
        )
        for name, percent in (("base", 30), ("direct", 31), ("untagged", 32), ("stages", 33))
    ]
    _, ablation, scaling = paper_tables(runs)
    ours = [(row[0], row[1][:4]) for row in ablation.rows[4:]]
    assert ours == [
        ("base, greedy (ours)", "30.0"),
        ("direct, greedy (ours)", "31.0"),
        ("untagged, greedy (ours)", "32.0"),
        ("stages, greedy (ours)", "33.0"),
    ]
    assert scaling.columns[2:] == tuple(f"{run.name} (ours)" for run in runs)


@pytest.mark.parametrize(
    "changes, rows, fault",
    [
        ({"mode": "strict"}, None, "replies were read strictly"),
        ({"published": False}, None, "the file is not the published one"),
        ({}, 50, "only the first 50 rows were asked"),
        ({}, None, None),
    ],
)
def test_a_figure_that_is_not_like_the_published_one_says_why(changes, rows, fault, tmp_path):
    section = {"evaluation": {"benchmarks": {"rows": rows}}}
    told = figures("MMStar", {"greedy": 50}, **changes)
    main = paper_tables([write(tmp_path, told, recipe={"name": "ours", **section})])[0]
    cell = row_of(main, "ours, greedy (ours)")[0]
    assert cell.endswith("[a]") == (fault is not None)
    assert (f"[a] {fault}" in main.note) if fault else ("Not comparable" not in main.note)


def test_failed_calls_are_a_reason_too(tmp_path):
    told = figures("MMStar", {"greedy": 50})
    told["methods"]["greedy"]["failed"] = 3
    assert "[a] 3 calls failed" in paper_tables([write(tmp_path, told)])[0].note


def test_a_folder_without_figures_or_with_damaged_ones_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"There are no figures in .*benchmarks/NAME"):
        read_run(tmp_path)
    path = tmp_path / "benchmarks" / "MMStar" / "figures.json"
    path.parent.mkdir(parents=True)
    for text, reason in (("{", "not valid JSON"), ("[]", "not hold"), ('{"methods": 3}', "not")):
        path.write_text(text)
        with pytest.raises(ValueError, match=reason):
            read_run(tmp_path)
