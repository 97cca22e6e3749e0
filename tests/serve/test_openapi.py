"""The OpenAPI document is true: `schemathesis` asks what it allows, and what it does not."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from local_app import LIMITS, app_of, quiet_generator, quiet_judge, served_here

from serve.app import serving
from serve.keys import Key
from stagebeam.gateway_config import KeysConfig
from stagebeam.recipe import Autoscaling, EngineConfig, JudgeConfig, Limits, ServeConfig
from stagebeam.search_config import SearchConfig

SECRET = "sk-test-0123456789abcdef"
# A valid question may still be one that cannot be searched with: two settings that do not go
# together, the last turn the assistant's. The schema does not say it, and the answer is a 400.
CHECKS = ("--checks", "all", "--exclude-checks", "positive_data_acceptance")
SHORT = ("--phases", "coverage,fuzzing")  # without sequences of requests
PATIENT = ("--request-timeout", "60", "--suppress-health-check", "all")
MANY = 10_000


def conforming(url: str, folder: Path, *options: str) -> int:
    """Requests made, all of them answered as the document says, and none with a 5xx."""
    tool = Path(sys.executable).with_name("schemathesis")
    run = subprocess.run(
        [tool, "run", f"{url}/openapi.json", *CHECKS, "--no-color", *options],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-5_000:] + run.stderr[-2_000:]
    counted = re.search(r"(\d+) generated, (\d+) passed", run.stdout)
    assert counted is not None and counted[1] == counted[2]
    return int(counted[1])


def test_replies_are_what_the_document_says(tmp_path: Path) -> None:
    roomy = LIMITS.model_copy(update={"max_questions": 1_000})
    with served_here(app_of(limits=roomy)) as url:
        assert conforming(url, tmp_path, "-n", "10", *SHORT) > 400


def test_so_are_those_of_a_server_with_keys(tmp_path: Path) -> None:
    keys = (Key("test", hashlib.sha256(SECRET.encode()).digest()),)
    config = KeysConfig(env=("X",), requests_per_minute=100_000)
    with served_here(app_of(keys=keys, keys_config=config)) as url:
        login = ("-H", f"Authorization: Bearer {SECRET}")
        assert conforming(url, tmp_path, "-n", "5", "--include-method", "GET", *SHORT, *login) > 20


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_requests_to_the_served_application(cluster: None, tmp_path: Path) -> None:
    scaling = Autoscaling(num_cpus=0.25)
    config = ServeConfig(
        port=0,
        generator=EngineConfig(model="-", scaling=scaling),
        judge=JudgeConfig(model="-", scaling=scaling),
        limits=Limits(max_questions=1_000, max_candidates=4),
    )
    loaders = {"generator_loader": quiet_generator, "judge_loader": quiet_judge}
    done = 0
    with serving(config, SearchConfig(candidates=2), **loaders) as url:
        for seed in range(100):
            done += conforming(url, tmp_path, "-n", "1000", "--seed", str(seed), *PATIENT)
            if done >= MANY:
                print(f"{done} requests, each answered as the document says")
                return
    pytest.fail(f"only {done} requests were made")


def document(**fields: Any) -> dict[str, Any]:
    with served_here(app_of(**fields)) as url:
        found: dict[str, Any] = httpx.get(f"{url}/openapi.json").json()
        return found


def test_it_says_what_this_server_takes() -> None:
    found = document()
    schemas = found["components"]["schemas"]
    chat, search = (schemas[name]["properties"] for name in ("ChatRequest", "SearchFields"))
    assert chat["model"]["const"] == "scripted"
    assert chat["messages"]["maxItems"] == LIMITS.max_turns
    assert chat["max_tokens"]["anyOf"][0]["maximum"] == LIMITS.max_new_tokens
    assert search["candidates"]["anyOf"][0]["maximum"] == LIMITS.max_candidates
    assert search["method"]["anyOf"][0]["enum"] == list(LIMITS.methods or ())
    posted = found["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert sorted(posted) == ["200", "400", "404", "408", "413", "415", "500", "503"]
    assert set(posted["200"]["content"]) == {"application/json", "text/event-stream"}
    assert "securitySchemes" not in found["components"]


def test_keys_are_in_it_where_they_are_wanted() -> None:
    found = document(keys=(), keys_config=KeysConfig(env=("X",)))
    assert found["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in found["paths"].items():
        for operation in operations.values():
            guarded = path.startswith("/v1/")
            assert ("security" in operation) is guarded
            assert ({"401", "429"} <= set(operation["responses"])) is guarded
