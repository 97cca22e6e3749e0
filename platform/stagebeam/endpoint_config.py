"""What every part of a recipe that names an OpenAI-compatible server has in common."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stagebeam.schema import PositiveInt, Section


class ServerConfig(Section):
    """An OpenAI-compatible server, and how patiently it is asked."""

    base_url: str = Field(description="Up to and with the version, such as `http://host:8000/v1`.")
    api_key_env: str = Field(
        "OPENAI_API_KEY",
        min_length=1,
        description="Environment variable that holds the key; a server without keys needs none.",
    )
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="What the server calls the limit of a reply's length."
    )
    timeout_s: float = Field(300.0, gt=0, description="Longest silence of the server, seconds.")
    retries: int = Field(
        6, ge=0, strict=True, description="Further tries of a call that failed in passing."
    )
    retry_wait_s: float = Field(
        1.0, gt=0, description="Seconds before the first one; each later wait is twice as long."
    )


class EngineServer(ServerConfig):
    """A server that stands in for an engine of our own."""

    extensions: bool = Field(
        True,
        description="The server takes keys that vLLM and SGLang add to the API, to continue a text"
        " and to keep stop tags. Without them no stage can be continued: false is for judges.",
    )
    top_logprobs: PositiveInt = Field(
        20, description="Likeliest tokens that a judge of kind `remote` asks for; OpenAI's most."
    )
