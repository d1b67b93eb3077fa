"""Runs of a sweep as submitted jobs, by submitit's executor of this machine: what is submitted, requeued, and reported."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gkd_rl.ablation.grid import Point
from gkd_rl.ablation.jobs import TrainingJob, make_executor, parse_slurm, status_of
from gkd_rl.ablation.processes import last_words

LOGGING = """
import logging, os, pathlib, sys
from gkd_rl.ablation.jobs import make_executor
folder = pathlib.Path(sys.argv[1])
class Lines(logging.StreamHandler):
    def close(self):
        self.stream.close()
lines = Lines((folder / "lines").open("w"))
logging.getLogger().addHandler(lines)
make_executor({"cluster": "local", "timeout_min": 5}, folder / "jobs")
assert not lines.stream.closed and "SUBMITIT_LOG_LEVEL" not in os.environ
logging.getLogger().warning("still here")
"""

LOCAL = {"cluster": "local", "timeout_min": 5}

RUN = """
import pathlib, signal, sys, time
state = pathlib.Path(sys.argv[1])
def end(*_):
    state.write_text("kept")
    print("ended after a step", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
if state.exists():
    print("went on", flush=True)
    sys.exit(0)
print("began, deaf to SIGUSR2:", signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN, flush=True)
time.sleep(60)
"""
"""A run in short: it ends when it is told to, keeps its state, and goes on from there."""


def _until(path: Path, text: str) -> None:
    deadline = time.monotonic() + 60
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < deadline, path.read_text() if path.exists() else path
        time.sleep(0.05)


def _job(folder: Path) -> tuple[TrainingJob, Path]:
    log = folder / "output.log"
    return TrainingJob([sys.executable, "-c", RUN, str(folder / "state")], str(log)), log


def _children(process: str) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def test_what_is_said_of_jobs_is_read() -> None:
    read = parse_slurm("partition=gpu, gpus_per_node=1,timeout_min=120,mem_gb=1.5")
    assert read == {"cluster": "slurm", "partition": "gpu", "gpus_per_node": 1, "timeout_min": 120, "mem_gb": 1.5}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partition", "--slurm: 'partition' is not of the form key=value"),
        ("timeout_min=", "--slurm: 'timeout_min=' is not of the form key=value"),
        ("nodes=2", "--slurm: nodes cannot be set, since each run is one process"),
        ("cluster=lsf", "--slurm: cluster=lsf is not known; it is one of slurm, local"),
        ("cluster=local,timeout_min=long", '--slurm: Parameter "timeout_min" expected type'),
        ("partition=gpu", "--slurm: timeout_min is missing; say how many minutes"),
        ("cluster=local,timeout_min=5,partitoin=gpu", "--slurm: Unknown argument 'partitoin' for executor 'slurm'"),
    ],
)
def test_what_jobs_cannot_be_submitted_with_is_refused_and_leaves_no_folder(refused, small: Path, tmp_path: Path, text: str, said: str):
    sentence = refused("ablate", small, f"run_dir={tmp_path / 'sweep'}", "ablation.grid={objective.alpha: [0, 1]}", "--slurm", text)
    assert sentence.startswith(said) and not (tmp_path / "sweep").exists()


def test_without_slurm_nothing_is_submitted(refused, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_args, **_settings: None)  # there may be a SLURM here
    grid = "ablation.grid={objective.alpha: [0, 1]}"
    said = refused("ablate", small, f"run_dir={tmp_path / 'sweep'}", grid, "--slurm", "timeout_min=5")
    assert "srun" in said and "or say cluster=local" in said and not (tmp_path / "sweep").exists()


def test_submitting_leaves_the_logging_of_this_process_alone(tmp_path: Path) -> None:
    """submitit's import closes the handlers that there are, absl's among them, whose stream may be another's: here, pytest's own."""
    said = subprocess.run([sys.executable, "-c", LOGGING, str(tmp_path)], capture_output=True, text=True)
    assert said.stdout == "" and said.stderr == "" and (tmp_path / "lines").read_text() == "still here\n"


def test_a_job_that_has_to_end_lets_its_run_keep_its_state_and_the_next_goes_on(tmp_path: Path) -> None:
    job, log = _job(tmp_path)
    statuses: list[int] = []
    working = threading.Thread(target=lambda: statuses.append(job()))
    working.start()
    _until(log, "began")
    following = job.checkpoint().function
    working.join()
    assert log.read_text() == "began, deaf to SIGUSR2: True\nended after a step\n" and statuses == [143]
    assert pickle.loads(pickle.dumps(following))() == 0
    assert log.read_text().endswith("went on\n")


def test_submitit_requeues_a_job_whose_time_is_over(tmp_path: Path) -> None:
    work, log = _job(tmp_path)
    job = make_executor(LOCAL, tmp_path / "jobs").submit(work)
    _until(log, "began")
    (task,) = _children(job.job_id)
    os.kill(int(task), signal.SIGUSR2)
    assert job.result() == 0
    assert log.read_text().splitlines()[1:] == ["ended after a step", "went on"]


def test_what_a_job_itself_raises_is_said(tmp_path: Path) -> None:
    job = make_executor(LOCAL, tmp_path / "jobs").submit(TrainingJob(["/nowhere/python"], str(tmp_path / "output.log")))
    job.wait()
    assert status_of(Point({}, 0, tmp_path), job) == 1
    said = last_words(Point({}, 0, tmp_path))
    assert said.startswith(f"job {job.job_id} ended with FileNotFoundError") and "/nowhere/python" in said


@pytest.mark.slow
def test_a_job_that_vanishes_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    """Slow since a quarter of a minute is waited for a file that may yet come."""
    point = Point({"objective.alpha": 0}, 0, tmp_path)
    work, log = _job(tmp_path)
    job = make_executor(LOCAL, tmp_path / "jobs").submit(work)
    _until(log, "began")
    (task,) = _children(job.job_id)
    (run,) = _children(task)
    for process in (task, run):
        os.kill(int(process), signal.SIGKILL)
    assert status_of(point, job) == 1
    assert last_words(point).startswith(f"job {job.job_id} ended without a word; see {tmp_path}/jobs/{job.job_id}")
