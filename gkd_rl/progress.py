"""How far a phase of a step is: loops say it, and the terminal, where there is one, shows it of phases that last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Protocol

Advance = Callable[..., None]
"""``advance(done, counted=done)``: so much more of the total is done, of which ``counted`` units were work (rows that end early are done
without it)."""


class Watcher(Protocol):
    """Who wants to know."""

    def phase(self, what: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        """Within it ``what`` goes on, of which there are ``total``; ``unit`` is what is counted."""
        ...


_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)
"""A thread that samples ahead has none: it goes on beside the phases that are shown."""
_within: ContextVar[str] = ContextVar("within", default="")


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Within it ``watcher`` is told of phases."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


@contextmanager
def within(whole: str) -> Iterator[None]:
    """Within it phases are parts of ``whole``."""
    token = _within.set(f"{whole}: ")
    try:
        yield
    finally:
        _within.reset(token)


def progress(what: str, total: int, unit: str) -> AbstractContextManager[Advance]:
    """A phase of ``total`` units, which the loop within it advances; without a watcher it costs a call that does nothing."""
    watcher = _watcher.get()
    return nullcontext(_unwatched) if watcher is None else watcher.phase(_within.get() + what, total, unit)


def _unwatched(done: int, counted: int | None = None) -> None:
    pass
