"""The runs of a grid as processes of this machine, several at once where that is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gkd_rl.ablation.grid import Point
from gkd_rl.errors import UserError

_PAUSE = 0.1
"""Seconds between two looks at the processes."""


@dataclass
class _Live:
    point: Point
    process: subprocess.Popen[bytes]
    started: float


def run_all(
    points: Sequence[Point],
    config_path: str,
    overrides: Sequence[str],
    at_once: int,
    threads: int,
    ended: Callable[[Point, int, float], None],
) -> None:
    """Train every point in a process of its own, ``at_once`` at a time with ``threads`` CPU threads each (0: as many as they like).

    ``ended`` hears of each that ends, with its exit status and its seconds. Whatever ends this ends the processes: nothing goes on unseen.
    """
    waiting, live = list(points), list[_Live]()
    try:
        while waiting or live:
            while waiting and len(live) < at_once:
                live.append(_start(waiting.pop(0), config_path, overrides, threads))
            if not (over := [one for one in live if one.process.poll() is not None]):
                time.sleep(_PAUSE)
            for one in over:
                live.remove(one)
                ended(one.point, one.process.returncode, time.monotonic() - one.started)
    finally:
        for one in live:
            one.process.terminate()
        for one in live:
            one.process.wait()


def _start(point: Point, config_path: str, overrides: Sequence[str], threads: int) -> _Live:
    """The training run of ``point``; what it says goes to ``output.log`` in its folder."""
    empty_log(point)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)} if threads else None
    with log_of(point).open("w") as log:
        process = subprocess.Popen(
            command_of(point, config_path, overrides), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
    return _Live(point, process, time.monotonic())


def command_of(point: Point, config_path: str, overrides: Sequence[str]) -> list[str]:
    """What trains ``point``."""
    return [sys.executable, "-m", "gkd_rl", "train", config_path, *overrides, *point.overrides]


def log_of(point: Point) -> Path:
    """Where the run of ``point`` says what it says."""
    return point.folder / "output.log"


def empty_log(point: Point) -> None:
    """Make the folder of ``point`` with an empty log. Raises ``UserError`` where a file is in its place."""
    try:
        point.folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{point.folder}, where a run of the grid belongs, is not a folder; move it away") from None
    log_of(point).write_text("")


def last_words(point: Point) -> str:
    """The last line that a run said: where it failed, its sentence."""
    lines = log_of(point).read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
