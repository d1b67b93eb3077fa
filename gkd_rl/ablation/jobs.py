"""The runs of a grid as jobs of a SLURM cluster, by submitit: one job for each run, requeued where its time is over or it is preempted."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gkd_rl.ablation.grid import Point
from gkd_rl.ablation.processes import command_of, empty_log, log_of
from gkd_rl.errors import UserError
from gkd_rl.run_folder import write_atomically

CLUSTERS = ("slurm", "local")
_SHARED = ("name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node")
"""Keys that submitit has for every kind of cluster; others are sbatch's."""
_OF_ONE_PROCESS = ("nodes", "tasks_per_node", "ntasks_per_node", "array_parallelism")
_PAUSE = 1.0
"""Seconds between two looks at the jobs."""
_ASK_AGAIN = 10.0
"""Seconds for which an answer of the cluster that a job is there is good."""
_LATE = 15.0
"""Seconds that a file system may take to show here what a job wrote on another host."""
_RULE = "----------------------"
"""Around the trace in submitit's account of a job that raised something."""
_RECORD = "jobs.json"
_LOGGING = "SUBMITIT_LOG_LEVEL"


@dataclass
class TrainingJob:
    """What a job does: the training run as a process, which keeps its state and ends where the job has to."""

    command: list[str]
    log: str
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __call__(self) -> int:
        """The run's exit status."""
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, preexec_fn=_leave_requeuing_to_the_job
            )
        try:
            while self.process.poll() is None:
                time.sleep(0.1)
            return self.process.returncode
        finally:
            if self.process.poll() is None:
                self.process.terminate()

    def checkpoint(self) -> Any:
        """Called by submitit's handler of a signal that the job's time is over: the run finishes its step, and goes on in the next job."""
        from submitit.helpers import DelayedSubmission

        assert self.process is not None, "a job that was not begun has no signal to handle"
        with contextlib.suppress(ChildProcessError, ProcessLookupError):  # the handler may have come between its end and its status
            os.kill(self.process.pid, signal.SIGTERM)
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)  # Popen's own wait is not for use within a handler
        return DelayedSubmission(TrainingJob(self.command, self.log))


def _leave_requeuing_to_the_job() -> None:
    """SLURM sends the signal to all processes of a job; the run would die of it."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def parse_slurm(text: str) -> dict[str, Any]:
    """``"partition=gpu,timeout_min=120"`` as a mapping, numbers as numbers. Raises ``UserError`` for what is not of this form, and
    without ``timeout_min``, whose default of some minutes is no run's."""
    if find_spec("submitit") is None:
        raise UserError("--slurm submits by submitit, which is not installed; pip install 'gkd-rl[slurm]'")
    settings: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not key or not value:
            raise UserError(f"--slurm: '{part}' is not of the form key=value, as in partition=gpu,gpus_per_node=1,timeout_min=120")
        if key in _OF_ONE_PROCESS:
            raise UserError(f"--slurm: {key} cannot be set, since each run is one process in a job of its own; leave it out")
        settings[key] = _number(value)
    if settings.setdefault("cluster", CLUSTERS[0]) not in CLUSTERS:
        raise UserError(f"--slurm: cluster={settings['cluster']} is not known; it is one of {', '.join(CLUSTERS)}")
    if "timeout_min" not in settings:
        raise UserError("--slurm: timeout_min is missing; say how many minutes a job may take, as in timeout_min=120")
    return settings


def _number(value: str) -> Any:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(value)
    return value


def make_executor(settings: Mapping[str, Any], folder: Path) -> Any:
    """submitit's executor, whose files go to ``folder``. Raises ``UserError`` where there is no SLURM, or for a key that it has not."""
    submitit = _submitit()
    cluster = settings["cluster"]
    given = {key if key in _SHARED else f"slurm_{key}": value for key, value in settings.items() if key != "cluster"}
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**{"name": "gkd-rl", **given})
    except RuntimeError as error:
        raise UserError(f"--slurm: {error}; start on a host of the cluster, or say cluster=local for jobs on this machine") from None
    except (NameError, ValueError, AssertionError) as error:
        raise UserError(f"--slurm: {str(error).splitlines()[0]}") from None
    return executor


