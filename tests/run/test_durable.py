"""Nothing is lost: a run that is killed anywhere, stopped by a signal, or cut off by a full disk continues to the last digit."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from workbench import Outcome, rows_of

DYING = str(Path(__file__).with_name("dying.py"))
SHORT = ("max_steps=4", "checkpoint.every=1", "evaluation.teacher=false")
PLACES = [
    ("sample", 3),
    ("reward", 4),
    ("teacher", 3),
    ("student", 13),
    ("optimiser", 10),
    ("checkpoint", 3),
    ("unclosed checkpoint", 3),
    ("closed checkpoint", 3),
    ("half a line", 3),
]
FAST = (1, 3, 7)
"""Of the places: the others are killed at in the slow tier."""


def assert_same(folder: Path, whole: Path) -> None:
    for name in ("metrics.jsonl", "rollouts.jsonl", "model/model.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.fixture(scope="module")
def whole(cli_once: Callable[..., Outcome], arithmetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert cli_once("train", arithmetic, f"run_dir={folder}", *SHORT).status == 0
    return folder


@pytest.fixture(scope="module")
def cli_once(run: Callable[..., Outcome]) -> Callable[..., Outcome]:
    return run


def _die(environment: dict[str, str], place: str, number: int, *arguments: object) -> int:
    command = [sys.executable, DYING, place, str(number), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, timeout=200).returncode


@pytest.mark.parametrize(
    ("place", "number"), [p if i in FAST else pytest.param(*p, marks=pytest.mark.slow) for i, p in enumerate(PLACES)], ids=lambda v: str(v)
)
def test_a_run_killed_in_any_phase_continues_to_the_last_digit(
    environment: dict[str, str], cli, arithmetic: Path, whole: Path, tmp_path: Path, place: str, number: int
) -> None:
    arguments = ("train", arithmetic, f"run_dir={tmp_path / 'run'}", *SHORT)
    assert _die(environment, place, number, *arguments) == -signal.SIGKILL
    assert 0 < len(rows_of_whole_lines(tmp_path / "run" / "metrics.jsonl")) < 4
    outcome = cli(*arguments, "resume=auto")
    assert outcome.status == 0 and "resumed from" in outcome.out, outcome
    assert_same(tmp_path / "run", whole)


def rows_of_whole_lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_run_killed_at_a_random_moment_continues_to_the_last_digit(
    start: Callable, run: Callable[..., Outcome], arithmetic: Path, whole: Path, tmp_path: Path, seed: int
) -> None:
    arguments = ("train", arithmetic, f"run_dir={tmp_path / 'run'}", *SHORT, "resume=auto")
    process = start(*arguments)
    time.sleep(random.Random(seed).uniform(3, 12))
    process.kill()
    process.communicate()
    assert run(*arguments).status == 0
    assert_same(tmp_path / "run", whole)


@pytest.fixture(scope="module")
def slow_reward(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reward in a file of its own that takes its time once a step: signals arrive within a step."""
    file = tmp_path_factory.mktemp("rewards") / "slow.py"
    file.write_text(
        "import time\n\nclass Slow:\n    def __init__(self, seconds=0.5):\n        self.seconds = seconds\n\n"
        "    def __call__(self, prompts, completions, **columns):\n"
        "        time.sleep(self.seconds if len(completions) > 7 else 0)\n        return [float(len(c) % 3) for c in completions]\n"
    )
    return f"{file}:Slow"


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_lets_the_step_finish_and_keeps_it(
    start: Callable, cli, arithmetic: Path, slow_reward: str, tmp_path: Path, number: signal.Signals
) -> None:
    rewards = f"rewards=[{{path: '{slow_reward}'}}]"
    settings = ("train", arithmetic, rewards, "max_steps=6", "checkpoint.every=0", "evaluation.teacher=false")
    process = start(*settings, f"run_dir={tmp_path / 'run'}")
    _wait_for_steps(process, tmp_path / "run", 2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    done = len(rows_of(tmp_path / "run" / "metrics.jsonl"))
    assert f"gkd-rl: {number.name}: this step is finished and its state kept" in err
    assert err.endswith(f"gkd-rl: {number.name} after step {done} of 6; resume=auto continues there\n")
    assert [place.name for place in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{done:08d}"]
    outcome = cli(*settings, f"run_dir={tmp_path / 'run'}", "resume=auto")
    assert outcome.status == 0 and f"({done} of 6 steps done)" in outcome.out
    if number == signal.SIGTERM:
        assert cli(*settings, f"run_dir={tmp_path / 'whole'}").status == 0
        assert_same(tmp_path / "run", tmp_path / "whole")


def _wait_for_steps(process: subprocess.Popen, folder: Path, steps: int) -> None:
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() or len(rows_of_whole_lines(folder / "metrics.jsonl")) < steps:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


def test_a_second_signal_leaves_at_once(start: Callable, arithmetic: Path, slow_reward: str, tmp_path: Path) -> None:
    rewards = f"rewards=[{{path: '{slow_reward}', options: {{seconds: 100}}}}]"
    settings = ("rollout.prompts_per_step=8", "rollout.on_policy_share=1.0", "evaluation.examples=2", "evaluation.teacher=false")
    process = start("train", arithmetic, f"run_dir={tmp_path / 'run'}", rewards, *settings)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "environment.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    time.sleep(6)  # into the reward's sleep
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGTERM
    assert err.endswith("gkd-rl: terminated; resume=auto continues from the newest checkpoint\n")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "unclosed", "garbled"])
