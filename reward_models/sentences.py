"""Cut text into sentences by rules alone: no model, no data files."""

import re

_BOUNDARY = re.compile(
    r"""(?P<end>[.!?…]["'”’»)\]*_]{0,6})(?=\s{1,20}["'“‘«(\[*_¿¡-]{0,6}[^\W_a-z])   # an end mark, then what may open a sentence
       |(?P<wide>[。！？]["'”’」』）]{0,6}(?![。！？]))                                          # scripts that write no space behind it
       |(?P<line>\n\s*)""",  # bounded repetitions: unbounded ones would take quadratic time on runs of such characters
    re.VERBOSE,
)
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[\"'“‘])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|Rev|Gen|Sen|Rep|Hon|Capt|Lt|Col|Sgt|St|Mt|Jr|Sr|Inc|Ltd|Co|Corp|Fig|Figs|Eq|Eqs|No|Nos|"
    r"Vol|vs|al|approx|dept|est|cf|e\.g|i\.e|z\.B|d\.h|bzw|usw|Nr|ca|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept|Sep|Oct|Nov|Dec)\.$"
)
_INITIALS = re.compile(r"(?:^|\W)(?:[A-Za-z]\.){2,}$")
_LIST_MARK = re.compile(r"(?:^|\n)\s*(?:\d{1,3}|[A-Za-z])\.$")


def split_sentences(text: str) -> list[str]:
    """Return the sentences of `text`, stripped, none empty.

    A sentence ends at `.`, `!`, `?` or `…` (with closing quotes) before a space and what may open another one (a capital, a digit, a
    letter of a script without case), at `。！？`, and with its line. Titles, initials, common abbreviations and the numbers of lists do not
    end one. Time and memory grow linearly with the text.
    """
    found: list[str] = []
    start = 0
    for match in _BOUNDARY.finditer(text):
        if match["end"] and _goes_on(text, start, match.end()):
            continue
        found.append(text[start : match.end()])
        start = match.end()
    found.append(text[start:])
    return [stripped for one in found if (stripped := one.strip())]


def _goes_on(text: str, start: int, end: int) -> bool:
    """Whether the full stop before `end` belongs to a word or a list's mark."""
    before = text[max(start, end - 12) : end]
    if _ABBREVIATION.search(before) or _INITIALS.search(before):
        return True
    return bool(_LIST_MARK.search(text[max(start - 1, end - 12, 0) : end]))
