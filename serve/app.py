"""The Serve application, derived from the recipe: generator, judge, searcher, gateway."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import RayServeException
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from serve import generator as generator_room
from serve import judge as judge_room
from serve.gateway import Gateway
from serve.generator import GeneratorReplica
from serve.judge import JudgeReplica
from serve.keys import load_keys
from serve.options import engine_options, gateway_options, searcher_options, traces_options
from serve.searcher import Searcher
from serve.traces import KeptTraces
from stagebeam.recipe import EngineConfig, Recipe, SearchConfig, ServeConfig, load_recipe

EngineConfigT = TypeVar("EngineConfigT", bound=EngineConfig)

APP = "stagebeam"
READY_TIMEOUT_S = 60.0

_ROOT = Path(__file__).parents[1]
# Between two looks at what is still under way, and for the last bytes of the last answer.
_DRAIN_STEP_S = 0.2


class AppArgs(BaseModel, extra="forbid"):
    """Arguments of `serve run serve.app:app_from_recipe recipe=path.yaml`: a path from the current
    folder, or from the repository's root."""

    recipe: str


def app_from_recipe(args: AppArgs) -> serve.Application:
    """The application of a recipe file. Raises ValueError if it has no `serve` section."""
    path = Path(args.recipe)
    recipe = load_recipe(path if path.exists() else _ROOT / path)
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
    judge too; and one for traces where there may be several gateways. Loaders run inside the
    replicas."""
    engine, judging = _found_anywhere(config.generator), _found_anywhere(config.judge)
    generators = _deployed(GeneratorReplica, engine_options(config, "generator", engine))
    if judging.on_generator:
        generator, judge = generators.bind(engine, generator_loader, judging), None
    else:
        generator = generators.bind(engine, generator_loader)
        judges = _deployed(JudgeReplica, engine_options(config, "judge", judging))
        judge = judges.bind(judging, judge_loader)
    searchers = _deployed(Searcher, searcher_options(config))
    searcher = searchers.bind(generator, judge, config.placement, judging)
    several = config.gateway.max_replicas > 1
    traces = _deployed(KeptTraces, traces_options(config)).bind() if several else None
    gateways = _deployed(serve.ingress()(Gateway), gateway_options(config))
    keys = load_keys(config.keys)  # here: replicas may run where the variables are not set
    engines = generator, judge
    return gateways.bind(config, _readable_anywhere(search), searcher, engines, traces, keys)


def _deployed(replica: type, options: dict[str, Any]) -> serve.Deployment:
    return serve.deployment(**options)(replica)


@contextmanager
def serving(config: ServeConfig, search: SearchConfig, **loaders: Any) -> Iterator[str]:
    """Serve on the Ray cluster of this process; yields the base URL once questions are answered.

    On exit no new questions are taken, those under way have `drain_seconds` to end, and Serve is
    stopped. Raises ValueError if the port cannot be used or the application does not start.
    """
    try:
        yield start(config, search, **loaders)
        # In a thread of its own: a handle refuses to wait where an event loop runs.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(_drain, config.drain_seconds).result()
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


def _drain(seconds: float) -> None:
    """Serve's own shutdown closes the proxies, and with them the connections of whoever waits."""
    until = time.monotonic() + seconds
    searchers = serve.get_deployment_handle("searcher", APP)
    under_way = True
    while under_way and time.monotonic() < until:
        try:
            under_way = any(searchers.broadcast("drain").results(timeout_s=seconds))
        except (RayServeException, RayActorError, TimeoutError):
            return  # nobody is left to wait for
        time.sleep(_DRAIN_STEP_S)


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
