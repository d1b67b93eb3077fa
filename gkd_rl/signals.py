"""Signals that end a run: the first lets the step finish and its state be kept, the second leaves at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from gkd_rl.processes import Processes

ENDING = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Notes the first of ``ENDING`` while it is entered; a second one does what it would have done before."""

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            self._before = {number: signal.signal(number, self._note) for number in ENDING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def agreed(self, processes: Processes) -> int:
        """The signal that any rank was sent, 0 if none; every rank calls it."""
        return int(processes.largest(float(self.number)))

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.__exit__()
        self.number = number
        if os.environ.get("RANK", "0") == "0":
            said = f"gkd-rl: {signal.Signals(number).name}: this step is finished and its state kept; a second signal leaves at once"
            print(f"\n{said}", file=sys.stderr, flush=True)
