"""What two ranks do in the tests of failures of one: several runs after each other, of which each fails on rank 1 alone."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

from gkd_rl.config.load import load_config
from gkd_rl.training import train

FULL_AT = 50_000
"""Bytes, above those of the logs, below those of any part of a checkpoint."""
REWARDS = """
import os, time

def _late(completions):  # rank 1 has two of three prompts, of two answers each
    return os.environ["RANK"] == "1" and len(completions) == 4

def raises(prompts, completions, **columns):
    if _late(completions):
        raise ValueError("no more")
    return [1.0] * len(completions)

def hangs(prompts, completions, **columns):
    if _late(completions):
        time.sleep(300)
    return [1.0] * len(completions)

def stops(prompts, completions, **columns):
    if os.path.exists(os.environ.get("STOP_AT", "")):
        raise ValueError("enough")
    return [1.0] * len(completions)

def evaluates(prompts, completions, **columns):
    if os.environ["RANK"] == "1" and len(columns["reference"]) == 2 and os.environ.get("LATE"):
        raise ValueError("not these")
    os.environ["LATE"] = "1"
    return [1.0] * len(completions)
"""
TASK = """
import os
from gkd_rl.tasks.arithmetic import ArithmeticTask
from gkd_rl.errors import UserError

class Ends(ArithmeticTask):
    def train_example(self, index):
        if os.environ["RANK"] == "1":
            raise UserError("the data ends first")
        return super().train_example(index)
"""


def everything(config: str, folder: str) -> list[tuple[str, float]]:
    """Of each run: the sentence with which it ended on this rank, and after how many seconds."""
    files = {name: Path(folder) / f"{name}.py" for name in ("rewards", "task")}
    reward = lambda name, more="": f"rewards=[{{path: '{files['rewards']}:{name}', name: mine{more}}}]"
    task = [
        f"task.path={files['task']}:Ends",
        "task.max_prompt_tokens=160",
        "student.path=embedded:arithmetic-student",
        "teacher.path=embedded:arithmetic-teacher",
    ]
    return [
        _ended(config, f"{folder}/{number}", overrides)
        for number, overrides in enumerate(
            ([reward("raises")], [reward("raises"), "rollout.overlap=true"], [reward("hangs", ", timeout: 1")], [reward("evaluates")], task)
        )
    ]


def full_disks(config: str, folder: str) -> list[tuple[str, float, list[str]]]:
    """A run that ends in its second step, continued where the disk is full for rank 0, for rank 1, and for none: how, and what is left.

    A limit on the size of this process's files stands in for the disk.
    """
    reward = f"rewards=[{{path: '{Path(folder).parent / 'rewards.py'}:stops', name: mine}}]"
    overrides, found = ["engine.zero_stage=1", "checkpoint.every=1", "max_steps=2", reward], []
    os.environ["STOP_AT"] = f"{folder}/checkpoints/step-00000001"
    said, _ = _ended(config, folder, overrides)
    assert "enough" in said, said
    del os.environ["STOP_AT"]
    for full in (0, 1, None):
        if os.environ["RANK"] == str(full):
            resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_AT, resource.RLIM_INFINITY))
        ended = _ended(config, folder, ["resume=auto", *overrides])
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        found.append((*ended, sorted(place.name for place in (Path(folder) / "checkpoints").iterdir())))
    return found


def write_files(folder: Path) -> None:
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "task.py").write_text(TASK)


def _ended(config: str, run_dir: str, overrides: list[str]) -> tuple[str, float]:
    started = time.monotonic()
    try:
        train(load_config(config, [f"run_dir={run_dir}", "evaluation.teacher=false", *overrides]))
    except Exception as error:
        return f"{type(error).__name__}: {error}", time.monotonic() - started
    return "", 0.0
