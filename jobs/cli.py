"""`stagebeam`: one name for the jobs. `stagebeam train ...` is `python -m jobs.train ...`.

A job is imported only when it is asked for, so that the list of commands appears at once.
"""

from __future__ import annotations

import runpy
import sys

import typer

COMMANDS = {
    "quickstart": "Draw data, train, serve, search and report, on this machine.",
    "prepare": "Write the recipe's sources as shards with a manifest.",
    "annotate": "Have a teacher write a data set of staged answers.",
    "validate": "Check a recipe against its shards and model, before any GPU is taken.",
    "estimate": "Predict memory, time and disk of a recipe's training.",
    "simulate": "Predict replicas, latency and price of serving, and hours of training.",
    "train": "Train the recipe's model on its shards.",
    "judge": "Train a judge from the generator's own mistakes.",
    "evaluate": "Ask held-out questions by every search method and write a report.",
    "tables": "Write the paper's tables with the figures of evaluations beside them.",
    "calibrate": "Find the scores that are good enough for the search that goes back.",
    "preferences": "Write the winners and losers of traces as pairs to train on.",
    "serve": "Serve the recipe's generator and judge over HTTP.",
    "submit": "Run a job here or on a cluster, follow it, and end as it ends.",
    "ask": "Ask a served model, and watch its search in the terminal.",
    "render": "Write what a cluster needs to run a recipe: KubeRay's objects, or for ray up.",
    "trace": "Write a saved trace as a page that needs no network.",
}

main = typer.Typer(
    name="stagebeam",
    help="Train a vision-language model to reason in stages, and search over them when it answers.",
    no_args_is_help=True,
    add_completion=False,
)


def _forward(context: typer.Context) -> None:
    """Run the job as a script with the arguments as they came; its own parser reads them."""
    sys.argv[1:] = context.args
    runpy.run_module(f"jobs.{context.info_name}", run_name="__main__", alter_sys=True)


for _name, _help in COMMANDS.items():
    main.command(
        _name,
        help=_help,
        # Everything, `--help` too, is the job's.
        context_settings={
            "allow_extra_args": True,
            "ignore_unknown_options": True,
            "help_option_names": [],
        },
    )(_forward)

if __name__ == "__main__":
    main()
