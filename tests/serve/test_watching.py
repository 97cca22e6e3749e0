"""What an operator sees: Ray's own Prometheus endpoint, the dashboard made for it, the logs."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from bad_requests import ask, body, data_url
from own_cluster import own_cluster
from scripted_app import scripted

from jobs.benchmarks.serve_chaos import replica_pids
from stagebeam.recipe import Autoscaling

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "cluster" / "grafana" / "stagebeam.json"
PATIENCE_S = 60.0
SCALING = Autoscaling(num_cpus=0.25)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("engine-log")
    with (
        own_cluster(_system_config={"metrics_report_interval_ms": 1000}),
        scripted(log, generators=SCALING, judges=SCALING, candidates=3) as base,
    ):
        yield base


def post(url: str, request: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=request, timeout=PATIENCE_S)


def scraped() -> str:
    (node,) = ray.nodes()
    where = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    return httpx.get(where, timeout=PATIENCE_S).text


def names_in(text: str) -> set[str]:
    return set(re.findall(r"^(ray_\w+)[{ ]", text, re.MULTILINE))


def eventually(found: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not found():
        assert time.monotonic() < until
        time.sleep(0.5)


def value(name: str, **labels: str) -> float:
    """Sum over the series with these labels."""
    total = 0.0
    for line in scraped().splitlines():
        series, _, number = line.rpartition(" ")
        if series.startswith(name + "{") and all(f'{k}="{v}"' in series for k, v in labels.items()):
            total += float(number)
    return total


def asked_of(dashboard: dict[str, Any]) -> list[str]:
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_every_query_of_the_dashboard_names_metrics_that_are_there(url: str) -> None:
    image = {"model": "scripted", "messages": ask("Which colour?", data_url())}
    assert post(url, image).status_code == 200
    assert post(url, body("mute")).status_code == 200  # a judge that fails
    with ThreadPoolExecutor(1) as pool:  # and a replica that dies
        slow = pool.submit(post, url, body("slow"))
        time.sleep(0.3)
        for pid in replica_pids("generator"):
            os.kill(pid, signal.SIGKILL)
        assert slow.result().status_code == 200
    queries = asked_of(json.loads(DASHBOARD.read_text()))
    asked = {name for query in queries for name in re.findall(r"ray_\w+", query)}
    assert len(asked) > 10
    missing: set[str] = asked

    def all_there() -> bool:
        nonlocal missing
        missing = asked - names_in(scraped())
        return not missing

    try:
        eventually(all_there)
    except AssertionError:
        pytest.fail(f"nobody reports {sorted(missing)}")


def test_answers_are_counted_by_method_and_outcome(url: str) -> None:
    def count(method: str, outcome: str) -> float:
        return value("ray_stagebeam_answers_total", method=method, outcome=outcome)

    before = count("majority", "answered"), count("stage_beam", "refused")
    for _ in range(3):
        assert post(url, body(search={"method": "majority"})).status_code == 200
    assert post(url, body("marker")).status_code == 400
    eventually(lambda: count("majority", "answered") == before[0] + 3)
    eventually(lambda: count("stage_beam", "refused") == before[1] + 1)


def test_each_line_about_a_question_names_its_trace_and_its_request(url: str) -> None:
    trace = post(url, body("slow lines", search={"include_trace": True})).json()["trace"]
    folder = Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve"
    files = list(folder.glob("replica_stagebeam_*.log"))

    def lines() -> list[tuple[str, dict[str, Any]]]:
        return [
            (path.name.split("_")[2], json.loads(line))
            for path in files
            for line in path.read_text().splitlines()
        ]

    def told() -> list[tuple[str, dict[str, Any]]]:
        return [line for line in lines() if line[1].get("trace_id") == trace["id"]]

    eventually(lambda: {"gateway", "searcher", "generator", "judge"} <= {who for who, _ in told()})
    (request,) = {line["request_id"] for _, line in told()}
    of_request = [line for line in lines() if line[1].get("request_id") == request]
    of_engines = [line for who, line in of_request if who in ("generator", "judge")]
    assert of_engines and all(line.get("trace_id") == trace["id"] for line in of_engines)
    assert any("was answered after" in line["message"] for _, line in told())
