"""Rewards of form alone: length, repetition, a pattern."""

from collections.abc import Sequence
from itertools import islice
from typing import Any, Literal

import regex

from reward_models.errors import InputError
from reward_models.text import completion_text


class OverlongPenalty:
    """Soft punishment of length (DAPO, arXiv 2503.14476, eq. 13), from 0 to −1.

    `0` for lengths up to `limit − buffer`, `((limit − buffer) − length) / buffer` up to `limit`, and −1 beyond.

    Args:
        limit: length from which on the punishment is whole.
        buffer: length over which it grows.
        unit: `tokens`, counted in the column `completion_ids`, which trainers give; `words`; or `characters`.

    Raises:
        InputError: `buffer` is not between 1 and `limit`, or no such unit.
    """

    def __init__(self, *, limit: int, buffer: int, unit: Literal["tokens", "words", "characters"] = "tokens") -> None:
        if not 1 <= buffer <= limit:
            raise InputError(f"buffer is {buffer}; it must be at least 1 and at most limit={limit}")
        if unit not in ("tokens", "words", "characters"):
            raise InputError(f"unit is '{unit}'; choose tokens, words or characters")
        self.__name__ = "overlong"  # trainers log a reward under this name
        self.limit, self.buffer, self.unit = limit, buffer, unit

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return one reward for each completion.

        Raises:
            InputError: tokens are counted, and there is no column `completion_ids`.
        """
        return [self._penalty(length) for length in self._lengths(completions, columns)]

    def _penalty(self, length: int) -> float:
        return -min(max((length - (self.limit - self.buffer)) / self.buffer, 0.0), 1.0) + 0.0

    def _lengths(self, completions: Sequence[Any], columns: dict[str, Any]) -> list[int]:
        if self.unit == "tokens":
            if "completion_ids" not in columns:
                raise InputError("there is no column 'completion_ids' to count tokens in; set unit to words or characters")
            return [len(ids) for ids in columns["completion_ids"]]
        texts = map(completion_text, completions)
        return [len(text.split()) if self.unit == "words" else len(text) for text in texts]


class RepetitionPenalty:
    """`−weight · (1 − distinct n-grams / n-grams)` over the words of the completion (Yeo et al. 2025, arXiv 2502.03373, appendix C.2).

    Texts of fewer than `n` words repeat nothing: 0.

    Args:
        n: words of an n-gram.
        weight: the greatest punishment.

    Raises:
        InputError: `n` is below 1.
    """

    def __init__(self, *, n: int = 3, weight: float = 1.0) -> None:
        if n < 1:
            raise InputError(f"n is {n}; it must be 1 or more")
        self.__name__ = "repetition"  # trainers log a reward under this name
        self.n, self.weight = n, weight

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return one reward for each completion."""
        return [-self.weight * self._repeated(completion_text(completion)) + 0.0 for completion in completions]

    def _repeated(self, text: str) -> float:
        words = text.lower().split()
        grams = list(zip(*(islice(words, start, None) for start in range(self.n)), strict=False))
        return 1 - len(set(grams)) / len(grams) if grams else 0.0


class FormatReward:
    """`right` where the completion has a pattern, else `wrong`.

    Args:
        pattern: a regular expression (of the `regex` package, which knows all of Python's); `.` matches line breaks too.
        whole: the completion, stripped, is the pattern from its start to its end; otherwise it holds it somewhere.
        right, wrong: the two rewards.
        seconds: time limit of one match, since a pattern may take exponential time on some texts; what is not matched by then is `wrong`.

    Raises:
        InputError: the pattern cannot be read, or the time limit is not positive.
    """

    def __init__(self, *, pattern: str, whole: bool = True, right: float = 1.0, wrong: float = 0.0, seconds: float = 1.0) -> None:
        if not seconds > 0:
            raise InputError(f"seconds is {seconds}; the time limit of a match must be positive")
        try:
            compiled = regex.compile(pattern, regex.DOTALL)
        except regex.error as error:
            raise InputError(f"pattern {pattern!r} cannot be read ({error})") from error
        self.__name__ = "format"  # trainers log a reward under this name
        self.right, self.wrong, self.seconds = right, wrong, seconds
        self._match = compiled.fullmatch if whole else compiled.search

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return one reward for each completion."""
        return [self.right if self._matches(completion_text(completion).strip()) else self.wrong for completion in completions]

    def _matches(self, text: str) -> bool:
        try:
            return self._match(text, timeout=self.seconds) is not None
        except TimeoutError:
            return False
