"""The page at `/`: static files, one JSON of what the server offers, and what browsers may do.

Nothing here needs an API key: the page holds no answer, and asks for the key itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from stagebeam.evaluation.trace_page import VIEWER
from stagebeam.recipe import ServeConfig
from stagebeam.search.settings import Method, Tournament
from stagebeam.search_config import SearchConfig

PAGE: Final = Path(__file__).parent / "page"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing but this server's own files, and pictures that the page itself holds.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    headers: Mapping[str, str]

    async def reply(self, request: Request) -> Response:
        tags = {tag.strip() for tag in request.headers.get("if-none-match", "").split(",")}
        if tags & {self.headers["ETag"], f"W/{self.headers['ETag']}"}:
            return Response(status_code=304, headers=dict(self.headers))
        return Response(self.content, headers=dict(self.headers))


def _read(path: Path) -> _File:
    content = path.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": etag, "Content-Type": _TYPES[path.suffix]}
    return _File(content, headers)


def offer(config: ServeConfig, search: SearchConfig) -> dict[str, Any]:
    """What the page's controls start from and end at."""
    named = ("method", "candidates", "tournament", "temperature", "seed")
    limits = config.limits
    return {
        "model": config.model_name,
        "search": {name: getattr(search, name) for name in named},
        "methods": [m for m in limits.methods or get_args(Method) if m in _possible(search)],
        "tournaments": limits.tournaments or get_args(Tournament),
        "watch": limits.traces,
        "limits": {
            "max_candidates": limits.max_candidates,
            "max_images": limits.max_images,
            "max_image_pixels": limits.max_image_pixels,
            "max_body_bytes": limits.max_body_bytes,
        },
    }


def _possible(search: SearchConfig) -> tuple[Method, ...]:
    """Going back needs a calibration."""
    return tuple(m for m in get_args(Method) if m != "retrace" or search.calibration is not None)


def add_page(app: FastAPI, config: ServeConfig, search: SearchConfig) -> None:
    """The routes `/` and `/page/...`."""
    index = _read(PAGE / "index.html")
    paths = [*PAGE.iterdir(), *VIEWER.iterdir()]
    files = {path.name: _read(path) for path in paths if path.suffix in _TYPES}
    offered = offer(config, search)

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return await index.reply(request)

    @app.get("/page/settings.json", include_in_schema=False)
    async def settings() -> Response:
        return JSONResponse(offered, headers=_HEADERS)

    for name, file in files.items():
        app.get(f"/page/{name}", include_in_schema=False)(file.reply)
