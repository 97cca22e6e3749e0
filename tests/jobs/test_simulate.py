"""`stagebeam simulate`: tables for people, JSON for programs, a sentence for mistakes."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from jobs.simulate import FOLDER, main
from stagebeam.capacity.costs import load_costs

CPU, H100 = FOLDER / "wider-model-cpu.json", FOLDER / "h100-11b-assumed.json"


def simulate(*arguments: str) -> tuple[int, str, str]:
    import typer

    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_every_figure_is_marked_as_predicted_and_assumptions_are_told() -> None:
    code, out, _ = simulate(str(H100), "--rate", "10")
    assert code == 0
    assert "costs are assumed, what follows is predicted" in out
    assert "Nothing here was measured on a GPU" in out
    titles = [line for line in out.splitlines() if "predicted)" in line]
    assert len(titles) == 4


def test_json_holds_what_it_was_made_from() -> None:
    code, out, _ = simulate(
        str(H100), "--rate", "10", "--rate", "20", "--rows", "1000", "--gpus", "8", "--json"
    )
    found = json.loads(out)
    assert code == 0
    assert found["predicted"] is True
    assert found["costs"] == load_costs(H100).model_dump()
    assert [plan["per_minute"] for plan in found["serving"]] == [10.0, 20.0]
    assert [each["gpus"] for each in found["training"]] == [8]


def test_costs_without_training_are_costs_of_serving() -> None:
    code, out, _ = simulate(str(CPU), "--rate", "10")
    assert code == 0
    assert "epoch" not in out


def test_mistakes_are_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    broken = tmp_path / "costs.json"
    broken.write_text("{}")
    for arguments, said in (
        ((str(tmp_path / "absent.json"),), "There is no costs file"),
        ((str(broken),), "is not a costs file"),
        ((str(H100), "--p95", "1"), "with nothing else to do"),
    ):
        code, out, err = simulate(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert said in err
        assert err.count("\n") == 1