def test_a_damaged_checkpoint_is_passed_over_with_its_reason(cli, arithmetic: Path, whole: Path, tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "summary.json").unlink()
    newest = folder / "checkpoints" / "step-00000004"
    weights = newest / "state" / "mp_rank_00_model_states.pt"
    if damage == "truncated":
        os.truncate(weights, 1000)
    elif damage == "flipped":
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    elif damage == "missing":
        (newest / "buffer-0.pt").unlink()
    elif damage == "unclosed":
        (newest / "state.json").unlink()
    else:
        os.truncate(newest / "state.json", 40)
    outcome = cli("train", arithmetic, f"run_dir={folder}", *SHORT, "resume=auto")
    assert outcome.status == 0, outcome.err
    reason = {
        "missing": "buffer-0.pt is missing",
        "unclosed": "it was not finished",
        "garbled": "state.json cannot be read",
    }.get(damage, "state/mp_rank_00_model_states.pt is not what was written")
    assert f"the checkpoint {newest} is passed over: {reason}" in outcome.out.replace("\n", "")
    assert "step-00000003 (3 of 4 steps done)" in outcome.out.replace("\n", "")
    assert_same(folder, whole)


def test_a_full_disk_ends_the_run_with_its_state_kept(
    environment: dict[str, str], cli, arithmetic: Path, whole: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands in for the disk: from the second checkpoint on, none can be written."""
    folder = tmp_path / "run"
    assert cli("train", arithmetic, f"run_dir={folder}", *SHORT, "max_steps=1").status == 0
    settings = ("train", str(arithmetic), f"run_dir={folder}", *SHORT, "resume=auto")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
    command = [sys.executable, "-m", "gkd_rl", *settings]
    full = subprocess.run(command, env=environment, capture_output=True, text=True, preexec_fn=limit, timeout=200)
    assert full.returncode == 2, full.stderr
    assert full.stderr.count("\n") == 1 and f"the checkpoint {folder}/checkpoints/step-00000002 could not be written (" in full.stderr
    assert [place.name for place in (folder / "checkpoints").iterdir()] == ["step-00000001"]
    assert cli(*settings).status == 0
    assert_same(folder, whole)


def test_the_best_checkpoint_is_kept_beside_the_newest(cli, arithmetic: Path, tmp_path: Path) -> None:
    settings = ("max_steps=6", "checkpoint.every=1", "checkpoint.keep=1", "checkpoint.keep_best=true", "evaluation.every=1")
    assert cli("train", arithmetic, f"run_dir={tmp_path / 'run'}", *settings, "evaluation.during_examples=24").status == 0
    scores = {row["step"]: row["eval_accuracy"] for row in rows_of(tmp_path / "run" / "metrics.jsonl") if "eval_accuracy" in row}
    kept = {int(place.name.removeprefix("step-")) for place in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {6, max(scores, key=lambda step: (scores[step], step))}
    for step in kept - {6}:
        state = json.loads((tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "state.json").read_text())
        assert state["score"] == scores[step]


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_as_one_that_is_not(start: Callable, run: Callable[..., Outcome], tmp_path: Path) -> None:
    """The quickstart's job, shortened."""
    config = Path(__file__).resolve().parents[2] / "configs" / "arithmetic.yaml"
    settings = ("max_steps=24", "checkpoint.every=1", "evaluation.examples=20", "evaluation.teacher=false", "evaluation.every=0")
    assert run("train", config, f"run_dir={tmp_path / 'whole'}", *settings).status == 0
    killed, deadline = 0, time.monotonic() + 1500
    chance = random.Random(0)
    while killed < 10:
        assert time.monotonic() < deadline
        process = start("train", config, f"run_dir={tmp_path / 'run'}", *settings, "resume=auto")
        before = _steps(tmp_path / "run")
        while process.poll() is None and _steps(tmp_path / "run") < before + 1:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 1.5))
        if process.poll() is None:
            process.kill()
            killed += 1
        process.communicate()
    assert run("train", config, f"run_dir={tmp_path / 'run'}", *settings, "resume=auto").status == 0
    assert_same(tmp_path / "run", tmp_path / "whole")


def _steps(folder: Path) -> int:
    return max((int(place.name.removeprefix("step-")) for place in (folder / "checkpoints").glob("step-*")), default=0)
