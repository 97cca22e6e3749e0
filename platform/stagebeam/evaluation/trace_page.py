"""A trace as a page that needs no network: the viewer and the trace's JSON in one HTML file.

The viewer (`viewer/`) is plain JavaScript and CSS. The gateway serves the same files.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stagebeam.search.trace import Trace
from stagebeam.stages import untagged

VIEWER: Final = Path(__file__).parent / "viewer"

# Finds every element with `data-trace` and draws there what the JSON with that id holds.
_START = """
for (const root of document.querySelectorAll("[data-trace]")) {
  const state = JSON.parse(document.getElementById(root.dataset.trace).textContent);
  createView(root, { answer: root.dataset.answer === "true" }).draw(state);
}
"""


def viewer_state(trace: Trace) -> dict[str, Any]:
    """What the viewer draws: of a finished search that is the trace itself."""
    return trace.model_dump(mode="json")


def json_in_html(data: object) -> Markup:
    """JSON that may stand in a `script` element: no `<` of it can end or open one."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


@cache
def viewer_style() -> Markup:
    return Markup((VIEWER / "viewer.css").read_text(encoding="utf-8"))


@cache
def viewer_script() -> Markup:
    """A whole module that draws every trace of the page that it stands in."""
    return Markup((VIEWER / "viewer.js").read_text(encoding="utf-8") + _START)


def script_policy() -> str:
    """A content security policy under which the viewer's script runs and no other."""
    digest = base64.b64encode(hashlib.sha256(viewer_script().encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def templates() -> Environment:
    """The environment of all pages; it escapes whatever it is not told to trust."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        viewer_style=viewer_style, viewer_script=viewer_script, script_policy=script_policy
    )
    environment.filters.update(viewer_json=_viewer_json, untagged=untagged)
    return environment


def _viewer_json(trace: Trace) -> Markup:
    return json_in_html(viewer_state(trace))


def trace_page(trace: Trace, images: Sequence[str] = ()) -> str:
    """The whole page. `images` are data URIs; a trace itself holds only their digests."""
    return templates().get_template("trace.html.j2").render(trace=trace, images=images)
