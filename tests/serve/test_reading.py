"""What a request asks for, within what the operator allows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from bad_requests import body

from serve.errors import ApiError
from serve.reading import parse_chat, to_settings
from stagebeam.recipe import Limits
from stagebeam.search import SearchSettings
from stagebeam.search_config import SearchConfig


def settings(limits: Limits, defaults: SearchConfig | None = None, **search: Any) -> SearchSettings:
    chat = parse_chat(json.dumps(body(search=search)).encode())
    return to_settings(chat, defaults or SearchConfig(), limits)


@pytest.mark.parametrize("name", ["max_answer_tokens", "max_seconds"])
@pytest.mark.parametrize(
    ("allowed", "recipe", "asked", "counts"),
    [
        (None, None, None, None),
        (None, 50, None, 50),
        (None, 50, 70, 70),
        (60, None, None, 60),  # the operator's limit counts even where nobody asks for one
        (60, 50, None, 50),
        (60, 70, None, 60),
        (60, 50, 55, 55),
    ],
)
def test_the_smallest_limit_counts(
    name: str, allowed: int | None, recipe: int | None, asked: int | None, counts: int | None
) -> None:
    given = {} if asked is None else {name: asked}
    wanted = settings(Limits(**{name: allowed}), SearchConfig(**{name: recipe}), **given)  # type: ignore[arg-type]
    assert getattr(wanted, name) == counts


@pytest.mark.parametrize("name", ["max_answer_tokens", "max_seconds"])
def test_more_than_the_operator_allows_is_refused(name: str) -> None:
    with pytest.raises(ApiError, match=f"^{name} is over this server's limit of 60"):
        settings(Limits(**{name: 60}), **{name: 61})  # type: ignore[arg-type]


def test_what_concerns_the_search_is_taken_over() -> None:
    wanted = settings(
        Limits(),
        candidates={"CAPTION": 2},
        tournament="arrival",
        early_stop_margin=2.5,
        budget="adaptive",
        explain=True,
        max_retraces=1,
    )
    assert (wanted.candidates, wanted.tournament, wanted.budget) == (
        {"CAPTION": 2},
        "arrival",
        "adaptive",
    )
    assert (wanted.early_stop_margin, wanted.explain, wanted.max_retraces) == (2.5, True, 1)


def test_a_file_on_the_server_cannot_be_named() -> None:
    with pytest.raises(ApiError, match=r"unknown key 'search\.calibration'"):
        settings(Limits(), calibration="/etc/passwd")
