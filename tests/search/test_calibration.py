from __future__ import annotations

from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace
from typing import Any

import pytest

from stagebeam.search import Trace, answer
from stagebeam.search.calibration import (
    Calibration,
    Row,
    calibrate,
    cutoff,
    read_calibration,
    write_calibration,
)
from stagebeam.stages import STAGES, Stage

ROWS = [Row(id="one", digest="aa"), Row(id="two", digest="bb")]


async def traces(kit: SimpleNamespace, judge: Any = None, **changed: Any) -> list[Trace]:
    judge = judge or kit.ScriptedJudge(lambda text: float(len(text)), pointwise=True)
    return [
        await answer(
            kit.ask(f"Question {number}?"),
            kit.SeededGenerator(),
            judge,
            kit.settings(**{"method": "retrace", "max_retraces": 0, **changed}),
            generator_id="g1",
            judge_id="j1",
        )
        for number in range(3)
    ]


async def test_a_stages_cutoff_is_the_mean_and_a_quarter_of_the_deviation_of_its_scores(
    kit: SimpleNamespace,
) -> None:
    answered = await traces(kit)
    made = calibrate(answered, ROWS)
    assert (made.generator, made.judge, made.z) == ("g1", "j1", 0.2533)
    for place, stage in enumerate(STAGES):
        drawn = [c for t in answered for c in t.stages[place].candidates]
        scores = [float(len(c.text)) for c in drawn]
        figures = made.stages[stage]
        assert figures.count == len(scores) == 12
        assert figures.mean == pytest.approx(fmean(scores))
        assert figures.cutoff == pytest.approx(fmean(scores) + 0.2533 * stdev(scores))
        assert cutoff(made, stage) == figures.cutoff
    assert made.rows == tuple(ROWS)


async def test_another_z_moves_the_cutoffs(kit: SimpleNamespace) -> None:
    answered = await traces(kit)
    figures = calibrate(answered, ROWS, z=2.0).stages[Stage.CAPTION]
    assert figures.cutoff == pytest.approx(figures.mean + 2 * figures.std)


async def test_copies_count_as_often_as_they_were_said(kit: SimpleNamespace) -> None:
    texts = ["1", "1", "1", "5"]
    script = {s.close_tag: [kit.Say(f"<{s}> {t} </{s}>") for t in texts] for s in STAGES}
    judge = kit.ScriptedJudge(kit.by_number, pointwise=True)
    wanted = kit.settings(method="retrace", max_retraces=0, kept=1)
    trace = await answer(
        kit.ask(), kit.ScriptedGenerator(script), judge, wanted, generator_id="g", judge_id="j"
    )
    figures = calibrate([trace], ROWS).stages[Stage.SUMMARY]
    assert (figures.count, figures.mean) == (4, 2.0)


async def test_without_scores_there_is_no_calibration(kit: SimpleNamespace) -> None:
    for answered in (
        await traces(kit, kit.ScriptedJudge(len), method="stage_beam"),
        (await traces(kit, candidates=1))[:1],
    ):
        with pytest.raises(ValueError, match=r"not two scores of SUMMARY, .*kind likelih"):
            calibrate(answered, ROWS)


async def test_scores_of_several_models_are_not_mixed(kit: SimpleNamespace) -> None:
    one, two, *_ = await traces(kit)
    with pytest.raises(ValueError, match="2 pairs of models"):
        calibrate([one, two.model_copy(update={"generator": "g2"})], ROWS)


async def test_a_file_comes_back_as_it_was_and_its_fingerprint_changes_with_it(
    kit: SimpleNamespace, tmp_path: Path
) -> None:
    made = calibrate(await traces(kit), ROWS)
    path = tmp_path / "deep" / "calibration.json"
    write_calibration(made, path)
    assert read_calibration(path) == made
    other = calibrate(await traces(kit), ROWS, z=1.0)
    write_calibration(other, path)
    assert read_calibration(path) == other != made  # read again, since it changed
    assert other.fingerprint != made.fingerprint


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not a calibration: the file: "),
        ('{"schema_version": 2}', "is not a calibration: schema_version: "),
        ("{}", "is not a calibration: generator: Field required"),
    ],
)
def test_what_is_no_calibration_is_refused_in_one_sentence(
    tmp_path: Path, content: str, words: str
) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=words) as refused:
        read_calibration(path)
    assert "\n" not in str(refused.value)


async def test_a_run_on_rows_that_it_was_made_on_is_refused(kit: SimpleNamespace) -> None:
    made: Calibration = calibrate(await traces(kit), ROWS)
    made.check_rows({"cc": "three"}, "the benchmark")
    with pytest.raises(ValueError, match=r"1 of the questions of the benchmark .* example q-2;"):
        made.check_rows({"bb": "q-2", "cc": "three"}, "the benchmark")
