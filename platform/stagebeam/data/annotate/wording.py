"""Prompts: versioned data files in `prompts/`, templates filled with a row's text."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Self

import yaml
from jinja2 import Environment, StrictUndefined, TemplateError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stagebeam.annotate_config import Kind
from stagebeam.recipe import describe

FOLDER = Path(__file__).with_name("prompts")

# Keeps a row's text as it is: it is put in, never read as a template.
_TEMPLATES = Environment(
    undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Box(_Entry):
    """An object and where it is: x1, y1, x2, y2 as shares of width and height from top left."""

    label: str = Field(min_length=1)
    bbox: tuple[float, float, float, float]

    @model_validator(mode="after")
    def _inside(self) -> Self:
        x1, y1, x2, y2 = self.bbox
        if not (0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1):
            raise ValueError(f"bbox {list(self.bbox)} is not x1, y1, x2, y2 between 0 and 1")
        return self


class Worked(_Entry):
    """A few-shot example of the LLaVA kinds."""

    captions: tuple[str, ...]
    boxes: tuple[Box, ...]
    reply: str


class Wording(_Entry):
    """One prompt file. `digest` tells apart what the same version says."""

    name: str
    version: int
    kind: Kind
    ask: str = Field(description="Template of the call that writes.")
    check: str | None = Field(None, description="Template of the call that compares (staged).")
    examples: tuple[Worked, ...] = Field((), description="Shown before the row (LLaVA kinds).")
    questions: tuple[str, ...] = Field((), description="Questions to draw from (detail).")
    digest: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.check is not None) != (self.kind == "staged"):
            raise ValueError("kind staged has a check, and no other kind")
        if bool(self.questions) != (self.kind == "detail"):
            raise ValueError("kind detail has questions, and no other kind")
        return self

    def __str__(self) -> str:
        return f"{self.name} version {self.version} ({self.digest[:8]})"


def load_wording(name: str, kind: Kind) -> Wording:
    """A shipped prompt by its name, or any by the path of its YAML file.

    Raises ValueError with one sentence if there is none, or if it is wrong or of another kind.
    """
    path = FOLDER / f"{name}.yaml" if "/" not in name and not name.endswith(".yaml") else Path(name)
    try:
        content = path.read_bytes()
        loaded = yaml.safe_load(content)
        digest = hashlib.sha256(content).hexdigest()
        wording = Wording.model_validate({**loaded, "digest": digest})
        for template in (wording.ask, wording.check or ""):
            _TEMPLATES.from_string(template)
    except OSError:
        shipped = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
        raise ValueError(f"There is no prompt {name}; shipped are {shipped}.") from None
    except (yaml.YAMLError, TypeError, UnicodeDecodeError, TemplateError) as error:
        raise ValueError(f"The prompt {path} cannot be read: {error}.") from None
    except ValidationError as error:
        raise ValueError(f"The prompt {path} is wrong: {describe(error)}.") from None
    if wording.kind != kind:
        raise ValueError(f"The prompt {name} is for kind {wording.kind}, not {kind}.")
    return wording


def fill(template: str, **values: Any) -> str:
    """The template with a row's values; raises ValueError if it names a value that is not there."""
    try:
        return _TEMPLATES.from_string(template).render(**values).strip()
    except TemplateError as error:
        raise ValueError(f"A prompt's template cannot be filled: {error}.") from None
