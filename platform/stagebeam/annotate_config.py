"""The part of a recipe that says how a teacher writes staged answers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from stagebeam.endpoint_config import ServerConfig
from stagebeam.schema import PositiveInt, Section
from stagebeam.source_config import Source
from stagebeam.storage import Place

Kind = Literal["staged", "conversation", "detail", "complex"]

_PROMPTS: dict[Kind, str] = {
    "staged": "cot_v1",
    "conversation": "llava_conversation_v1",
    "detail": "llava_detail_v1",
    "complex": "llava_complex_v1",
}


class EndpointConfig(ServerConfig):
    """A model behind an OpenAI-compatible chat endpoint, and how hard it may be pressed."""

    model: str = Field(min_length=1, description="Name of the model at the endpoint.")
    temperature: float = Field(
        0.2, ge=0, le=2, description="Of the first attempt; each further one adds 0.2, up to 1."
    )
    max_tokens: PositiveInt = Field(2048, description="Longest reply, tokens.")
    concurrency: PositiveInt = Field(16, description="Rows worked on at once.")
    requests_per_minute: float | None = Field(None, gt=0, description="Requests begun a minute.")
    tokens_per_minute: float | None = Field(
        None, gt=0, description="Tokens a minute, of prompts and replies together."
    )
    price_in: float = Field(0.0, ge=0, description="Price of a million prompt tokens.")
    price_out: float = Field(0.0, ge=0, description="Price of a million reply tokens.")
    tokens_per_image: PositiveInt = Field(
        2048, description="Most prompt tokens that one image costs, for the limits below."
    )


class AnnotateConfig(Section):
    """A data set written by a teacher behind an OpenAI-compatible endpoint."""

    output_dir: Path = Field(description="Annotations, images and the journal of calls go here.")
    kind: Kind = Field(
        "staged",
        description="`staged` answers to the questions of sources or shards, or LLaVA's "
        "`conversation`, `detail` and `complex` from captions and boxes.",
    )
    sources: tuple[Source, ...] = Field(
        (), description="Rows whose assistant turns are the standard answers (`staged`)."
    )
    shards: Place | None = Field(None, description="Prepared shards in place of sources.")
    captions: Path | None = Field(
        None, description="Jsonl of captions and boxes (the kinds other than `staged`)."
    )
    prompt: str = Field(
        "", description="Name of a shipped prompt file, or a path to your own; by kind if empty."
    )
    teacher: EndpointConfig = Field(description="Who writes.")
    checker: EndpointConfig | None = Field(
        None, description="Who compares conclusions with standard answers; the teacher if absent."
    )
    check_max_tokens: PositiveInt = Field(
        16, description="Longest verdict, tokens; raise it for a model that thinks first."
    )
    attempts: PositiveInt = Field(3, description="Replies asked for before a row is refused.")
    spend_limit: float | None = Field(
        None, gt=0, description="Most that may be spent in this folder, in the prices' currency."
    )
    give_up_after: PositiveInt = Field(
        32, description="Rows refused one after another that end the job."
    )

    @property
    def prompt_file(self) -> str:
        return self.prompt or _PROMPTS[self.kind]

    @model_validator(mode="after")
    def _inputs(self) -> Self:
        if self.kind == "staged":
            if bool(self.sources) == (self.shards is not None) or self.captions is not None:
                raise ValueError("kind staged reads either sources or shards")
        elif self.captions is None or self.sources or self.shards is not None:
            raise ValueError(f"kind {self.kind} reads captions and nothing else")
        return self

    @model_validator(mode="after")
    def _prices(self) -> Self:
        priced = (self.teacher, self.checker or self.teacher)
        if self.spend_limit is not None and not all(e.price_in and e.price_out for e in priced):
            raise ValueError("spend_limit needs price_in and price_out of every endpoint")
        return self
