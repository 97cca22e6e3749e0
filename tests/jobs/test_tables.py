"""The command that writes the paper's tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.tables import main


def run_folder(folder: Path, name: str, percent: float) -> Path:
    path = folder / name / "benchmarks" / "MMVet" / "figures.json"
    path.parent.mkdir(parents=True)
    overall = {"percent": percent, "count": 9, "interval": None}
    told = {
        "benchmark": "MMVet",
        "mode": "compat",
        "published": True,
        "methods": {"greedy": {"failed": 0, "figures": {"Overall": overall}}},
    }
    path.write_text(json.dumps(told))
    (folder / name / "recipe.yaml").write_text(f"name: {name}\n")
    return folder / name


def test_runs_stand_beside_the_published_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [run_folder(tmp_path, "direct", 41.5), run_folder(tmp_path, "stages", 43.5)]
    main(runs)
    printed = capsys.readouterr().out
    for title in ("Main results", "Structured tags", "Scaling over N, on MMVet"):
        assert f"## {title}\n" in printed
    assert "| no search, N = 1 | 60.3 | 41.5 | 43.5 |" in printed
    assert "| direct, greedy (ours) |" in printed and "| stages, greedy (ours) |" in printed
    main(runs, output=tmp_path / "tables.md")
    assert (tmp_path / "tables.md").read_text() == printed


def test_a_folder_without_figures_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([tmp_path])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        f"error: There are no figures in {tmp_path}/benchmarks/NAME/figures.json.\n"
    )
