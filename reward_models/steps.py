"""Check the arithmetic inside a solution: every `48+24=72` and `<<48+24=72>>`, exactly."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from reward_models.expressions import NotAnExpressionError, evaluate_prefix, is_number, is_operator, tokens_of
from reward_models.notation import plain_notation, plain_numerals

WINDOW = 65_536
"""Characters at the end of a completion whose steps are checked."""
MAX_STEPS = 1000
_RUN = 100
"""Characters of the longest side of an equation."""
_ALLOWED = "0123456789+-*/(). ,^%x\t"
_SENTENCE_END = re.compile(r"[.,](?=\s)")
_LINE_MARK = re.compile(r"\s*(?:[-*+•]|\d{1,2}[.)])\s+")


@dataclass(frozen=True)
class Step:
    """One calculation of a solution: its text, and whether both sides of its equals sign are the same number."""

    text: str
    right: bool


def find_steps(text: str) -> list[Step]:
    """Return the calculations of `text` in order: an expression with an operator, an equals sign, and a number or expression.

    Both sides are compared exactly (`10/3=3.33` is wrong), and a division by zero is wrong. What cannot be read is no step: words
    between the numbers, unknowns, sides of more than 100 characters, powers of more than 4,096 bits.
    """
    steps: list[Step] = []
    for line in plain_numerals(text[-WINDOW:]).splitlines():
        if "=" in line:
            steps.extend(_line_steps(plain_notation(line)))
        if len(steps) >= MAX_STEPS:
            break
    return steps[:MAX_STEPS]


def _line_steps(line: str) -> Iterator[Step]:
    mark = _LINE_MARK.match(line)
    sides = line[mark.end() if mark else 0 :].split("=")
    for left, right in pairwise(sides):
        step = _step(left, right)
        if step:
            yield step


def _step(left: str, right: str) -> Step | None:
    expression = _left_side(left)
    if expression is None:
        return None
    text, value = expression
    tokens = tokens_of(right[:_RUN])
    try:
        stated, end = evaluate_prefix(tokens)
    except NotAnExpressionError:
        return None
    following = "".join(tokens[end : end + 1])
    if following == "x" or _is_grouped(tokens[end - 1], following):
        return None
    return Step(f"{text}={_spelled(tokens[:end])}", value is not None and value == stated)


def _left_side(text: str) -> tuple[str, Fraction | None] | None:
    """The longest expression that ends at the equals sign, and its value; None where a part of it may be missing."""
    run = text[-_RUN - 1 :]
    before = run.rstrip(_ALLOWED)
    if len(run) - len(before) > _RUN:
        return None
    tokens = tokens_of(_SENTENCE_END.split(run[len(before) :])[-1])
    if before[-1:].isalnum() and tokens[:1] in (["-"], ["+"]):
        return None
    for start, token in enumerate(tokens):
        previous = tokens[start - 1] if start else ""
        if is_operator(previous) or previous in (",", ".") or _is_grouped(previous, token) or (previous and token in ("-", "+")):
            return None
        if token == "(" and (is_number(previous) or previous == ")"):  # in `66(1/3)=22` the parenthesis is a factor
            continue
        try:
            value, end = evaluate_prefix(tokens, start)
        except NotAnExpressionError:
            continue
        if end == len(tokens):
            return (_spelled(tokens[start:]), value) if any(map(is_operator, tokens[start + 1 :])) else None
    return None


def _is_grouped(previous: str, token: str) -> bool:
    """Whether two numbers may be one with a space in it: `17 000`."""
    return previous.isdigit() and token.isdigit() and len(token) == 3


def _spelled(tokens: list[str]) -> str:
    """The tokens as text without spaces, but for the one inside a mixed number."""
    pairs = pairwise(["", *tokens])
    return "".join(f" {token}" if is_number(previous) and is_number(token) else token for previous, token in pairs)
