"""A real S3 server on a free port, for as long as tests need it."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import requests
from moto.server import ThreadedMotoServer

from stagebeam import storage
from stagebeam.storage import RemotePath


@contextmanager
def s3_server() -> Iterator[str]:
    """Yields its URL. It serves from this process: what it holds ends with it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def environment(url: str) -> dict[str, str]:
    """What a process needs to know of the server."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def new_bucket(url: str) -> Iterator[RemotePath]:
    """An empty bucket that this process, and what it starts, finds by its name alone."""
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    requests.put(f"{url}/{name}", timeout=30).raise_for_status()
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment(url).items():
            patch.setenv(key, value)
        forget()
        yield RemotePath(f"s3://{name}", "")
    forget()


def forget() -> None:
    """A process takes keys and endpoint from its environment once, when it opens a bucket."""
    storage._filesystem.cache_clear()


def names(folder: RemotePath) -> list[str]:
    """Every object below a folder, the empty ones that stand for folders left out."""
    found = folder.listed(recursive=True)
    return [p.key[len(folder.key) :].strip("/") for p, info in found if info.is_file]
