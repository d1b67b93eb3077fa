"""Errors that a user can mend: the command line prints their text alone and exits with status 2."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user gave is wrong; the message says what, where and the fix, in one sentence."""


class Stopped(Exception):
    """A signal ended the run between two steps, and its state is kept. ``number``: the signal's."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number
