"""A request's bytes become JSON, or one sentence about what is wrong with them."""

from __future__ import annotations

from typing import Any

import jiter

from serve.errors import ApiError


def read_json_object(body: bytes) -> dict[str, Any]:
    """The object in a body.

    Raises ApiError 400 for bytes that are not UTF-8 or not JSON as its standard has it: no NaN, no
    lone surrogates, no key twice in one object, nesting no deeper than 200.
    """
    try:
        value = jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        raise ApiError(400, f"The request body is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The request body is not a JSON object.")
    return value
