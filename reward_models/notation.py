"""One plain ASCII spelling for the many ways that Unicode, LaTeX and Markdown write a number."""

import re
import sys
import unicodedata
from functools import cache

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-", strict=True))
_SUPERSCRIPT_RUN = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_GROUPING_SPACE = re.compile("(?<=\\d)[\u00a0\u2007\u2009\u202f'’](?=\\d{3}(?!\\d))")
_SPELLINGS = {
    "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d": "-",
    "\uff0b": "+",
    "\u00d7\u2217\u22c5\u00b7\uff0a": "*",
    "\u00f7\u2044\u2215\uff0f": "/",
    "\uff0c\u066c": ",",
    "\uff0e\u066b\u3002": ".",
    "\uff1a": ":",
    "\uff1d": "=",
    "\uff03": "#",
    "\uff05\u066a": "%",
    "\uff04": "$",
    "\uff08": "(",
    "\uff09": ")",
    "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff": "",
}


def plain_numerals(text: str) -> str:
    """Rewrite digits, minus signs, operators, superscripts and vulgar fractions of any script in ASCII; leave other text as it is.

    `−５` becomes `-5`, `1½` becomes `1 1/2` and `10³` becomes `10^3` (plain Unicode normalisation would make 11/2 and 103 of them).
    """
    if text.isascii():
        return text
    text = _SUPERSCRIPT_RUN.sub(lambda run: "^" + "".join(map(_SUPERSCRIPTS.__getitem__, run.group())), text)
    return _GROUPING_SPACE.sub("", text.translate(_numeral_table()))


@cache
def _numeral_table() -> dict[int, str]:
    table = {ord(char): plain for chars, plain in _SPELLINGS.items() for char in chars}
    for code in range(0x80, sys.maxunicode + 1):
        char = chr(code)
        if unicodedata.category(char) == "Nd":
            table[code] = str(unicodedata.decimal(char))
        elif unicodedata.decomposition(char).startswith("<fraction>"):
            table[code] = " " + unicodedata.normalize("NFKC", char).replace("\u2044", "/")
    return table


_LATEX_WRAPPER = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mathsf|mbox|boldsymbol|operatorname)\s?\{([^{}]*)\}")
_LATEX_FRACTION = re.compile(r"(\d?)\s?\\frac\s?(?:\{\s?(-?[\d.,]+)\s?\}\s?\{\s?([\d.,]+)\s?\}|(\d)\s?(\d))")
_LATEX_BRACE = re.compile(r"(?<!\\)[{}]")
_LATEX_GROUPING = re.compile(r"(?<=\d)(?:\{,\}|\\[,!]|,\\!|\{\\,\}|\\ (?=\d{3}))(?=\d)")
_LATEX_SYMBOLS = {
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\times": "*", r"\cdot": "*", r"\div": "/", r"\$": "$",
    r"\%": "%", r"\left": "", r"\right": "", r"\displaystyle": "", r"\pounds": "£", r"\euro": "€", r"^\circ": "°",
    r"^{\circ}": "°", r"\approx": "≈", r"\,": " ", r"\;": " ", r"\:": " ", r"\!": "", r"\ ": " ", "~": " ",
    r"\(": "", r"\)": "", r"\[": "", r"\]": "",
}  # fmt: skip
_SYMBOL = re.compile("|".join(re.escape(symbol) for symbol in sorted(_LATEX_SYMBOLS, key=len, reverse=True)))
_BRACED_EXPONENT = re.compile(r"\^\s?\{\s?([-+]?\d+)\s?\}")
_MARKDOWN_BOLD = re.compile(r"(?<![\d)])(?<![\d)]\s)\*\*|\*\*(?!\s?[\d(])|__|`")
_CURRENCY_BEFORE_NUMBER = re.compile(r"(?<![\d.])(?:US|CA|AU|NZ|HK)?[$£€¥₹₩₽]\s?(?=[-+.\d])")
_CURRENCY = re.compile(r"[$£€¥₹₩₽]")


def plain_notation(span: str) -> str:
    """Rewrite the LaTeX, Markdown and currency signs of a short span: `\\$1{,}234` and `**$1,234**` both become 1,234.

    A power (`9**9`) keeps its asterisks, and a currency sign between digits becomes a space: two numbers never run together.
    """
    if "\\" in span or "{" in span:
        span = _plain_latex(span)
    if "*" in span or "_" in span or "`" in span:
        span = _MARKDOWN_BOLD.sub("", span)
    return _CURRENCY.sub(" ", _CURRENCY_BEFORE_NUMBER.sub("", span)).strip()


def _plain_latex(span: str) -> str:
    span = _LATEX_GROUPING.sub(_grouping, span)
    span = _SYMBOL.sub(lambda symbol: _LATEX_SYMBOLS[symbol.group()], span)
    for _ in range(3):  # \\textbf{\\text{...}} is common, deeper nesting is not a number
        span = _LATEX_WRAPPER.sub(r" \1 ", span)
    span = _BRACED_EXPONENT.sub(r"^\1", span)
    return _LATEX_BRACE.sub(" ", _LATEX_FRACTION.sub(_plain_fraction, span))


def _grouping(mark: re.Match[str]) -> str:
    return "," if "," in mark.group() else ""


def _plain_fraction(match: re.Match[str]) -> str:
    before, top, bottom, top_digit, bottom_digit = match.groups()
    fraction = f"{top or top_digit}/{bottom or bottom_digit}"
    return f"{before} {fraction}" if before else fraction
