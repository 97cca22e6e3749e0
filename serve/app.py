"""The Serve application, derived from the recipe: generator, judge, searcher, gateway."""

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel
from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from serve import generator as generator_room
from serve import judge as judge_room
from serve.gateway import Gateway
from serve.generator import GeneratorReplica
from serve.judge import JudgeReplica
from serve.keys import load_keys
from serve.searcher import Searcher
from stagebeam.recipe import (
    Autoscaling,
    EngineConfig,
    Recipe,
    SearchConfig,
    ServeConfig,
    load_recipe,
)

EngineConfigT = TypeVar("EngineConfigT", bound=EngineConfig)

APP = "stagebeam"
READY_TIMEOUT_S = 60.0

# Calls that a replica takes in for each row of a batch: the engine, not Serve, does the batching.
_CALLS_PER_ROW = 4
# Keeps a session id on one replica of a deployment.
_ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
# The searcher and the gateway wait more than they compute.
_LIGHT = {"num_cpus": 0.1}
_GATEWAY_CALLS = 10_000
# A dead replica is noticed, and replaced, after this long.
_HEALTH_CHECK_PERIOD_S = 2.0
# A model that cannot be loaded is not loaded twenty times over (Serve's default).
_LOAD_ATTEMPTS = 2


class AppArgs(BaseModel, extra="forbid"):
    """Arguments of `serve run serve.app:app_from_recipe recipe=path.yaml`."""

    recipe: str


def app_from_recipe(args: AppArgs) -> serve.Application:
    """The application of a recipe file. Raises ValueError if it has no `serve` section."""
    recipe = load_recipe(args.recipe)
    return build_app(required_serve(recipe), recipe.search)


def required_serve(recipe: Recipe) -> ServeConfig:
    """The recipe's `serve` section. Raises ValueError where there is none."""
    if recipe.serve is None:
        raise ValueError(f"The recipe '{recipe.name}' has no serve section.")
    return recipe.serve


def build_app(
    config: ServeConfig,
    search: SearchConfig,
    *,
    generator_loader: generator_room.Loader = generator_room.load,
    judge_loader: judge_room.Loader = judge_room.load,
) -> serve.Application:
    """Four deployments, named as in the module's first line; three where the generator's replicas
    judge too. Loaders run inside the replicas."""
    searcher = serve.deployment(
        name="searcher",
        ray_actor_options=_LIGHT,
        max_ongoing_requests=config.limits.max_questions,
        max_queued_requests=config.limits.max_questions,
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
    )(Searcher)
    gateway = serve.deployment(
        name="gateway",
        ray_actor_options=_LIGHT,
        max_ongoing_requests=_GATEWAY_CALLS,
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
    )(serve.ingress()(Gateway))
    engine, judging = _found_anywhere(config.generator), _found_anywhere(config.judge)
    deployed = _engine_deployment(GeneratorReplica, "generator", engine.scaling)
    if judging.on_generator:
        generator, judge = deployed.bind(engine, generator_loader, judging), None
    else:
        generator = deployed.bind(engine, generator_loader)
        separate = _engine_deployment(JudgeReplica, "judge", judging.scaling)
        judge = separate.bind(judging, judge_loader)
    keys = load_keys(config.keys)  # here: replicas may run where the variables are not set
    searching = searcher.bind(generator, judge)
    return gateway.bind(config, _readable_anywhere(search), searching, keys)


@contextmanager
def serving(config: ServeConfig, search: SearchConfig, **loaders: Any) -> Iterator[str]:
    """Serve on the Ray cluster of this process; yields the base URL once questions are answered.

    Stops Serve on exit. Raises ValueError if the port cannot be used or the application does not
    start.
    """
    try:
        yield start(config, search, **loaders)
    finally:
        serve.shutdown()


def start(config: ServeConfig, search: SearchConfig, **loaders: Any) -> str:
    """Deploy and wait until /healthz answers; returns the base URL. `serve.shutdown()` stops it."""
    port = _free_port(config.host, config.port)
    serve.start(http_options=HTTPOptions(host=config.host, port=port))
    try:
        serve.run(build_app(config, search, **loaders), name=APP)
    except RuntimeError as error:
        raise ValueError(f"The application did not start: {_why(error)}") from error
    shown = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
    url = f"http://{shown}:{port}"
    _wait_until_healthy(url)
    return url


def _found_anywhere(config: EngineConfigT) -> EngineConfigT:
    """A local folder by its absolute path: replicas run in folders of their own."""
    folder = Path(config.model)
    if config.engine == "openai" or not folder.exists():  # a server's name may look like a path
        return config
    return config.model_copy(update={"model": str(folder.absolute())})


def _readable_anywhere(search: SearchConfig) -> SearchConfig:
    """The calibration by its absolute path, for the same reason."""
    if search.calibration is None:
        return search
    return search.model_copy(update={"calibration": search.calibration.absolute()})


def _engine_deployment(replica: type, name: str, scaling: Autoscaling) -> serve.Deployment:
    options = serve.deployment(
        name=name,
        ray_actor_options={"num_cpus": scaling.num_cpus, "num_gpus": scaling.num_gpus},
        max_ongoing_requests=_CALLS_PER_ROW * scaling.max_batch_rows,
        autoscaling_config=AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            target_ongoing_requests=scaling.target_ongoing_requests,
            upscale_delay_s=scaling.upscale_delay_s,
            downscale_delay_s=scaling.downscale_delay_s,
            # Serve's defaults see load only after half a minute.
            metrics_interval_s=1.0,
            look_back_period_s=5.0,
        ),
        # A question's calls find the keys and values of their prefix on the same replica.
        request_router_config={"request_router_class": _ROUTER},
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        max_constructor_retry_count=_LOAD_ATTEMPTS,
    )
    return options(replica)


def _free_port(host: str, port: int) -> int:
    """`port` if it can be listened on, any free one for 0."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(f"Port {port} of {host} cannot be used: {error.strerror}.") from None
        return int(probe.getsockname()[1])


def _why(error: RuntimeError) -> str:
    """The last line of the first deployment that failed, else Serve's own message."""
    application = serve.status().applications.get(APP)
    for deployment in application.deployments.values() if application else ():
        lines = deployment.message.strip().splitlines()
        if deployment.status.name.endswith("FAILED") and lines:
            return lines[-1].removeprefix("ValueError: ")
    return str(error)


def _wait_until_healthy(url: str) -> None:
    for attempt in Retrying(
        retry=retry_if_exception_type(httpx.HTTPError),
        stop=stop_after_delay(READY_TIMEOUT_S),
        wait=wait_fixed(0.1),
        reraise=True,
    ):
        with attempt:
            httpx.get(f"{url}/healthz", timeout=30.0).raise_for_status()
