"""The application over scripted engines, and who answered which calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import scripted_engines
from bad_requests import body

from jobs.benchmarks.serve_load import decisions
from serve.app import serving
from stagebeam.recipe import Autoscaling, EngineConfig, JudgeConfig, ServeConfig
from stagebeam.search_config import SearchConfig

TWO = Autoscaling(num_cpus=0.2, min_replicas=2, max_replicas=2)
PATIENCE_S = 60.0


LOADERS = {
    "generator_loader": scripted_engines.load_generator,
    "judge_loader": scripted_engines.load_judge,
}


def scripted_config(
    log: Path, generators: Autoscaling = TWO, judges: Autoscaling = TWO, **settings: Any
) -> ServeConfig:
    """Engines that write their calls into the folder `log`."""
    return ServeConfig(
        port=0,
        model_name="scripted",
        generator=EngineConfig(model=str(log), scaling=generators),
        judge=JudgeConfig(model=str(log), scaling=judges),
        **settings,
    )


def scripted_search(candidates: int) -> SearchConfig:
    return SearchConfig(candidates=candidates, max_new_tokens=32)


@contextmanager
def scripted(log: Path, *, candidates: int = 4, **settings: Any) -> Iterator[str]:
    """Serve scripted engines; `settings` are of `scripted_config`. Yields the base URL."""
    config = scripted_config(log, **settings)
    with serving(config, scripted_search(candidates), **LOADERS) as url:
        yield url


def answer(url: str, question: str, **search: Any) -> dict[str, Any]:
    request = body(question, search={"include_trace": True, **search})
    reply = httpx.post(f"{url}/v1/chat/completions", json=request, timeout=PATIENCE_S)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


class Calls:
    """Who answered the calls of one engine since this was made."""

    def __init__(self, log: Path, engine: str) -> None:
        self._log, self._engine, self._before = log, engine, set(log.iterdir())

    @property
    def pids(self) -> list[int]:
        new = (path.name.split("-") for path in set(self._log.iterdir()) - self._before)
        return [int(pid) for what, who, pid, *_ in new if (what, who) == ("started", self._engine)]


def placed(url: str, log: Path, question: str) -> tuple[str, list[list[int]]]:
    """What was decided, and who answered the calls to the generator and to the judge."""
    calls = [Calls(log, f"Scripted{who}") for who in ("Generator", "Judge")]
    return decisions(answer(url, question)["trace"]), [each.pids for each in calls]
