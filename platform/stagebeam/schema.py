"""What the sections of a recipe have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    model_validator,
)

from stagebeam.storage import is_url

PositiveInt = Annotated[int, Field(gt=0, strict=True)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

_Stage = Literal["SUMMARY", "CAPTION", "REASONING", "CONCLUSION"]
_NUMBER: TypeAdapter[Any] = TypeAdapter(PositiveInt)
_BY_STAGE: TypeAdapter[Any] = TypeAdapter(dict[_Stage, PositiveInt])


def _candidates(value: Any) -> Any:
    # Not a union: its errors would name both forms.
    return (_BY_STAGE if isinstance(value, dict) else _NUMBER).validate_python(value)


# N, or N by stage; a stage that is left out has one candidate.
Candidates = Annotated[
    int | dict[str, int],
    PlainValidator(_candidates, json_schema_input_type=PositiveInt | dict[_Stage, PositiveInt]),
]

_LOCAL = (Path, Path | None)
Method = Literal["greedy", "majority", "best_of_n", "sentence_beam", "stage_beam", "retrace"]
Tournament = Literal["chain", "bracket", "round_robin", "finals", "arrival", "auto"]


class Section(BaseModel):
    """Unknown keys are refused, and values do not change once read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _on_this_machine(cls, data: Any) -> Any:
        """As a path, `s3://bucket` would be a folder called `s3:`."""
        for name, field in cls.model_fields.items() if isinstance(data, dict) else ():
            if field.annotation in _LOCAL and is_url(data.get(name)):
                raise ValueError(f"{name} is a path on this machine's disks, not a URL")
        return data
