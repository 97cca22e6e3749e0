"""Serve the recipe over HTTP until interrupted: `python -m jobs.serve RECIPE`.

Starts Ray on this machine, or joins the cluster that it was submitted to. Ctrl-C stops it.
"""

from __future__ import annotations

import signal
import threading

import typer
from rich.console import Console

from jobs.arguments import RecipeFile
from jobs.cluster import ray_session
from jobs.errors import run_job
from serve.app import required_serve, serving
from stagebeam.recipe import load_recipe

_EXAMPLE = """Serving {model} at {url} (Ctrl-C stops). Open that in a browser, or ask it:

curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{{"model": "{model}", \
"messages": [{{"role": "user", "content": "What is 3 plus 4?"}}]}}'
"""


def main(recipe: RecipeFile) -> None:
    """Serve the recipe's generator and judge over HTTP until interrupted."""

    def job() -> None:
        loaded = load_recipe(recipe)
        config = required_serve(loaded)
        with ray_session(), serving(config, loaded.search) as url:
            example = _EXAMPLE.format(model=config.model_name, url=url)
            Console().print(example, markup=False, highlight=False, soft_wrap=True)
            _wait_for_interrupt()

    run_job(job)


def _wait_for_interrupt() -> None:
    """Return at the first Ctrl-C or SIGTERM, so that everything started is stopped in order."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()


if __name__ == "__main__":
    typer.run(main)
