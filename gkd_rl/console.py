"""What a run says in the terminal: progress bars, a live line of figures, tables. Only the main process speaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


class Terminal:
    """Progress and tables on the console; silent where ``speaks`` is False."""

    def __init__(self, speaks: bool = True) -> None:
        self.console = Console(quiet=not speaks, highlight=False)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Bar]:
        """A bar for ``total`` steps of ``what``, with rate and remaining time. Without a terminal: a line now and then."""
        columns = (
            TextColumn("{task.description:<11}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        with _Progress(*columns, console=self.console, transient=False, disable=not self.console.is_terminal) as progress:
            yield Bar(self, progress, what, total)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(title=title, title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)


class _Progress(Progress):
    """Bars with their figures on a line of their own: beside the bar they would push it out of a narrow terminal."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(f"  {task.fields['figures']}", no_wrap=True, overflow="ellipsis") for task in self.tasks if task.fields["figures"])


class Bar:
    """One progress bar with live figures."""

    def __init__(self, terminal: Terminal, progress: Progress, what: str, total: int) -> None:
        self.terminal, self.progress, self.what, self.total = terminal, progress, what, total
        self.done = 0
        self.started = self.spoken = time.monotonic()
        self.task = progress.add_task(what, total=total, rate="", figures="")

    def advance(self, steps: int = 1, figures: Mapping[str, float] | None = None) -> None:
        self.done += steps
        seconds = time.monotonic() - self.started
        line = "  ".join(f"{name} {value:.3g}" for name, value in (figures or {}).items())
        self.progress.update(self.task, advance=steps, rate=f"{self.done / max(seconds, 1e-9):.2f}/s", figures=line)
        if not self.terminal.console.is_terminal and (self.done == self.total or time.monotonic() - self.spoken > 20):
            self.spoken = time.monotonic()
            self.terminal.say(f"{self.what} {self.done}/{self.total}  {seconds:.0f} s  {line}".rstrip())


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
