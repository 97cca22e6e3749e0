"""A CustomResourceDefinition as the API server reads it with strict field validation.

Its `openAPIV3Schema` is JSON schema with three differences that matter here: a key that is not
named is an error, keys of `x-kubernetes-list-map-keys` must not repeat, and `metadata` of the
object itself is left to Kubernetes. Rules in CEL (`x-kubernetes-validations`) are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_METADATA = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "pattern": r"^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47},
        "namespace": {"type": "string"},
        "labels": _TEXTS,
        "annotations": _TEXTS,
    },
}


def _unique(
    validator: Any, keys: list[str], value: list[dict[str, Any]], schema: dict[str, Any]
) -> Iterator[ValidationError]:
    properties = schema["items"]["properties"]
    found = [tuple(item.get(k, properties[k].get("default")) for k in keys) for item in value]
    if len(set(found)) < len(found):
        yield ValidationError(f"two items have the same {keys}: {found}")


def _int32(
    validator: Any, name: str, value: object, schema: dict[str, Any]
) -> Iterator[ValidationError]:
    if name == "int32" and isinstance(value, int) and not -(2**31) <= value < 2**31:
        yield ValidationError(f"{value} is no int32")


_Validator: Any = extend(
    Draft202012Validator, {"x-kubernetes-list-map-keys": _unique, "format": _int32}
)


@dataclass(frozen=True)
class Crd:
    """The schema of one kind, version v1."""

    validator: Any

    @classmethod
    def read(cls, file: Path) -> Crd:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a megabyte: C is ten times faster
        definition = yaml.load(file.read_text(encoding="utf-8"), loader)
        versions = definition["spec"]["versions"]
        (schema,) = (v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
        schema["properties"]["metadata"] = _METADATA
        _close(schema)
        return cls(_Validator(schema))

    def faults(self, manifest: dict[str, Any]) -> list[str]:
        """What the API server would refuse, each with its place."""
        return [
            f"{error.json_path}: {error.message}" for error in self.validator.iter_errors(manifest)
        ]


def _close(schema: Any) -> None:
    """Refuse keys that are not named, except where the schema says that they are kept."""
    if not isinstance(schema, dict):
        return
    if schema.get("x-kubernetes-int-or-string"):
        schema.setdefault("anyOf", [{"type": "integer"}, {"type": "string"}])
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    for below in (*schema.get("properties", {}).values(), schema.get("items")):
        _close(below)
    _close(schema.get("additionalProperties"))
