"""What a recipe says of who may ask over HTTP, and of images from other servers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from stagebeam.schema import PositiveInt, Section

_HOST = re.compile(r"[a-z0-9._-]+(?::\d{1,5})?|\[[0-9a-f:.]+\](?::\d{1,5})?")


class KeysConfig(Section):
    """API keys. A recipe names them and never holds them."""

    env: tuple[str, ...] = Field(
        (), description="Environment variables that hold a key each; also the keys' names in logs."
    )
    file: Path | None = Field(
        None,
        description="File with a line for each key, its name and the SHA-256 of the key in hex.",
    )
    requests_per_minute: PositiveInt | None = Field(
        None, description="Requests under /v1 that one key may make in a minute."
    )
    concurrent_questions: PositiveInt | None = Field(
        None, description="Questions of one key that may be answered at the same time."
    )

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.env and self.file is None:
            raise ValueError("keys need env, file or both")
        return self


class ImagesConfig(Section):
    """Images that a request names by address. Without hosts none is fetched."""

    allow_hosts: tuple[str, ...] = Field(
        (), description="Hosts, such as `images.example.org`, or `host:port` for other ports."
    )
    allow_http: bool = Field(False, description="Fetch over http too, not over https alone.")
    allow_private: bool = Field(
        False, description="Fetch from private, link-local and loopback addresses too."
    )
    max_bytes: PositiveInt = Field(10_000_000, description="Largest file, bytes.")
    timeout_s: float = Field(10.0, gt=0, description="Longest that one image may take, seconds.")

    @field_validator("allow_hosts")
    @classmethod
    def _hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        hosts = tuple(host.lower() for host in hosts)
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise ValueError(f"{host!r} is not a host, or host:port")
        return hosts
