"""Bodies of the HTTP interface: OpenAI's chat shape with one extra field, `search`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from stagebeam.schema import Candidates
from stagebeam.search.settings import Budget, Method, Tournament
from stagebeam.search.trace import Trace, UsageTrace

PositiveInt = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
TopP = Annotated[float, Field(gt=0, le=1)]


def _samplable(value: Any) -> Any:
    # Logits divided by less than this overflow; 0 is greedy and divides nothing.
    if isinstance(value, float) and 0 < value < 0.01:
        raise ValueError("Input should be 0 or at least 0.01")
    return value


Temperature = Annotated[
    float,
    Field(ge=0, le=2),
    BeforeValidator(
        _samplable, json_schema_input_type=Literal[0] | Annotated[float, Field(ge=0.01, le=2)]
    ),
]
# How much of the hidden stages a reply shows: the summary's words, all three with tags, nothing.
Reasoning = Literal["brief", "detailed", "none"]


def _without_nul(value: Any) -> Any:
    if isinstance(value, str) and "\0" in value:
        raise ValueError("Text must not hold NUL characters")
    return value


Text = Annotated[
    str,
    BeforeValidator(
        _without_nul, json_schema_input_type=Annotated[str, Field(pattern="^[^\\u0000]*$")]
    ),
]


class _Request(BaseModel):
    """Strict: a number in quotes or an unknown key is a mistake, not a guess."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ImageUrl(_Request):
    url: str = Field(
        description="A `data:` URL in base64, or an https address of a host that is allowed here."
    )
    detail: Literal["auto", "low", "high"] = Field(
        "auto",
        description="Without effect: the model's own image processor sets the resolution.",
    )


class TextPart(_Request):
    """A piece of a message in words."""

    type: Literal["text"]
    text: Text


class ImagePart(_Request):
    """A piece of a message that is an image. Images stand before the words of their message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class ChatMessage(_Request):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"] = Field(
        description="`developer` is another word for `system`. The last turn must be the user's."
    )
    content: Annotated[
        list[Part], BeforeValidator(_as_parts, json_schema_input_type=Text | list[Part])
    ]
    reasoning_content: Text | None = Field(
        None, description="What an earlier answer carried; it may be sent back or left out."
    )

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def image_urls(self) -> list[str]:
        return [part.image_url.url for part in self.content if isinstance(part, ImagePart)]


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
    reasoning: Reasoning = Field(
        "detailed",
        description="What `reasoning_content` holds: the three hidden stages with their tags, the "
        "summary's words alone (`brief`), or nothing.",
    )
    include_trace: bool = Field(False, description="Put the whole trace into the reply.")
    undivided: bool = Field(
        False,
        description="Keep the question on one replica of each engine, whatever the service's "
        "placement. The answer is the same; what it cost does not follow from how busy they are.",
    )
    include_events: bool = Field(
        False, description="Tell every event of the search, each in a chunk without choices."
    )


class StreamOptions(_Request):
    include_usage: bool = False


class ChatRequest(_Request):
    """A question, and how to answer it."""

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
    content: str = Field(description="The conclusion; empty where the model wrote no whole one.")
    reasoning_content: str | None = Field(None, description="See `search.reasoning`.")


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
    trace: Trace | None = Field(None, description="Where `search.include_trace` is set.")


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
    trace: Trace | None = None


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["stagebeam"] = "stagebeam"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """Questions are answered. `busy`: by as many as may be asked at once."""

    status: Literal["ok", "busy"] = "ok"
    generator: str = Field(description="Fingerprint of the generator's weights and settings.")
    judge: str = Field(description="Fingerprint of the judge.")


class Life(BaseModel):
    """The process that answers HTTP is alive; of the models it says nothing."""

    status: Literal["ok"] = "ok"


class ErrorDetail(BaseModel):
    message: str = Field(description="One sentence.")
    type: str
    param: str | None = Field(description="The field that is wrong.")
    code: str | None = Field(description="For programs, where `type` and status do not say it.")


class ErrorReply(BaseModel):
    """Every error has this shape, whatever raised it."""

    error: ErrorDetail
