"""Which rows go together: micro-batches within a budget of padded tokens, with little padding. Pure arithmetic over lengths."""

from __future__ import annotations

from collections.abc import Sequence

Size = tuple[int, ...]
"""Lengths of a row that are padded apart: (prompt, completion), or their sum alone."""

MOST_PADDING = 0.1
"""Share of padding that a micro-batch may have, unless it is small already."""

SMALLEST_PART = 8
"""A micro-batch of less than such a part of the budget is not made smaller for its padding: each costs time of its own."""

SMALLEST_PART_APART = 12
"""The same where prompts and completions are padded apart, and padding is harder to avoid."""


def cut(sizes: Sequence[Size], token_budget: int) -> list[list[int]]:
    """Rows in groups of at most ``token_budget`` tokens with padding (a longer single row goes alone)."""
    if not sizes:
        return []
    return _cut_in_order(sizes, token_budget) if len(sizes[0]) == 1 else _halved(list(range(len(sizes))), sizes, token_budget)


def padded(rows: Sequence[int], sizes: Sequence[Size]) -> int:
    """Tokens of those rows with padding."""
    return len(rows) * sum(max(column) for column in zip(*(sizes[row] for row in rows), strict=True))


def _cut_in_order(sizes: Sequence[Size], token_budget: int) -> list[list[int]]:
    """Of rows sorted by their one length, as many as the budget and the padding allow."""
    cuts: list[list[int]] = []
    valid = taken = 0
    for row in sorted(range(len(sizes)), key=lambda i: (sizes[i], i)):
        size = sizes[row][0]
        wanted = (len(cuts[-1]) + 1) * size if cuts else token_budget + 1
        worth_it = taken * SMALLEST_PART < token_budget or valid + size >= (1 - MOST_PADDING) * wanted
        if wanted <= token_budget and worth_it:
            cuts[-1].append(row)
            valid += size
        else:
            cuts.append([row])
            valid = size
        taken = len(cuts[-1]) * size
    return cuts


def _halved(rows: list[int], sizes: Sequence[Size], token_budget: int) -> list[list[int]]:
    """Cuts again and again, along the length and at the place that save most padding, until budget and padding are kept."""
    waiting, done = [rows], []
    while waiting:
        rows = waiting.pop()
        total = padded(rows, sizes)
        compact = sum(sum(sizes[row]) for row in rows) >= (1 - MOST_PADDING) * total
        if len(rows) == 1 or (total <= token_budget and (compact or total * SMALLEST_PART_APART < token_budget)):
            done.append(rows)
            continue
        full = token_budget if compact else None
        _, ordered, place = min(_best_place(rows, sizes, along, full) for along in range(len(sizes[0])))
        waiting += [ordered[place:], ordered[:place]]
    return done


def _best_place(rows: list[int], sizes: Sequence[Size], along: int, full: int | None) -> tuple[int, list[int], int]:
    """Where to cut the rows, sorted by one length: padded tokens of both halves, the sorted rows, rows before the cut.

    With ``full``, where so many tokens are reached: what has little padding anyway is not cut smaller than it has to be.
    """
    ordered = sorted(rows, key=lambda row: (sizes[row][along], row))
    before, after = _widths(ordered, sizes), _widths(ordered[::-1], sizes)[::-1]
    places = range(1, len(rows))
    if full is not None:
        places = [max(place for place in places if place == 1 or place * before[place - 1] <= full)]
    cost, place = min((place * before[place - 1] + (len(rows) - place) * after[place], place) for place in places)
    return cost, ordered, place


def _widths(rows: list[int], sizes: Sequence[Size]) -> list[int]:
    """Padded tokens per row of the first 1, 2, ... of ``rows``."""
    widest = tuple(0 for _ in sizes[0])
    found = []
    for row in rows:
        widest = tuple(map(max, widest, sizes[row]))
        found.append(sum(widest))
    return found
