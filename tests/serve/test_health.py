"""Health and liveness mean what they say."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from local_app import LocalSearcher, app_of
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

MODELS = {"generator": "QuietGenerator-1", "judge": "QuietJudge-1"}


class Ailing(LocalSearcher):
    """Its models are as `ails` says."""

    ails: Exception | float | None = None  # seconds without an answer

    async def fingerprints(self) -> tuple[str, str]:
        if isinstance(self.ails, float):
            await asyncio.sleep(self.ails)
        elif self.ails is not None:
            raise self.ails
        return await super().fingerprints()


async def asked(searcher: LocalSearcher, engines: LocalSearcher | None = None) -> httpx.Response:
    app = app_of(searcher, engines=engines)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://gate"
    ) as client:
        assert (await client.get("/livez")).json() == {"status": "ok"}
        return await client.get("/healthz")


@pytest.mark.parametrize(
    ("ails", "message"),
    [
        (RayActorError(), "A model replica is down; try again later."),
        (0.5, "A model replica does not answer."),
        (BackPressureError(1, 1), "The server is busy; try again later."),  # the models too
    ],
)
async def test_models_that_do_not_answer_are_no_health_and_no_death(
    ails: Exception | float, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.gateway.QUEUE_TIMEOUT_S", 0.1)
    monkeypatch.setattr("serve.gateway.HEALTH_TIMEOUT_S", 0.1)
    searcher = Ailing()
    searcher.ails = ails
    reply = await asked(searcher)
    assert (reply.status_code, reply.json()["error"]["message"]) == (503, message)
    assert reply.headers["retry-after"] == "5"


@pytest.mark.parametrize("ails", [BackPressureError(8, 8), 0.5])
async def test_a_server_with_many_questions_is_busy_and_not_ill(
    ails: Exception | float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.gateway.QUEUE_TIMEOUT_S", 0.1)
    searcher = Ailing()
    searcher.ails = ails
    reply = await asked(searcher, engines=LocalSearcher())
    assert (reply.status_code, reply.json()) == (200, {"status": "busy", **MODELS})
