"""One of two processes is gone: the other stops with its name, and what was kept continues."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from workbench import rows_of

Pair = list[subprocess.Popen]


@pytest.fixture
def pair(environment: dict[str, str], arithmetic: Path, tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    """``pair(*overrides)``: ranks 0 and 1 of one run, without a launcher that would end one when the other ends."""
    started: Pair = []

    def pair(*overrides: str) -> Pair:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = str(listener.getsockname()[1])
        for rank in ("0", "1"):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            command = [sys.executable, "-m", "gkd_rl", "train", str(arithmetic), f"run_dir={tmp_path / 'run'}", *overrides]
            started.append(
                subprocess.Popen(command, env={**environment, **place}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
        return started

    yield pair
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _wait_for_steps(pair: Pair, folder: Path, steps: int) -> None:
    deadline = time.monotonic() + 150
    while not (folder / "metrics.jsonl").exists() or len(rows_of(folder / "metrics.jsonl")) < steps:
        assert all(process.poll() is None for process in pair) and time.monotonic() < deadline, [p.communicate() for p in pair]
        time.sleep(0.05)


@pytest.mark.parametrize("lost", [0, 1])
def test_the_others_stop_with_the_lost_ranks_name(pair: Callable[..., Pair], tmp_path: Path, lost: int) -> None:
    both = pair("max_steps=1000")
    _wait_for_steps(both, tmp_path / "run", 1)
    os.kill(both[lost].pid, signal.SIGKILL)
    _, err = both[1 - lost].communicate(timeout=30)
    assert both[1 - lost].returncode == 2, err
    assert f"rank {lost} was lost, so the others stop; resume=auto continues from the newest checkpoint\n" in err
    assert "Traceback" not in err


def test_a_signal_to_one_rank_stops_both_with_their_state_kept(pair: Callable[..., Pair], tmp_path: Path) -> None:
    both = pair("max_steps=1000", "checkpoint.every=0", "engine.zero_stage=2")
    _wait_for_steps(both, tmp_path / "run", 1)
    both[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [128 + signal.SIGTERM] * 2, said
    done = len(rows_of(tmp_path / "run" / "metrics.jsonl"))
    assert f"SIGTERM after step {done} of 1000" in said[0]
    assert [place.name for place in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{done:08d}"]
