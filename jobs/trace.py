"""A saved trace as a page: `python -m jobs.trace TRACES [--id ID] [--output trace.html]`.

The page is one file that needs no network and no server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import run_job
from stagebeam.evaluation.report import data_uri
from stagebeam.evaluation.trace_page import trace_page
from stagebeam.search.seeds import image_digest
from stagebeam.search.trace import Trace, read_traces
from stagebeam.storage import Place, place_of


def find(path: Place, wanted: str | None) -> Trace:
    """The trace with this id, or by what it begins with; the only one of the file without it.

    Raises ValueError with one sentence where there is none, or more than one.
    """
    found = {t.id: t for t in read_traces(path) if wanted is None or t.id.startswith(wanted)}
    if wanted in found:
        return found[wanted]
    if len(found) == 1:
        return next(iter(found.values()))
    which = "no trace" if wanted is None else f"no trace with the id {wanted}"
    if not found:
        raise ValueError(f"{path} holds {which}.")
    some = ", ".join(list(found)[:3])
    raise ValueError(f"{path} holds {len(found)} traces; name one with --id, such as {some}.")


def pictures(trace: Trace, paths: list[Path]) -> list[str]:
    """The question's pictures as data URIs. Raises ValueError for one that is another's."""
    uris = []
    for path in paths:
        if not path.is_file():
            raise ValueError(f"There is no picture at {path}.")
        content = path.read_bytes()
        if image_digest(content) not in trace.image_digests:
            raise ValueError(f"{path} is not a picture of this trace's question.")
        uris.append(data_uri(content))
    return uris


def main(
    traces: Annotated[str, typer.Argument(help="Trace file (JSON lines), or its URL.")],
    id: Annotated[str | None, typer.Option(help="Which trace, or what its id begins with.")] = None,
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("trace.html"),
    image: Annotated[
        list[Path] | None, typer.Option(help="The question's picture; traces hold none.")
    ] = None,
) -> None:
    """Write one trace of a file as a self-contained page."""

    def job() -> None:
        trace = find(place_of(traces), id)
        output.write_text(trace_page(trace, pictures(trace, image or [])), encoding="utf-8")
        print(f"Wrote {output}.")

    run_job(job)


if __name__ == "__main__":
    typer.run(main)
