"""Bodies of the HTTP interface: OpenAI's chat shape with one extra field, `search`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from stagebeam.schema import Candidates
from stagebeam.search.settings import Budget, Method, Tournament
from stagebeam.search.trace import UsageTrace

PositiveInt = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
TopP = Annotated[float, Field(gt=0, le=1)]


def _samplable(value: Any) -> Any:
    # Logits divided by less than this overflow; 0 is greedy and divides nothing.
    if isinstance(value, float) and 0 < value < 0.01:
        raise ValueError("Input should be 0 or at least 0.01")
    return value


Temperature = Annotated[float, Field(ge=0, le=2), BeforeValidator(_samplable)]


class _Request(BaseModel):
    """Strict: a number in quotes or an unknown key is a mistake, not a guess."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ImageUrl(_Request):
    url: str
    # Part of OpenAI's shape, without effect: the model's own processor sets the resolution.
    detail: Literal["auto", "low", "high"] = "auto"


class Part(_Request):
    """A piece of a message: text, or an image as a data: URL."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = {name for name in ("text", "image_url") if getattr(self, name) is not None}
        if given != {self.type}:
            raise ValueError(f"A part of type {self.type} needs {self.type} and nothing else")
        return self


def _as_parts(content: Any) -> Any:
    return [Part(type="text", text=content)] if isinstance(content, str) else content


class ChatMessage(_Request):
    """`reasoning_content` is what an earlier answer carried; it may be sent back or left out."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_as_parts)]
    reasoning_content: str | None = None

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.content if part.text is not None)

    @property
    def image_urls(self) -> list[str]:
        return [part.image_url.url for part in self.content if part.image_url is not None]


class SearchFields(_Request):
    """How to search for this answer; what is left out follows the operator's recipe."""

    method: Method | None = None
    candidates: Candidates | None = None
    tournament: Tournament | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    max_new_tokens: PositiveInt | None = None
    early_stop_margin: Positive | None = None
    budget: Budget | None = None
    max_answer_tokens: PositiveInt | None = None
    max_seconds: Positive | None = None
    explain: bool | None = None
    max_retraces: Annotated[int, Field(ge=0)] | None = None
    include_trace: bool = False
    include_events: bool = False


class StreamOptions(_Request):
    include_usage: bool = False


class ChatRequest(_Request):
    """POST /v1/chat/completions."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = 1
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None
    search: SearchFields = SearchFields()


class UsageInfo(BaseModel):
    """`prompt_tokens` are those really computed, over all stages; cached ones are left out."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    search: UsageTrace


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    reasoning_content: str


class Choice(BaseModel):
    index: Literal[0] = 0
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int  # seconds since 1970
    model: str
    choices: list[Choice]
    usage: UsageInfo


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None


class ChunkChoice(BaseModel):
    index: Literal[0] = 0
    delta: Delta
    finish_reason: Literal["stop", "length"] | None = None


class ChatChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageInfo | None = None


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["stagebeam"] = "stagebeam"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    generator: str
    judge: str
