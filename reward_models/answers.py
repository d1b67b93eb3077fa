"""Find the final answer of a worked solution: the forms that are recognised, in their order of precedence."""

import re
from dataclasses import dataclass
from functools import lru_cache

from reward_models.notation import plain_notation, plain_numerals
from reward_models.quantity import MAX_TEXT, Quantity, find_quantities, last_quantity, read_exact

WINDOW = 65_536
"""Characters at the end of a completion in which its answer is looked for: longer completions cost no more."""
_REACH = 60
"""Characters on each side of the last digit that are read with it, enough for a mixed number with a unit."""

_CALCULATOR_MARK = re.compile(r"<<[^<>]{0,200}>>")
_STATED_PREFIX = re.compile(r"\W{0,6}(?:the\s+)?(?:final\s+)?answer\s*(?:is)?\W{0,3}(?=\s|[-$\d\\])", re.IGNORECASE)
_DIGIT = re.compile(r"\d")
_STATED = re.compile(
    r"""(?:\b(?:the|final|correct|my|our)\s|^\W{0,6})answer(?:[,\s]\s?(?:to|for|of|in|here|then|\()[^.\n:=]{0,60}?)?
        \s{0,2}\b(?P<verb>is|was|equals|(?:would|will|should|must)\sbe)\b(?!\s+not\b)[\s*_:]{0,8}
      |\banswer[*_]{0,2}\s?:[\s*_]{0,8}
      |^[ \t*_]{0,4}A[*_]{0,2}:[*_]{0,2}""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_SENTENCE_END = re.compile(r"[.!?;](?=\s|$)|\n")


@dataclass(frozen=True)
class Answer:
    """Where an answer stood (`hash`, `boxed`, `stated`, `exact` or `last number`), its text, and its value if it is a number."""

    form: str
    text: str
    quantity: Quantity | None


def find_answer(text: str, fallback: bool = True) -> Answer | None:
    r"""Return the final answer of `text`, or None where it states none.

    The forms, by precedence: the last `#### 72`; the last `\boxed{72}`; the last "the answer is 72", "Answer: 72" or
    "A: 72"; and, with `fallback`, the last number of the text. An answer whose `quantity` is None was stated but is no
    number (`\boxed{x+1}`).
    """
    text = plain_numerals(text[-WINDOW:])
    return _hash_answer(text) or _boxed_answer(text) or _stated_answer(text) or (_last_number(text) if fallback else None)


@lru_cache(maxsize=4096)
def read_reference(text: str) -> Answer | None:
    """Return the answer of a reference: a bare number with its unit, or a solution that states its answer; None if it is empty.

    A reference is read strictly: where several numbers could be meant, `quantity` is None.
    """
    plain = plain_numerals(text[-WINDOW:]).strip()
    found = _hash_answer(plain) or _whole_answer(plain) or _boxed_answer(plain) or _stated_answer(plain)
    return found or (_only_number(plain) if plain else None)


def _whole_answer(text: str) -> Answer | None:
    quantity = _read_span(text) if len(text) <= MAX_TEXT // 5 else None
    return Answer("exact", quantity.text, quantity) if quantity else None


def _only_number(text: str) -> Answer:
    numbers = list(find_quantities(_plain_span(text))) if len(text) <= MAX_TEXT else []
    quantity = numbers[0] if len(numbers) == 1 else None
    return Answer("exact", quantity.text if quantity else text[:MAX_TEXT], quantity)


def find_statement(text: str) -> str | None:
    r"""Return the text that a solution marks as its answer, whatever it says: behind `####`, in `\boxed{}`, behind "answer is".

    A short text without any mark is its own answer. This is what symbolic comparison reads, so the notation is left as it is.
    """
    text = text[-WINDOW:].strip()
    if "####" in text:
        return _line(text, text.rfind("####") + 4)
    boxed = _boxed_content(text)
    if boxed is not None:
        return boxed
    stated = list(_STATED.finditer(text))
    if stated:
        return _SENTENCE_END.split(_line(text, stated[-1].end()), maxsplit=1)[0]
    return text if 0 < len(text) <= MAX_TEXT // 5 and "\n" not in text else None


def _hash_answer(text: str) -> Answer | None:
    place = text.rfind("####")
    if place < 0:
        return None
    line = _line(text, place + 4)
    quantity = read_exact(line) or _read_span(line)
    return Answer("hash", quantity.text, quantity) if quantity else None  # else it was a Markdown heading


def _boxed_answer(text: str) -> Answer | None:
    content = _boxed_content(text)
    if content is None:
        return None
    quantity = _read_span(content)
    return Answer("boxed", quantity.text if quantity else content, quantity)


def _boxed_content(text: str) -> str | None:
    place = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    return _braced(text, text.find("{", place, place + 10)) if place >= 0 else None


def _braced(text: str, opening: int) -> str | None:
    depth = 0
    for place in range(opening, min(len(text), opening + MAX_TEXT)) if opening >= 0 else ():
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[opening + 1 : place].strip()
    return None


def _stated_answer(text: str) -> Answer | None:
    """The last statement that holds a number; "Answer:" and "A:" may open a whole solution, so they need a line with one number."""
    if "nswer" not in text and "NSWER" not in text and "A:" not in text and "A*" not in text:
        return None
    for match in reversed(list(_STATED.finditer(text))[-20:]):
        line = _line(text, match.end())
        sentence = _SENTENCE_END.split(line, maxsplit=1)[0]
        quantity = _read_span(sentence)
        if not quantity:
            numbers = list(find_quantities(_after_equals(_plain_span(sentence if match["verb"] else line))))
            quantity = numbers[0] if numbers and (match["verb"] or len(numbers) == 1) else None
        if quantity:
            return Answer("stated", quantity.text, quantity)
    return None


def _last_number(text: str) -> Answer | None:
    from_end = _DIGIT.search(text[::-1])
    if not from_end:
        return None
    end = len(text) - from_end.start()
    start = text.rfind(" ", 0, max(0, end - _REACH)) + 1 if end > _REACH else 0
    quantity = last_quantity(_plain_span(text[max(start, end - MAX_TEXT) : end + _REACH]))
    return Answer("last number", quantity.text, quantity) if quantity else None


def _line(text: str, start: int) -> str:
    """The line at `start`, or the next one if the marker stands alone on its own, cut to the longest readable text."""
    span = text[start : start + 2 * MAX_TEXT].lstrip()
    return span[: span.find("\n")] if "\n" in span else span


def _plain_span(text: str) -> str:
    if "<" in text:
        text = _CALCULATOR_MARK.sub("", text).split("</")[0].split("<|")[0]
    return plain_notation(text)


def _after_equals(span: str) -> str:
    return span[span.rfind("=") + 1 :]


def _read_span(span: str) -> Quantity | None:
    plain = _after_equals(_plain_span(span))
    prefix = _STATED_PREFIX.match(plain)
    return read_exact(plain[prefix.end() :] if prefix else plain)
