"""Errors that a user can mend: the command line prints their text alone and exits with status 2."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user gave is wrong; the message says what, where and the fix, in one sentence."""
