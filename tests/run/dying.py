"""``python dying.py PLACE NUMBER ARGUMENTS...``: the command line in a process that kills itself at a place of its work.

``PLACE`` is a phase of a step, entered for the ``NUMBER``-th time, or a moment within the writing of a checkpoint or a log.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

from gkd_rl import checkpoint, run_folder
from gkd_rl.cli import main
from gkd_rl.console import PhaseTimes


def die_at(place: str, number: int) -> None:
    """Arrange for the end."""
    visits = itertools.count(1)

    def die_now() -> None:
        if next(visits) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    if place == "unclosed checkpoint":  # all of it is written but what closes it
        digests = checkpoint.digests
        checkpoint.digests = lambda *arguments: die_now() or digests(*arguments)  # type: ignore[assignment]
    elif place == "closed checkpoint":  # all is written, but not under its name
        flush = checkpoint._flush
        checkpoint._flush = lambda folder: die_now() or flush(folder)  # type: ignore[assignment]
    elif place == "half a line":
        append = run_folder.RunFolder.append

        def half(folder: run_folder.RunFolder, name: str, rows) -> None:
            append(folder, name, rows)
            if name == "metrics.jsonl" and next(visits) == number:
                path = Path(folder.path / name)
                os.truncate(path, path.stat().st_size - 20)
                os.kill(os.getpid(), signal.SIGKILL)

        run_folder.RunFolder.append = half  # type: ignore[method-assign]
    else:
        phase = PhaseTimes.phase

        @contextmanager
        def deadly(times: PhaseTimes, name: str):
            if name == place:
                die_now()
            with phase(times, name):
                yield

        PhaseTimes.phase = deadly  # type: ignore[method-assign]


if __name__ == "__main__":
    die_at(sys.argv[1], int(sys.argv[2]))
    main(sys.argv[3:])
