"""Compare symbolic answers in a process of its own that is ended when it takes too long."""

import importlib.util
import json
import os
import selectors
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reward_models.errors import InputError, RewardError

MAX_TEXT = 1000
_MEMORY_BYTES = 2 * 2**30
_START_SECONDS = 120.0
_WORKER = Path(__file__).with_name("symbolic_worker.py")

Status = Literal["correct", "wrong", "no_answer", "bad_reference"]


@dataclass(frozen=True)
class SymbolicVerdict:
    """The outcome of one comparison; `unfinished` where a limit on time or memory ended it (then it counts as wrong)."""

    status: Status
    unfinished: bool = False


class SymbolicJudge:
    """Asks a worker process whether two LaTeX expressions are equal.

    Args:
        seconds: time limit of one comparison; the worker is ended and replaced when it is passed.

    Raises:
        InputError: `math-verify` is not installed, or `seconds` is not positive.
    """

    def __init__(self, seconds: float = 5.0) -> None:
        if seconds <= 0:
            raise InputError(f"the time limit of symbolic comparisons is {seconds}; it must be positive")
        if importlib.util.find_spec("math_verify") is None:
            raise InputError("symbolic answers need math-verify; install it with: pip install 'gkd-rl[math]'")
        self.seconds = seconds
        self._worker: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def compare(self, reference: str, answer: str) -> SymbolicVerdict:
        """Return whether `answer` equals `reference`; texts of more than 1,000 characters are unreadable."""
        if len(reference) > MAX_TEXT:
            return SymbolicVerdict("bad_reference")
        request = json.dumps({"reference": reference, "answer": answer if len(answer) <= MAX_TEXT else ""})
        with self._lock:
            worker = self._worker if self._worker and self._worker.poll() is None else self._start()
            assert worker.stdin
            worker.stdin.write(request.encode() + b"\n")
            worker.stdin.flush()
            reply = _reply(worker, self.seconds)
            if reply is None:
                self.close()
                return SymbolicVerdict("wrong", unfinished=True)
            return SymbolicVerdict(reply)

    def close(self) -> None:
        """End the worker; the next comparison starts a new one."""
        if self._worker:
            _end(self._worker)
        self._worker = None

    def _start(self) -> subprocess.Popen[bytes]:
        limits = [str(_MEMORY_BYTES), str(int(self.seconds) + 5)]
        command = [sys.executable, str(_WORKER), *limits]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        weakref.finalize(self, _end, worker)
        if _reply(worker, _START_SECONDS) != "ready":
            _end(worker)
            raise RewardError("the process that compares symbolic answers does not start; try: python -c 'import math_verify'")
        self._worker = worker
        return worker


def _reply(worker: subprocess.Popen[bytes], seconds: float) -> Any:
    """The worker's next line, None where it does not come in time or the worker has ended."""
    assert worker.stdout
    deadline = time.monotonic() + seconds
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(worker.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None
            part = os.read(worker.stdout.fileno(), 100)
            if not part:
                return None
            line += part
    return json.loads(line)


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.kill()
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        if pipe:
            pipe.close()
