"""An OpenAI-compatible `/v1/chat/completions` endpoint, asked again with growing waits where it fails."""

import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, TypeVar

from reward_models.errors import InputError, RewardError

LONGEST_WAIT = 60.0
"""Seconds between two tries at most."""
WORTH_ANOTHER_TRY = (408, 409, 425, 429)
"""Status codes below 500 that may pass."""
Value = TypeVar("Value")


class UnreadableAnswer(ValueError):
    """The model's answer does not have the form that was asked for."""


@dataclass
class Usage:
    """What has been asked of an endpoint, in tokens as it counts them."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatEndpoint:
    """Asks one model for completions of single user messages; safe to use from several threads.

    Args:
        url: the server, as in `http://host:8000` or with `/v1`.
        model: the model's name there.
        options: further fields of each request, such as `temperature`.
        api_key_env: environment variable that holds the key; None sends none.
        retries: how often a request is repeated that fails or has an unreadable answer.
        retry_seconds: wait before the first repetition; doubled before each further one, to a minute at most.
        timeout: seconds without an answer after which a request has failed.

    Raises:
        InputError: the url is none, the environment variable is not set, or a number is out of range.
    """

    def __init__(
        self,
        url: str,
        model: str,
        options: Mapping[str, Any],
        *,
        api_key_env: str | None = None,
        retries: int = 5,
        retry_seconds: float = 0.5,
        timeout: float = 120.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise InputError(f"url is '{url}'; write it as http://HOST:PORT")
        for name, value, least in (("retries", retries, 0), ("retry_seconds", retry_seconds, 0)):
            if value < least:
                raise InputError(f"{name} is {value}; it must be at least {least}")
        if timeout <= 0:
            raise InputError(f"timeout is {timeout}; it must be above 0")
        self.endpoint = url.rstrip("/").removesuffix("/chat/completions").removesuffix("/v1") + "/v1/chat/completions"
        self.model, self.options = model, dict(options)
        self.retries, self.retry_seconds, self.timeout = retries, retry_seconds, timeout
        self.usage = Usage()
        self._lock = threading.Lock()
        self._key = os.environ.get(api_key_env) if api_key_env else None
        if api_key_env and not self._key:
            raise InputError(f"api_key_env names the environment variable {api_key_env}, which is not set; set it")

    def ask(self, text: str, read: Callable[[str], Value], stop: threading.Event) -> Value:
        """Return what `read` makes of the answer to `text`; tried until it is readable, or until `stop` is set.

        Raises:
            InputError: the endpoint refuses the request (a status below 500 that will not pass).
            UnreadableAnswer: `read` raised it at each try.
            RewardError: the endpoint failed at each try.
        """
        failure: Exception = RewardError(f"{self.endpoint}: given up")
        for number in range(self.retries + 1):
            if number and stop.wait(min(self.retry_seconds * 2 ** (number - 1), LONGEST_WAIT)):
                break
            try:
                return read(self._answer(text))
            except UnreadableAnswer as error:
                failure = UnreadableAnswer(f"{self.endpoint}: {error}, after {number + 1} tries")
            except (OSError, HTTPException, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in WORTH_ANOTHER_TRY:
                    raise InputError(f"{self.endpoint}: {_reason(error)}; mend the settings") from None
                failure = RewardError(f"{self.endpoint}: {_reason(error)}, after {number + 1} tries; see to the server")
        raise failure

    def _answer(self, text: str) -> str:
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], **self.options}
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self._key}"} if self._key else {})}
        request = urllib.request.Request(self.endpoint, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as reply:
            answer = json.load(reply)
        used = answer.get("usage") or {}
        with self._lock:
            self.usage.requests += 1
            self.usage.prompt_tokens += int(used.get("prompt_tokens") or 0)
            self.usage.completion_tokens += int(used.get("completion_tokens") or 0)
        content = answer["choices"][0]["message"]["content"]
        if not isinstance(content, str):
            raise UnreadableAnswer("the answer has no text")
        return content


def _reason(error: Exception) -> str:
    """What went wrong with a request, in one line."""
    if isinstance(error, urllib.error.HTTPError):
        said = " ".join(error.read(300).decode("utf-8", "replace").split())
        return f"the server answered {error.code} {error.reason}" + (f" ({said})" if said else "")
    if isinstance(error, urllib.error.URLError):
        return f"the server cannot be reached ({error.reason})"
    if isinstance(error, (ValueError, KeyError, TypeError, IndexError, AttributeError)):
        return "the answer is no chat completion"
    return f"the request failed ({type(error).__name__}: {error})"
