"""What the errors of an OpenAI-compatible server mean: who is to blame, and when to try again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from openai import APIStatusError


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the server does not take this request, or (`fatal`) any of ours: a sentence without its
    full stop."""

    says: str
    fatal: bool


def refusal(error: APIStatusError, who: str, model: str, api_key_env: str) -> Refusal | None:
    """None where another try may go better; `who` begins the sentence."""
    status, words = error.status_code, server_words(error)
    if status == 401:
        says = f"{who} refuses the key; set the environment variable {api_key_env}"
    elif status == 403:
        says = f"{who} forbids the model {model} (403: {words})"
    elif status == 404:
        says = f"{who} does not know the model {model} or this address (404: {words})"
    elif error.code == "insufficient_quota":
        says = f"{who} reports that its quota is used up ({words})"
    elif status in (408, 409, 429) or status >= 500:
        return None
    else:  # 400, 413, 422: of this request, as far as the number says
        return Refusal(f"{who} refuses the request ({status}: {words})", fatal=False)
    return Refusal(says, fatal=True)


def retry_after_s(error: APIStatusError) -> float | None:
    """Seconds, from a Retry-After header with seconds or a date."""
    value = error.response.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def server_words(error: APIStatusError) -> str:
    """The server's own words where it gave any, in one line."""
    body = error.body if isinstance(error.body, dict) else {}
    return " ".join(str(body.get("message") or error.message).split()).rstrip(".")[:300]
