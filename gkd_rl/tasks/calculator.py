"""A calculator for ``<<48+24=72>>`` marks (Cobbe et al. 2021), applied to finished answers.

GSM8K's own calculator stops at ``=`` while an answer is sampled and writes the result, so that what comes later is conditioned on it
(``gkd_rl.rollout.calculator``). This one works afterwards: it corrects results, and later uses of a corrected result as a number, but not
decisions that rested on it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from gkd_rl.rollout.calculator import result_of
from reward_models.arithmetic import ArithmeticVerifier
from reward_models.text import completion_text

_MARK = re.compile(r"<<([^<>=]{1,100})=([^<>=]{0,40})>>")
_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w])")
LONGEST = 65_536
"""Characters of an answer beyond which nothing is recomputed."""


def without_marks(text: str) -> str:
    """``text`` without its ``<<...>>`` marks."""
    return re.sub(r"<<[^<>]*>>", "", text)


def recompute(text: str) -> str:
    """``text`` with the result of each mark ``<<expression=result>>`` computed, exactly.

    Where a result changes, the same number is replaced in everything behind the mark, which is where later steps and the final answer use
    it. Marks that cannot be read, divisions by zero and results without a finite decimal form stay as they are.
    """
    if len(text) > LONGEST:
        return text
    done, rest = "", text
    while found := _MARK.search(rest):
        expression, said = found.groups()
        value = result_of(expression)
        done, rest = done + rest[: found.start()], rest[found.end() :]
        if value is None or _same(value, said):
            done += found.group()
            continue
        done += f"<<{expression}={value}>>"
        rest = _NUMBER.sub(lambda number, said=said, value=value: value if _same(number.group(), said) else number.group(), rest)
    return done + rest


class CalculatedVerifier:
    """``ArithmeticVerifier`` of answers whose marks were recomputed; takes the same options."""

    def __init__(self, **options: Any) -> None:
        self.verifier = ArithmeticVerifier(**options)
        self.__name__ = "arithmetic_with_calculator"

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """One reward for each completion; errors as ``ArithmeticVerifier``."""
        return self.verifier(prompts, [recompute(completion_text(completion)) for completion in completions], **columns)


def _same(one: str, other: str) -> bool:
    """Whether two numbers are equal, whatever their separators."""
    try:
        return Fraction(one.replace(",", "").strip(" $")) == Fraction(other.replace(",", "").strip(" $"))
    except (ValueError, ZeroDivisionError):
        return one.strip() == other.strip()
