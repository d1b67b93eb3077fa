"""An OpenAI-compatible `/v1/chat/completions` endpoint, asked again with growing waits where it fails."""

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, TypeVar

from reward_models.errors import InputError, RewardError
from reward_models.http_json import is_refusal, post, reason, wait_before

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
            if number and stop.wait(wait_before(number, self.retry_seconds)):
                break
            try:
                return read(self._answer(text))
            except UnreadableAnswer as error:
                failure = UnreadableAnswer(f"{self.endpoint}: {error}, after {number + 1} tries")
            except (OSError, HTTPException, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                said = reason(error, "chat completion")
                if is_refusal(error):
                    raise InputError(f"{self.endpoint}: {said}; mend the settings") from None
                failure = RewardError(f"{self.endpoint}: {said}, after {number + 1} tries; see to the server")
        raise failure

    def _answer(self, text: str) -> str:
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], **self.options}
        answer = post(self.endpoint, body, self._key, self.timeout)
        used = answer.get("usage") or {}
        with self._lock:
            self.usage.requests += 1
            self.usage.prompt_tokens += int(used.get("prompt_tokens") or 0)
            self.usage.completion_tokens += int(used.get("completion_tokens") or 0)
        content = answer["choices"][0]["message"]["content"]
        if not isinstance(content, str):
            raise UnreadableAnswer("the answer has no text")
        return content
