"""Evaluate arithmetic expressions as exact rationals, with bounds on depth, size and powers, and without evaluating code."""

import re
from fractions import Fraction

MAX_DEPTH = 20
MAX_BITS = 4096
"""Bits of the largest numerator or denominator that a power may produce."""

_TOKEN = re.compile(r"\s*(\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+|\*\*|\S)")
_OPERATORS = frozenset(("+", "-", "*", "/", "^", "**", "x"))


class NotAnExpressionError(ValueError):
    """The tokens do not begin with an expression, or with one too deep or too large to evaluate."""


def tokens_of(text: str) -> list[str]:
    """Split an expression into numbers, operators, parentheses and single other characters."""
    return _TOKEN.findall(text)


def is_operator(token: str) -> bool:
    """Whether the token joins two operands."""
    return token in _OPERATORS


def is_number(token: str) -> bool:
    """Whether the token is an unsigned number."""
    return token[:1].isdigit() or (token[:1] == "." and len(token) > 1)


def evaluate_prefix(tokens: list[str], start: int = 0) -> tuple[Fraction | None, int]:
    """Evaluate the longest expression that begins at `start`; return its value (None: a division by zero) and where it ends.

    Grammar: `+ -` below `* / x` below signs below `^ **`, parentheses, and a percent sign behind an operand for hundredths.

    Raises:
        NotAnExpressionError: no expression begins there, or it is too deep or too large.
    """
    parser = _Parser(tokens, start)
    try:
        value = parser.sum(0)
    except ZeroDivisionError:
        return None, len(tokens)
    return value, parser.place


class _Parser:
    """Recursive descent that stops before the first token that cannot continue the expression."""

    def __init__(self, tokens: list[str], place: int) -> None:
        self.tokens = tokens
        self.place = place

    def token(self, ahead: int = 0) -> str:
        place = self.place + ahead
        return self.tokens[place] if place < len(self.tokens) else ""

    def operand_follows(self) -> bool:
        following = self.token(1)
        return is_number(following) or following in ("(", "-", "+")

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while self.token() in ("+", "-") and self.operand_follows():
            sign = 1 if self.token() == "+" else -1
            self.place += 1
            value += sign * self.product(depth)
        return value

    def product(self, depth: int) -> Fraction:
        value = self.signed(depth)
        while self.token() in ("*", "/", "x") and self.operand_follows():
            if self.token() == "x" and self.token(1) in ("-", "+"):  # `3x-5` holds an unknown
                break
            divide = self.token() == "/"
            self.place += 1
            factor = self.signed(depth)
            value = value / factor if divide else value * factor
        return value

    def signed(self, depth: int) -> Fraction:
        if depth > MAX_DEPTH:
            raise NotAnExpressionError
        if self.token() in ("-", "+"):
            sign = -1 if self.token() == "-" else 1
            self.place += 1
            return sign * self.signed(depth + 1)
        return self.power(depth)

    def power(self, depth: int) -> Fraction:
        base = self.operand(depth)
        if self.token() not in ("^", "**") or not self.operand_follows():
            return base
        self.place += 1
        return _bounded_power(base, self.signed(depth + 1))

    def operand(self, depth: int) -> Fraction:
        token = self.token()
        self.place += 1
        if token == "(":
            value = self.sum(depth + 1)
            if self.token() != ")":
                raise NotAnExpressionError
            self.place += 1
        elif is_number(token):
            value = Fraction(token.replace(",", "")) + self.mixed_part(token)
        else:
            raise NotAnExpressionError
        if self.token() == "%":
            self.place += 1
            value /= 100
        return value

    def mixed_part(self, whole: str) -> Fraction:
        """The 1/2 of `1 1/2`: a proper fraction right behind a whole number belongs to it."""
        top, slash, bottom = self.token(), self.token(1), self.token(2)
        if not (whole.isdigit() and top.isdigit() and slash == "/" and bottom.isdigit() and int(top) < int(bottom)):
            return Fraction(0)
        self.place += 3
        return Fraction(int(top), int(bottom))


def _bounded_power(base: Fraction, exponent: Fraction) -> Fraction:
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if exponent.denominator != 1 or abs(exponent) * bits > MAX_BITS:
        raise NotAnExpressionError
    return base ** int(exponent)
