"""What a completions endpoint says of the tokens that it was sent, checked position by position: an answer is taken whole or not at all.

Two forms: ``prompt_logprobs`` (vLLM), a list of one mapping per position from token id to ``{"logprob": ...}``; ``echo``, the
OpenAI form with tokens as ``token_id:N``, parallel lists of tokens, their log-probabilities and the likeliest ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MASS_TOLERANCE = 1e-2
"""How far above 1 rounding may take the sum of probabilities."""


class BadAnswer(Exception):
    """An answer that cannot be used; says of which row (of the request) and position."""

    def __init__(self, row: int, position: int | None, what: str) -> None:
        super().__init__(what)
        self.row, self.position, self.what = row, position, what


class Position(NamedTuple):
    """One token of the sequence as the teacher sees it."""

    logprob: float
    """of the token that was sent"""
    top: list[tuple[int, float]]
    """(id, log-probability) of the likeliest, best first"""


def rows_of(answer: Any, sent: Sequence[Sequence[int]], protocol: str, top_k: int, vocabulary: int) -> list[list[Position]]:
    """Of each row sent, its positions from the second on (nothing precedes the first).

    Raises ``BadAnswer`` for a row or position that is missing, another token than the one sent, fewer likeliest tokens than asked
    for, ids outside the vocabulary, and what is no log-probability.
    """
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(choices, list) or not all(isinstance(choice, Mapping) for choice in choices):
        raise BadAnswer(0, None, "the answer holds no choices")
    by_row = {choice.get("index", number): choice for number, choice in enumerate(choices)}
    read = _READERS[protocol]
    made = []
    for row, tokens in enumerate(sent):
        if row not in by_row:
            raise BadAnswer(row, None, f"the answer holds {len(choices)} of {len(sent)} rows")
        entries = read(by_row[row], row, len(tokens))
        made.append([_checked(entries[n], row, n, tokens[n], top_k, vocabulary) for n in range(1, len(tokens))])
    return made


def _from_prompt_logprobs(choice: Mapping[str, Any], row: int, count: int) -> list[dict[int, Any]]:
    """Token id → log-probability of each position."""
    given = choice.get("prompt_logprobs")
    if not isinstance(given, list):
        raise BadAnswer(row, None, "the answer has no prompt_logprobs (is this a vLLM server?)")
    if len(given) != count:
        raise BadAnswer(row, min(len(given), count), f"the answer has {len(given)} positions for {count} tokens")
    entries: list[dict[int, Any]] = [{}]
    for n, entry in enumerate(given[1:], 1):
        if not isinstance(entry, Mapping):
            raise BadAnswer(row, n, "the position is empty")
        values = {token: part.get("logprob") if isinstance(part, Mapping) else None for token, part in entry.items()}
        entries.append(_by_id(values, row, n))
    return entries


def _from_echo(choice: Mapping[str, Any], row: int, count: int) -> list[dict[int, Any]]:
    """The same of the OpenAI form; the one generated token at the end is left out."""
    given = choice.get("logprobs")
    if not isinstance(given, Mapping):
        raise BadAnswer(row, None, "the answer has no logprobs (does the server support echo?)")
    tokens, own, top = (given.get(name) for name in ("tokens", "token_logprobs", "top_logprobs"))
    if not (isinstance(tokens, list) and isinstance(own, list)):
        raise BadAnswer(row, None, "the answer's logprobs hold no tokens")
    length = min(len(tokens), len(own), len(top) if isinstance(top, list) else count)
    if not count <= length <= count + 1:
        raise BadAnswer(row, min(length, count), f"the answer has {length} positions for {count} tokens")
    entries: list[dict[int, Any]] = [{}]
    for n in range(1, count):
        likeliest = top[n] if isinstance(top, list) else {}
        if not isinstance(likeliest, Mapping):
            raise BadAnswer(row, n, "the position is empty")
        entries.append(_by_id({**likeliest, tokens[n]: own[n]}, row, n))
    return entries


_READERS = {"prompt_logprobs": _from_prompt_logprobs, "echo": _from_echo}


def _by_id(values: Mapping[Any, Any], row: int, position: int) -> dict[int, Any]:
    try:
        return {int(str(token).removeprefix("token_id:")): value for token, value in values.items()}
    except ValueError:
        raise BadAnswer(row, position, "tokens come as text, whose ids cannot be verified; the server has to give token ids") from None


def _checked(entry: Mapping[int, Any], row: int, position: int, token: int, top_k: int, vocabulary: int) -> Position:
    """The position's log-probabilities, if they are some and of the token that was sent."""
    if token not in entry:
        raise BadAnswer(row, position, f"the answer is of other tokens ({', '.join(map(str, list(entry)[:3]))}) than the one sent, {token}")
    for number, value in entry.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or value > MASS_TOLERANCE:
            raise BadAnswer(row, position, f"{value} of token {number} is no log-probability")
        if not 0 <= number < vocabulary:
            raise BadAnswer(row, position, f"token {number} is outside the tokenizer's vocabulary of {vocabulary}; lower teacher.top_k")
    top = sorted(entry.items(), key=lambda item: -item[1])[:top_k]
    if len(top) < min(top_k, vocabulary):
        raise BadAnswer(row, position, f"the answer has {len(top)} of the {top_k} likeliest tokens asked for (teacher.top_k)")
    if sum(math.exp(value) for _, value in entry.items()) > 1 + MASS_TOLERANCE:
        raise BadAnswer(row, position, "the probabilities add up to more than 1")
    return Position(float(entry[token]), top)
