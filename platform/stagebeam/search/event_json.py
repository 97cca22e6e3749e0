"""Events as JSON, for those who watch a search from afar.

`{"type": "stage_opened", "schema_version": 2, ...the event's own fields}`. Versioned with the
trace, of which they are the pieces: what reads traces of a version reads events of it.
"""

from __future__ import annotations

import re
from typing import Any, Final, get_args

from pydantic import TypeAdapter, ValidationError

from stagebeam.search.events import Event
from stagebeam.search.trace import SCHEMA_VERSION

_KINDS: Final[dict[str, type]] = {
    re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower(): kind for kind in get_args(Event)
}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}
_ADAPTERS: Final[dict[str, TypeAdapter[Any]]] = {
    name: TypeAdapter(kind) for name, kind in _KINDS.items()
}


def event_to_json(event: Event) -> dict[str, Any]:
    """What `json.dumps` takes; `event_from_json` gives an equal event back."""
    name = _NAMES[type(event)]
    fields = _ADAPTERS[name].dump_python(event, mode="json")
    return {"type": name, "schema_version": SCHEMA_VERSION, **fields}


def event_from_json(data: object) -> Event:
    """Read what `event_to_json` made, after its way through JSON.

    Raises ValueError with one sentence for what is no event, or one of another version.
    """
    if not isinstance(data, dict):
        raise ValueError("An event is a JSON object.")
    name, version = data.get("type"), data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"The event has schema_version {version}; this release reads {SCHEMA_VERSION}."
        )
    if not isinstance(name, str) or name not in _ADAPTERS:
        raise ValueError(f"There is no event of type {name!r}.")
    fields = {key: value for key, value in data.items() if key not in ("type", "schema_version")}
    try:
        event: Event = _ADAPTERS[name].validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"The event {name} is wrong: {where}: {first['msg']}.") from None
    return event
