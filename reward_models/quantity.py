"""Numbers as people write them, read as exact rationals.

Two readers share one grammar: `read_exact` wants the whole text to be one quantity with its unit; `find_quantities` picks
quantities out of prose and leaves out those that are only an operand of a larger expression.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from math import gcd

MAX_TEXT = 1000
"""Characters of the longest text that is read as one quantity."""
MAX_DIGITS = 400
"""Digits of the longest number that is read, and the largest power of ten of scientific notation."""

_INTEGER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,2}(?:,\d{2})+,\d{3}(?!\d)|\d+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.\d+)?|\.\d+)"
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_LETTER_SCALES = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}
_QUANTITY = re.compile(
    rf"""(?P<sign>[-+]?)
    (?: (?P<whole>{_INTEGER})\s(?P<mixed_top>\d+)/(?P<mixed_bottom>\d+)
      | (?:(?P<factor>{_DECIMAL})\s?[*x]\s?)?10\s?(?:\^|\*\*)\s?(?P<power>[-+]?\d+)
      | (?P<top>{_DECIMAL})\s?/\s?(?P<bottom>{_DECIMAL})
      | (?P<mantissa>{_DECIMAL})(?:[eE](?P<exponent>[-+]?\d+))?
    )
    (?:\s?(?P<percent>%|percent\b|per\scent\b)|\s?(?P<scale>{"|".join(_SCALES)})s?\b|(?P<letter>[kKMB])(?![A-Za-z\d]))?""",
    re.VERBOSE,
)
_PLAIN = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d{1,100})(?:\.\d{1,100})?")
_PREFIX = re.compile(r"(?:about|around|approximately|approx\.?|roughly|USD|EUR|GBP|INR|CAD|AUD|Rs\.?|[≈=:])\s*", re.IGNORECASE)
_OTHER_GROUPS = re.compile(r"\d{1,3}(?:[ ']\d{3})+(?![\d,']| ?/)")
_UNIT_TOKEN = re.compile(r"[^\W\d_]+(?:\^?[23](?!\d))?|\s+|.")
_FUNCTION = r"\\?(?:sqrt|binom|d?frac|log|ln|sin|cos|tan|exp|pi)"
_FUNCTION_BEFORE = re.compile(rf"(?<![A-Za-z]){_FUNCTION}[\s({{\[]*$|[A-Za-z]\($")
_FUNCTION_AFTER = re.compile(rf"\s?{_FUNCTION}(?![A-Za-z])")
_LIST_AFTER = re.compile(r"\s?(?:[,;]|or\b|and\b)\s?[-+$]?\d")
_UNKNOWNS = frozenset("xyzn")
_UNIT_LETTERS = frozenset("mgshlLWVAJNKCFTdD")
_NUMBER_WORDS = frozenset(("and", "or", "to", "plus", "minus", "times", "half", "halves", "quarter", "quarters", "thirds", "pi"))
_UNIT_MARKS = frozenset(".,;:!?'\"’”°()[]/-&")


@dataclass(frozen=True)
class Quantity:
    """A number that was read: its text, its exact value, and the second value that a percent sign or scale word allows.

    `50%` is 50 (references commonly leave the sign out) or else 1/2; `1.5 million` is 1500000 or else 1.5 (of a unit of millions).
    """

    text: str
    value: Fraction
    alternative: Fraction | None = None


def read_exact(text: str) -> Quantity | None:
    """Return the quantity that the whole of `text` states, with an optional unit, or None."""
    text = text.strip()
    if _PLAIN.fullmatch(text):
        return Quantity(text, Fraction(text.replace(",", "")))
    if len(text) > MAX_TEXT:
        return None
    prefix = _PREFIX.match(text)
    text = text[prefix.end() :] if prefix else text
    if text[:2] in ("- ", "+ "):
        text = text[0] + text[2:].lstrip()
    text = _OTHER_GROUPS.sub(lambda groups: groups.group().replace(" ", "").replace("'", ""), text, count=1)
    match = _QUANTITY.match(text)
    return _quantity(match) if match and _is_unit(text[match.end() :]) else None


def find_quantities(text: str) -> list[Quantity | None]:
    """Return the quantities of `text` in order; None stands for a number that only belongs to an expression, list or name."""
    return [None if _is_operand(match) else _quantity(match) for match in _QUANTITY.finditer(text)]


def last_quantity(text: str) -> Quantity | None:
    """Return the last quantity of `text`, None where it holds no number or the last one only belongs to something longer."""
    matches = list(_QUANTITY.finditer(text))
    return _quantity(matches[-1]) if matches and not _is_operand(matches[-1]) else None


def spelled(value: Fraction) -> str:
    """Return a rational as a decimal where it has an end, else as a fraction: `312.5`, `1/3`."""
    rest, places = value.denominator, 0
    while (factor := gcd(rest, 10)) > 1:
        rest, places = rest // factor, places + 1
    if rest > 1 or places == 0:
        return str(value)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def _quantity(match: re.Match[str]) -> Quantity | None:
    value = _value(match)
    if value is None:
        return None
    start = match.start()
    negative = match["sign"] == "-" and not (start and match.string[start - 1].isalpha())  # the hyphen of "top-5" is no sign
    value = -value if negative else value
    if match["percent"]:
        return Quantity(match.group(), value, value / 100)
    if match["scale"]:
        return Quantity(match.group(), value * _SCALES[match["scale"]], value)
    return Quantity(match.group(), value * _LETTER_SCALES[match["letter"]] if match["letter"] else value)


def _value(match: re.Match[str]) -> Fraction | None:
    if match.end() - match.start() > MAX_DIGITS:
        return None
    if match["whole"]:
        top, bottom = int(match["mixed_top"]), int(match["mixed_bottom"])
        return _number(match["whole"]) + Fraction(top, bottom) if top < bottom else None
    if match["power"]:
        return _scientific(match["factor"] or "1", match["power"])
    if match["top"]:
        bottom = _number(match["bottom"])
        return _number(match["top"]) / bottom if bottom else None
    return _scientific(match["mantissa"], match["exponent"]) if match["exponent"] else _number(match["mantissa"])


def _number(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def _scientific(mantissa: str, exponent: str) -> Fraction | None:
    power = int(exponent)
    return _number(mantissa) * Fraction(10) ** power if abs(power) <= MAX_DIGITS else None


def _is_unit(text: str) -> bool:
    """Whether the text behind a number only names its unit (`km/h`, `cm^2`, `apples per day.`) and goes on with no calculation."""
    if len(text) > MAX_TEXT // 5:
        return False
    adjacent = True
    for token in _UNIT_TOKEN.findall(text):
        if token[0].isalpha():
            word = token.rstrip("^23")
            factor = adjacent and len(word) == 1 and word not in _UNIT_LETTERS
            if factor or word in _UNKNOWNS or word.lower() in _NUMBER_WORDS:
                return False
        elif not token.isspace() and token not in _UNIT_MARKS:
            return False
        adjacent = False
    return text[:1] not in (",", ":")


def _is_operand(match: re.Match[str]) -> bool:
    """Whether the number at `match` is a part of something longer: `3 + 4`, `2x`, `5:30`, `3,5`, `H2`, `1.2.3`."""
    start, end = match.span()
    before, after = match.string[max(0, start - 12) : start], match.string[end : end + 12]
    if _FUNCTION_BEFORE.search(before) or _FUNCTION_AFTER.match(after) or _LIST_AFTER.match(after):
        return True
    adjacent, left = before[-1:], before.rstrip()
    if match["sign"]:
        unknown = adjacent.isalpha() and (match["sign"] == "+" or not before[-2:-1].isalpha())
        return unknown or adjacent.isdigit() or left[-1:].isdigit() or left[-1:] in ("*", "/", "^", ")")
    if adjacent.isalnum() or adjacent in ("_", "^") or left[-1:] in ("*", "/", "+", "^"):
        return True
    earlier = left[:-1].rstrip()[-1:]
    if left[-1:] in ("-", "x", ",", ":", ".", "'") and (earlier.isdigit() or earlier == ")"):
        return left[-1] in "-x" or adjacent == left[-1]
    return _operand_follows(after)


def _operand_follows(after: str) -> bool:
    first, rest = after.lstrip()[:1], after.lstrip()[1:].lstrip()[:1]
    if first in ("+", "*", "/", "-", "x"):
        return rest.isdigit() or rest == "("
    if first == "^":
        return True
    if after[:1] in (".", ",", ":", "'"):
        return after[1:2].isdigit()
    return after[:1] in _UNKNOWNS and not after[1:2].isalpha()
