"""Errors that this package raises on purpose, and the hint that ends most of them."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave is wrong; the text is one sentence that says what and how to put it right."""


class RewardError(RuntimeError):
    """A reward failed while it was scoring; the text names the reward, the cause is chained."""


class RewardValueError(RewardError):
    """A reward returned something that is no reward for the completion at `row` of the batch."""

    def __init__(self, text: str, row: int) -> None:
        super().__init__(text)
        self.row = row


def nearest_hint(name: str, choices: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the choice most like `name`, or nothing where none is like it."""
    found = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""
