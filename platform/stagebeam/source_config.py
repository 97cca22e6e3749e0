"""The part of a recipe that says where examples come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stagebeam.schema import PositiveInt, Section

_IMAGE_ROOT = (
    "Where the rows' `image` paths start: a folder, or a zip file read in place; a zip that came "
    "in parts (`image.zip.part-aa`, ...) is named without the part."
)


SceneQuestions = Literal["mixed", "hunt", "two_hunts"]


class HeldOut(Section):
    """Rows kept from training, chosen by a hash of their images."""

    share: float = Field(gt=0, lt=1, description="Share of the rows.")
    split: str = Field("test", min_length=1, description="Split that they are written under.")


class _Source(Section):
    split: str = Field("train", min_length=1, description="Split that the rows are written under.")
    require_stages: bool | None = Field(
        None, description="For this source in place of `data.require_stages`."
    )
    deduplicate: bool = Field(
        True, description="Refuse rows whose content an earlier row of the recipe has."
    )


class ScenesSource(_Source):
    """Image-QA drawn on the spot: coloured shapes, bar charts and text-only arithmetic."""

    kind: Literal["scenes"] = Field("scenes", description="Names this source.")
    rows: PositiveInt = Field(description="Examples to draw; a multi-turn example is one row.")
    seed: int = Field(0, description="Seed of the drawing; other seeds give other scenes.")
    difficulty: int = Field(2, ge=1, le=3, description="1 few colours and objects, 3 many.")
    # Left out of a dump while it is the default: marks of shards that are there stay what they are.
    questions: SceneQuestions = Field(
        "mixed",
        exclude_if=lambda value: value == "mixed",
        description="`mixed` the usual kinds; `hunt` which three of six numbers make another; "
        "`two_hunts` two of these in one question.",
    )
    deduplicate: bool = Field(False, description="What is drawn may be drawn again.")


class _FileSource(_Source):
    limit: PositiveInt | None = Field(None, description="Read at most this many rows.")


class LlavaCotSource(_FileSource):
    """The LLaVA-CoT-100k form: `train.jsonl` and its images."""

    kind: Literal["llava_cot"] = Field("llava_cot", description="Names this source.")
    annotations: Path = Field(description="The jsonl file.")
    image_root: Path = Field(description=_IMAGE_ROOT)


class LlavaInstructSource(_FileSource):
    """The LLaVA instruction form: one json array, `<image>` placeholders in the text."""

    kind: Literal["llava_instruct"] = Field("llava_instruct", description="Names this source.")
    annotations: Path = Field(description="The json file.")
    image_root: Path = Field(description=_IMAGE_ROOT)


class Columns(Section):
    """Which columns of a data set hold what; a row needs `conversations`, or else `question` and
    `answer`."""

    id: str | None = Field(None, description="Unique name of a row; its number if absent.")
    images: str | None = Field(None, description="One image or a list of them.")
    conversations: str | None = Field(None, description="List of turns.")
    question: str | None = Field(None, description="Text of the user's turn.")
    answer: str | None = Field(None, description="Gold answer, a text or an index into choices.")
    choices: str | None = Field(None, description="List of options in letter order.")
    category: str | None = Field(None, description="Kind of question.")

    @model_validator(mode="after")
    def _text(self) -> Self:
        if self.conversations is None and (self.question is None or self.answer is None):
            raise ValueError("name the column of conversations, or those of question and answer")
        return self


class HuggingFaceSource(_FileSource):
    """A data set of the Hugging Face hub or a folder of its files, streamed by `datasets`."""

    kind: Literal["huggingface"] = Field("huggingface", description="Names this source.")
    path: str = Field(description="Name on the hub, or a folder.")
    name: str | None = Field(None, description="Configuration of the data set.")
    revision: str | None = Field(None, description="Commit or tag on the hub.")
    rows_from: str = Field("train", description="Split of the data set that is read.")
    columns: Columns = Field(description="Which columns hold what.")


class WebDatasetSource(_FileSource):
    """Tar files in which `KEY.jpg` and `KEY.json` are one row."""

    kind: Literal["webdataset"] = Field("webdataset", description="Names this source.")
    shards: str = Field(description="Path of the tar files, `*` for any text.")


class TsvSource(_FileSource):
    """A benchmark's TSV with base64 images (the form that VLMEvalKit reads)."""

    kind: Literal["tsv"] = Field("tsv", description="Names this source.")
    file: Path = Field(description="The TSV file.")
    split: str = Field("test", min_length=1, description="Split that the rows are written under.")
    require_stages: bool | None = Field(
        False, description="The answers are letters and short texts, not staged answers."
    )


Source = Annotated[
    ScenesSource
    | LlavaCotSource
    | LlavaInstructSource
    | HuggingFaceSource
    | WebDatasetSource
    | TsvSource,
    Field(discriminator="kind"),
]
