"""Generator replicas that judge too, where image and prefix lie ready."""

from __future__ import annotations

from pathlib import Path

from ray import serve
from real_models import ask, served, write_model


def test_there_is_no_judge_deployment_and_the_image_is_encoded_once(
    cluster: None, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "tiny")
    with served(model, kind="likelihood", on_generator=True) as client:
        assert "judge" not in serve.status().applications["stagebeam"].deployments
        trace = ask(client, method="best_of_n")
        assert trace.judge is not None and trace.judge.startswith("likelihood-")
        assert trace.usage.image_encodes == 1
