"""A language model behind an endpoint as the judge of answers."""

import json
import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any, Literal

import regex

from reward_models.cached import Cached
from reward_models.chat_endpoint import ChatEndpoint, UnreadableAnswer, Usage
from reward_models.errors import InputError, RewardError
from reward_models.template import RowTemplate

RUBRIC = """Judge the answer to the request below: is it right, complete and clear?

[request]
{prompt}

[answer]
{completion}

First give your reasons in one sentence. Then end with one line of JSON, {{"score": N}}, where N goes from 0 (useless) to 10 (perfect)."""

_SCORE = re.compile(r"score[\"'*_\s]{0,6}(?::|=|is)?[\"'*_\s]{0,6}(-?\d{1,9}(?:\.\d{1,9})?)", re.IGNORECASE)
_PATTERN_SECONDS = 1.0


class LLMJudge:
    """`reward = (score − low) / (high − low)`, the score being what a language model says of the answer by a rubric.

    Args:
        url: an OpenAI-compatible server, such as `http://host:8000`; its `/v1/chat/completions` is asked.
        model: the model's name on the server.
        rubric: the message to the judge, from `{prompt}`, `{completion}` and any other column; other braces are doubled.
        score_pattern: regular expression whose first group is the score (the last match counts); by default the field `score` of JSON
            in the answer, or a number behind the word "score".
        low, high: the range of scores; one outside of it is as unreadable as none.
        unreadable: where the answer has no score after all tries: `error` ends the run, `none` gives None and counts.
        temperature, max_tokens: how the judge answers.
        options: further fields of each request, such as `{response_format: {type: json_object}}`.
        concurrency: requests under way at once.
        retries, retry_seconds, timeout: of one request (see `ChatEndpoint`).
        api_key_env: environment variable that holds the server's key.
        cache: folder in which scores are kept by the message to the judge; without it they are kept in memory alone.
        price_per_million_prompt_tokens, price_per_million_completion_tokens: for `cost`.

    Raises:
        InputError: a setting is out of range, a template or pattern cannot be read, or the key is not there.
    """

    def __init__(
        self,
        *,
        url: str,
        model: str,
        rubric: str = RUBRIC,
        score_pattern: str | None = None,
        low: float = 0.0,
        high: float = 10.0,
        unreadable: Literal["error", "none"] = "error",
        temperature: float = 0.0,
        max_tokens: int = 512,
        options: dict[str, Any] | None = None,
        concurrency: int = 8,
        retries: int = 5,
        retry_seconds: float = 0.5,
        timeout: float = 120.0,
        api_key_env: str | None = None,
        cache: str | None = None,
        price_per_million_prompt_tokens: float = 0.0,
        price_per_million_completion_tokens: float = 0.0,
    ) -> None:
        if not low < high:
            raise InputError(f"low is {low} and high is {high}; low must be below high")
        if unreadable not in ("error", "none"):
            raise InputError(f"unreadable is '{unreadable}'; choose error or none")
        if concurrency < 1:
            raise InputError(f"concurrency is {concurrency}; it must be 1 or more")
        self.__name__ = "judge"  # trainers log a reward under this name
        self.rubric, self.low, self.high = RowTemplate(rubric), low, high
        self.pattern = _compiled(score_pattern) if score_pattern is not None else None
        self.may_fail, self.concurrency, self.unreadable = unreadable == "none", concurrency, 0
        self.prices = (price_per_million_prompt_tokens, price_per_million_completion_tokens)
        sent = {"temperature": temperature, "max_tokens": max_tokens, **(options or {})}
        self.endpoint = ChatEndpoint(
            url, model, sent, api_key_env=api_key_env, retries=retries, retry_seconds=retry_seconds, timeout=timeout
        )
        identity = [model, score_pattern, low, high, sent]
        self._cached = Cached(self._judge, identity, Path(cache) / "judge.sqlite" if cache else None)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return one reward for each completion.

        Raises:
            InputError: the rubric names a column that is not there, or the endpoint refuses requests.
            RewardError: the endpoint failed at each try, or its answer was unreadable.
        """
        texts = [self.rubric.text(row, prompts[row], completions[row], columns) for row in range(len(completions))]
        return self._cached(prompts=texts, completions=[None] * len(texts))

    @property
    def usage(self) -> Usage:
        """Requests and tokens so far; answers from the cache cost none."""
        return self.endpoint.usage

    @property
    def cost(self) -> float:
        """What they cost by the prices given."""
        counts = (self.usage.prompt_tokens, self.usage.completion_tokens)
        return sum(count * price for count, price in zip(counts, self.prices, strict=True)) / 1e6

    def _judge(self, prompts: Sequence[str], completions: Sequence[Any]) -> list[float | None]:
        """Scores of messages that are not in the cache; the first that fails for good stops the others."""
        stop, failures = Event(), []

        def ask(text: str) -> float | None:
            if stop.is_set():
                return None
            try:
                return self.endpoint.ask(text, self.score, stop)
            except UnreadableAnswer as error:
                if self.may_fail:
                    self.unreadable += 1
                    return None
                failures.append(RewardError(f"{error}; mend the rubric, or set unreadable to none"))
            except (InputError, RewardError) as error:
                failures.append(error)
            stop.set()
            return None

        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge") as pool:
            try:
                scores = list(pool.map(ask, prompts))
            finally:
                stop.set()
        if failures:
            raise failures[0]
        return scores

    def score(self, answer: str) -> float:
        """Return the reward that an answer of the judge states.

        Raises:
            UnreadableAnswer: it states no score, or one outside of the range.
        """
        found = _by_pattern(self.pattern, answer) if self.pattern is not None else _by_json(answer) or _last(_SCORE.findall(answer))
        try:
            score = float(found) if found is not None else math.nan
        except ValueError:
            score = math.nan
        if not self.low <= score <= self.high:
            raise UnreadableAnswer(f"no score from {self.low:g} to {self.high:g} in the judge's answer {answer[-200:]!r}")
        return (score - self.low) / (self.high - self.low)


def _by_json(answer: str) -> str | None:
    """The field `score` of the last JSON object without objects in it."""
    for text in reversed(re.findall(r"\{[^{}]*\}", answer)):
        try:
            fields = json.loads(text)
        except ValueError:
            continue
        score = fields.get("score")
        if isinstance(score, (int, float, str)) and not isinstance(score, bool):
            return str(score)
    return None


def _by_pattern(pattern: Any, answer: str) -> str | None:
    try:
        return _last([match.group(1) for match in pattern.finditer(answer, timeout=_PATTERN_SECONDS)])
    except TimeoutError:
        return None


def _last(found: Sequence[str]) -> str | None:
    return found[-1] if found else None


def _compiled(pattern: str) -> Any:
    try:
        compiled = regex.compile(pattern, regex.DOTALL)
    except regex.error as error:
        raise InputError(f"score_pattern {pattern!r} cannot be read ({error})") from error
    if compiled.groups < 1:
        raise InputError(f"score_pattern {pattern!r} has no group; put the score in parentheses")
    return compiled