def _submitit() -> Any:
    """The module, whose first import would close every logging handler of this process, with the streams that are theirs, to set up its
    own; a job's own process still does, for the job's log."""
    before = os.environ.get(_LOGGING)
    os.environ[_LOGGING] = "NOCONFIG"
    try:
        import submitit
    finally:
        del os.environ[_LOGGING]
        if before is not None:
            os.environ[_LOGGING] = before
    return submitit


def run_jobs(
    points: Sequence[Point],
    config_path: str,
    overrides: Sequence[str],
    settings: Mapping[str, Any],
    folder: Path,
    ended: Callable[[Point, int, float], None],
) -> None:
    """Submit a job for every point and wait for all; ``ended`` hears of each that ends, with its exit status and seconds since then.

    What ends this leaves jobs of a cluster in its queue: ``folder`` holds their numbers, and called again this waits for those that are
    still there. Jobs on this machine end with this.
    """
    executor, queue = make_executor(settings, folder), Queue() if settings["cluster"] == "slurm" else None
    live: dict[Path, tuple[Point, Any]] = {}
    started = time.monotonic()
    try:
        for point in points:
            live[point.folder] = point, _job(executor, queue, point, config_path, overrides, folder)
        while live:
            for place, (point, job) in list(live.items()):
                if job.paths.result_pickle.exists() or (job.done() if queue is None else not queue.holds(job)):
                    del live[place]
                    ended(point, status_of(point, job), time.monotonic() - started)
            time.sleep(_PAUSE if live else 0)
    finally:
        if queue is None:
            for _, job in live.values():
                job.cancel()


class Queue:
    """Which jobs of this user wait or run, by ``squeue``: ``sacct``, which submitit asks, knows of none on a cluster without accounts."""

    def __init__(self) -> None:
        self._asked = -math.inf
        self._numbers: set[str] = set()

    def holds(self, job: Any) -> bool:
        """Whether the job is still there; jobs are there too while the cluster does not answer."""
        if job.job_id in self._numbers and time.monotonic() - self._asked < _ASK_AGAIN:
            return True
        said = subprocess.run(["squeue", "--me", "--noheader", "--format=%A"], capture_output=True, text=True)
        if said.returncode:
            return True
        self._asked, self._numbers = time.monotonic(), set(said.stdout.split())
        return job.job_id in self._numbers


def _job(executor: Any, queue: Queue | None, point: Point, config_path: str, overrides: Sequence[str], folder: Path) -> Any:
    """The point's job: one that waits or runs already, or else a new one."""
    from submitit.core.utils import FailedJobError

    command = command_of(point, config_path, overrides)
    record = folder / _RECORD
    known: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {}
    before = known.get(point.folder.name)
    if queue is not None and before is not None and before["command"] == command:
        job = _submitit().SlurmJob(folder, before["job"])
        if queue.holds(job):
            return job
    empty_log(point)
    try:
        job = executor.submit(TrainingJob(command, str(log_of(point).absolute())))
    except FailedJobError as error:  # what sbatch said
        raise UserError(f"--slurm: {' '.join(str(error).split())}; correct it and repeat the command") from None
    write_atomically(record, json.dumps({**known, point.folder.name: {"job": job.job_id, "command": command}}, indent=2))
    return job


def status_of(point: Point, job: Any) -> int:
    """The exit status of the run of a job that is over; 1 where the job has none to tell, which the run's log then says."""
    from submitit.core.utils import FailedJobError

    deadline = time.monotonic() + _LATE
    while not job.paths.result_pickle.exists() and time.monotonic() < deadline:
        time.sleep(_PAUSE)
    try:
        if job.paths.result_pickle.exists():
            return job.result()
        said = f"without a word; see {job.paths.stderr}"
    except FailedJobError as error:
        said = f"with {str(error).split(_RULE)[1].strip().splitlines()[-1]}"
    with log_of(point).open("a") as log:
        log.write(f"job {job.job_id} ended {said}\n")
    return 1
