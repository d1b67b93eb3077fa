"""Requests to a server that takes JSON and answers with it, and what to do where one fails."""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

LONGEST_WAIT = 60.0
"""Seconds between two tries at most."""
WORTH_ANOTHER_TRY = (408, 409, 425, 429)
"""Status codes below 500 that may pass."""


def post(endpoint: str, body: Mapping[str, Any], key: str | None, timeout: float) -> Any:
    """The answer to `body`, parsed; `key` is sent as a bearer token.

    Raises:
        OSError, http.client.HTTPException: the request failed.
        ValueError: the answer is no JSON.
    """
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(endpoint, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=timeout) as reply:
        return json.load(reply)


def wait_before(number: int, first: float) -> float:
    """Seconds to wait before repetition `number` (from 1): `first`, doubled before each further one, to a minute at most."""
    return min(first * 2 ** (number - 1), LONGEST_WAIT)


def is_refusal(error: Exception) -> bool:
    """Whether the server will say the same to the same request again."""
    return isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in WORTH_ANOTHER_TRY


def reason(error: Exception, expected: str) -> str:
    """What went wrong with a request, in one line; `expected` names what the answer should have been."""
    if isinstance(error, urllib.error.HTTPError):
        said = " ".join(error.read(300).decode("utf-8", "replace").split())
        return f"the server answered {error.code} {error.reason}" + (f" ({said})" if said else "")
    if isinstance(error, urllib.error.URLError):
        return f"the server cannot be reached ({error.reason})"
    if isinstance(error, (ValueError, KeyError, TypeError, IndexError, AttributeError)):
        return f"the answer is no {expected}"
    return f"the request failed ({type(error).__name__}: {error})"
