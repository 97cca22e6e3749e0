"""Ask a served model: `python -m jobs.ask [IMAGE] QUESTION [--url URL]`.

In a terminal the search is shown as it happens. Elsewhere only the conclusion is printed, or with
`--json` the trace.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import openai
import typer
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.live import Live
from rich.text import Text

from jobs.ask_view import answered, decided, retraced, under_way
from jobs.errors import run_job
from stagebeam.openai_shape import openai_messages
from stagebeam.records import Message
from stagebeam.search.event_json import event_from_json
from stagebeam.search.events import Answered, Event, Restarted, Retraced
from stagebeam.search.fold import Fold
from stagebeam.search.trace import Trace

INTERRUPTED = 130
NO_CONCLUSION = 1
CONNECT_TIMEOUT_S = 5.0
BROKE_OFF = "The connection broke off before the answer was there; ask again."


def read_image(path: Path) -> bytes:
    """Raises ValueError with one sentence where there is no picture."""
    try:
        content = path.read_bytes()
        with Image.open(path) as image:
            image.verify()
    except FileNotFoundError:
        raise ValueError(f"There is no picture at {path}.") from None
    except (UnidentifiedImageError, SyntaxError, IsADirectoryError):
        raise ValueError(f"{path} is not a picture.") from None
    return content


async def watch(
    client: openai.AsyncOpenAI, model: str | None, messages: Any, search: dict[str, Any]
) -> AsyncIterator[Event]:
    """The events of one search; closing the iterator ends it.

    Raises ValueError with one sentence for an error of the server or of the connection.
    """
    url = str(client.base_url).removesuffix("/v1/")
    with _told(
        f"No server answers at {url}; start one with `stagebeam serve RECIPE`, or name another"
        " with --url."
    ):
        stream = await client.chat.completions.create(
            model=model or (await client.models.list()).data[0].id,
            messages=messages,
            stream=True,
            extra_body={"search": {"include_events": True, **search}},
        )
    with _told(BROKE_OFF):
        async with stream:
            async for chunk in stream:
                event = (chunk.model_extra or {}).get("event")
                if event is not None:
                    yield event_from_json(event)


@contextmanager
def _told(lost: str) -> Iterator[None]:
    """Errors of the client in one sentence each, as ValueError; `lost` is for the connection's."""
    try:
        yield
    except openai.APIConnectionError:
        raise ValueError(lost) from None
    except openai.APIStatusError as error:
        hint = " Give it with --api-key or STAGEBEAM_API_KEY." if error.status_code == 401 else ""
        raise ValueError(_said(error) + hint) from None
    except openai.APIError as error:  # in mid-stream
        raise ValueError(error.message) from None


def _said(error: openai.APIStatusError) -> str:
    """The server's own sentence where it gave one."""
    said = error.body.get("message") if isinstance(error.body, dict) else None
    return str(said or f"The server answered with status {error.status_code}.")


async def show(events: AsyncIterator[Event], console: Console) -> Trace:
    """Draw the search as it happens; what is decided stays above what is being decided."""
    fold = Fold()
    with Live(console=console, refresh_per_second=8, transient=True) as live:
        async for event in events:
            done = fold.add(event)
            if done is not None:
                live.console.print(decided(done))
            if isinstance(event, Retraced):
                live.console.print(retraced(event.retrace))
            if isinstance(event, Restarted):
                live.console.print(
                    Text("A replica was lost; the search starts over.", style="yellow")
                )
            if isinstance(event, Answered):
                live.update(Text())
                console.print(answered(event.trace))
                return event.trace
            live.update(under_way(list(fold.open.values())))
    raise ValueError(BROKE_OFF)


async def last(events: AsyncIterator[Event]) -> Trace:
    """The trace, nothing shown."""
    async for event in events:
        if isinstance(event, Answered):
            return event.trace
    raise ValueError(BROKE_OFF)


def main(
    words: Annotated[
        list[str], typer.Argument(metavar="[IMAGE] QUESTION", help="A picture, and the question.")
    ],
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Its model; the first that it names.")] = None,
    method: Annotated[str | None, typer.Option(help="Search method; see docs/search.md.")] = None,
    candidates: Annotated[int | None, typer.Option(help="N, candidates a stage.")] = None,
    tournament: Annotated[str | None, typer.Option(help="Form of the tournament.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the candidates.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of sampling.")] = None,
    api_key: Annotated[
        str, typer.Option(envvar="STAGEBEAM_API_KEY", help="If the server asks for one.")
    ] = "none",
    json: Annotated[bool, typer.Option("--json", help="Print the trace.")] = False,
) -> None:
    """Ask a question, about a picture or not, and watch the answer being found."""
    asked = {
        "method": method,
        "candidates": candidates,
        "tournament": tournament,
        "seed": seed,
        "temperature": temperature,
    }

    async def job() -> Trace:
        if len(words) > 2:
            raise ValueError("Give a picture and one question; put the question in quotes.")
        images = tuple(read_image(Path(word)) for word in words[:-1])
        timeout = openai.Timeout(None, connect=CONNECT_TIMEOUT_S)
        async with openai.AsyncOpenAI(
            base_url=f"{url.rstrip('/')}/v1", api_key=api_key, max_retries=0, timeout=timeout
        ) as client:
            messages = openai_messages((Message("user", words[-1]),), images)
            search = {name: value for name, value in asked.items() if value is not None}
            events = watch(client, model, messages, search)
            console = Console()
            watched = console.is_terminal and not json
            return await (show(events, console) if watched else last(events))

    try:
        # asyncio turns Ctrl-C into a cancellation, which closes the stream in order.
        trace = run_job(lambda: asyncio.run(job()))
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    if json:
        print(trace.model_dump_json())
    elif trace.conclusion is not None and not sys.stdout.isatty():
        print(trace.conclusion)
    if trace.conclusion is None:
        print("The answer has no conclusion.", file=sys.stderr)
        raise SystemExit(NO_CONCLUSION)


if __name__ == "__main__":
    typer.run(main)
