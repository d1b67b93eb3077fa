"""Which tokens of two tokenizers stand for the same stretch of text. Offsets are in bytes, since a token may end within a character."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import accumulate
from typing import NamedTuple, TypeAlias

Piece: TypeAlias = bytes | None
"""What a token adds to the text; None: nothing, a special token"""


class Span(NamedTuple):
    """Tokens ``student[0]`` to ``student[1]`` − 1 of one side, those of ``teacher`` of the other."""

    student: tuple[int, int]
    teacher: tuple[int, int]
    realised: bool
    """both say the same text, and nothing but text"""


def common_spans(student: Sequence[Piece], teacher: Sequence[Piece]) -> list[Span]:
    """The finest spans that begin and end a token on either side: they part both sides' tokens in order.

    Where the texts differ, as where the teacher cannot write a character, the difference lies within spans that are not ``realised``.
    A span has one of the student's tokens at least; one behind the end of the text may have none of the teacher's.
    """
    blocks = list(_equal_blocks(text_of(student), text_of(teacher)))
    ends = list(accumulate(len(piece or b"") for piece in student))
    reached = {offset: number for number, offset in reversed(list(enumerate(ends)))}  # by the first token: empty ones join what follows
    spans, i, j = [], 0, 0
    for offset, number in _last_at(teacher).items():
        places = (a + offset - b for a, b, size in blocks if b <= offset <= b + size)
        at = next((reached[place] for place in places if place and reached.get(place, -1) >= i), None)
        if at is not None:
            spans.append(_span(student, teacher, (i, at + 1), (j, number + 1)))
            i, j = at + 1, number + 1
    if i < len(student):
        spans.append(_span(student, teacher, (i, len(student)), (j, len(teacher))))
    elif j < len(teacher) and spans:
        last = spans.pop()
        spans.append(_span(student, teacher, last.student, (last.teacher[0], len(teacher))))
    return spans


def without_leading_spaces(pieces: Sequence[Piece]) -> list[Piece]:
    """The same pieces of a text whose leading spaces are cut off."""
    left = len(text_of(pieces)) - len(text_of(pieces).lstrip(b" "))
    cut: list[Piece] = []
    for piece in pieces:
        taken = 0 if piece is None else min(left, len(piece))
        cut.append(piece if piece is None else piece[taken:])
        left -= taken
    return cut


def _span(student: Sequence[Piece], teacher: Sequence[Piece], ours: tuple[int, int], theirs: tuple[int, int]) -> Span:
    mine, its = student[slice(*ours)], teacher[slice(*theirs)]
    realised = bool(its) and None not in (*mine, *its) and text_of(mine) == text_of(its)
    return Span(ours, theirs, realised)


def text_of(pieces: Sequence[Piece]) -> bytes:
    """What the tokens say together."""
    return b"".join(piece or b"" for piece in pieces)


def _last_at(pieces: Sequence[Piece]) -> dict[int, int]:
    """Offset → the last token that ends there: one without text, as for what the teacher cannot write, belongs to what stands before."""
    return {offset: number for number, offset in enumerate(accumulate(len(piece or b"") for piece in pieces))}


def _equal_blocks(ours: bytes, theirs: bytes) -> Iterator[tuple[int, int, int]]:
    """(offset in ours, in theirs, length) of what is equal, compared by words."""
    if ours == theirs:
        yield 0, 0, len(ours)
        return
    words = [re.findall(rb"\s|[^\s]+", text) for text in (ours, theirs)]
    starts = [[0, *accumulate(map(len, each))] for each in words]
    for a, b, size in SequenceMatcher(None, *words, autojunk=False).get_matching_blocks():
        yield starts[0][a], starts[1][b], starts[0][a + size] - starts[0][a]
