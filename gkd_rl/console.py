"""What a run says in the terminal: progress bars, a live line of figures, tables. Only the main process speaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from gkd_rl.progress import Advance

SHOWN_AFTER = 2.0
"""Seconds from which on a phase is worth a bar."""
_REDRAWN = 0.1
"""Seconds between two changes of a phase's bar."""


class Terminal:
    """Progress and tables on the console; silent where ``speaks`` is False."""

    def __init__(self, speaks: bool = True) -> None:
        self.console = Console(quiet=not speaks, highlight=False)
        self._open: _Progress | None = None
        """The bars that are on the screen."""

    @property
    def is_live(self) -> bool:
        """Whether what is shown can change: there is a terminal, and this process speaks."""
        return self.console.is_terminal and not self.console.quiet

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, emoji=False, soft_wrap=True)

    @contextmanager
    def bar(self, what: str, total: int, done: int = 0) -> Iterator[Bar]:
        """A bar for ``total`` steps of ``what``, of which ``done`` are behind us, with rate and remaining time. Without a terminal: a line
        now and then."""
        with self._bars() as progress:
            yield Bar(self, progress, what, total, done)

    @contextmanager
    def phase(self, what: str, total: int, unit: str) -> Iterator[Advance]:
        """A bar of its own for a part of a step that lasts; it goes when the part is over. Without a terminal: nothing."""
        if not self.is_live:
            yield lambda done, counted=None: None
            return
        with self._bars(transient=True) as progress:
            task = progress.add_task(what, total=total, rate="", left="", figures="", visible=False)
            try:
                yield _PhaseBar(progress, task, total, unit).advance
            finally:
                progress.remove_task(task)

    @contextmanager
    def _bars(self, transient: bool = False) -> Iterator[_Progress]:
        """The bars on the screen, to which one is added; the first brings them there."""
        if self._open is not None:
            yield self._open
            return
        with _Progress(*_columns(), console=self.console, transient=transient, disable=not self.is_live) as self._open:
            try:
                yield self._open
            finally:
                self._open = None

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(title=title, title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)


def _columns() -> tuple[TextColumn | BarColumn | MofNCompleteColumn | TimeElapsedColumn, ...]:
    return (
        TextColumn("{task.description:<11}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        TextColumn("{task.fields[rate]}", markup=False),
    )


class _Progress(Progress):
    """Bars with their figures on a line of their own: beside the bar they would push it out of a narrow terminal."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(f"  {task.fields['figures']}", no_wrap=True, overflow="ellipsis") for task in self.tasks if task.fields["figures"])


class Bar:
    """One progress bar with live figures."""

    def __init__(self, terminal: Terminal, progress: Progress, what: str, total: int, done: int = 0) -> None:
        self.terminal, self.progress, self.what, self.total = terminal, progress, what, total
        self.before = self.done = done
        self.started = self.spoken = time.monotonic()
        self.task = progress.add_task(what, total=total, completed=done, rate="", left="", figures="")

    def advance(self, steps: int = 1, figures: Mapping[str, float] | None = None, live: Mapping[str, float] | None = None) -> None:
        """``steps`` more are done, with these ``figures``; ``live`` ones are shown beside the bar alone."""
        self.done += steps
        seconds = time.monotonic() - self.started
        rate = (self.done - self.before) / max(seconds, 1e-9)
        line, beside = shown(figures or {}), shown({**(figures or {}), **(live or {})})
        left = remaining(self.total - self.done, rate)
        self.progress.update(self.task, advance=steps, rate=f"{rate:.2f}/s", left=left, figures=beside)
        if not self.terminal.console.is_terminal and (self.done == self.total or time.monotonic() - self.spoken > 20):
            self.spoken = time.monotonic()
            self.terminal.say(f"{self.what} {self.done}/{self.total}  {seconds:.0f} s  {line}".rstrip())


class _PhaseBar:
    """The bar of a phase, hidden until the phase has lasted ``SHOWN_AFTER`` seconds."""

    def __init__(self, progress: Progress, task: TaskID, total: int, unit: str) -> None:
        self.progress, self.task, self.total, self.unit = progress, task, total, unit
        self.done = self.counted = 0
        self.started = self.drawn = time.monotonic()

    def advance(self, done: int, counted: int | None = None) -> None:
        self.done += done
        self.counted += done if counted is None else counted
        now = time.monotonic()
        seconds = now - self.started
        if seconds < SHOWN_AFTER or now - self.drawn < _REDRAWN:
            return
        self.drawn = now
        rate, left = f"{self.counted / seconds:,.0f} {self.unit}/s", remaining(self.total - self.done, self.done / seconds)
        self.progress.update(self.task, completed=self.done, rate=rate, left=left, visible=True)


def remaining(steps: float, rate: float) -> str:
    """The time that ``steps`` take at a rate per second, as ``h:mm:ss left``; rich's own estimate forgets steps of over half a minute."""
    return f"{timedelta(seconds=round(steps / rate))} left" if rate > 0 else ""


def shown(figures: Mapping[str, float]) -> str:
    """Names and values for one line: three digits, large ones whole."""
    return "  ".join(f"{name} {value:,.0f}" if abs(value) >= 1000 else f"{name} {value:.3g}" for name, value in figures.items())


class PhaseTimes:
    """Seconds spent in each phase of the run; a phase within another counts for itself only."""

    def __init__(self, synchronize: Callable[[], None] = lambda: None) -> None:
        self.seconds: dict[str, float] = {}
        self.synchronize = synchronize
        """Waits until a device that works by itself has done what it was given."""
        self._within: list[float] = []
        """Per phase that is open: seconds of the phases within it."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        self._within.append(0.0)
        try:
            yield
        finally:
            self.synchronize()
            spent = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - self._within.pop()
            if self._within:
                self._within[-1] += spent
