"""The same seed gives the same files; a killed run continues to the last digit; finished and earlier runs are safe."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from workbench import Outcome, check_folder, rows_of

LOGS = ("metrics.jsonl", "rollouts.jsonl")
STEPS = 6


@pytest.fixture(scope="module")
def whole(run: Callable[..., Outcome], arithmetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    outcome = run("train", arithmetic, f"run_dir={folder}")
    assert outcome.status == 0, outcome.err
    check_folder(folder, STEPS)
    return folder


@pytest.fixture(scope="module")
def killed(start: Callable, arithmetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run, killed after its first checkpoint and before its end; a newer checkpoint was not finished."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    process = start("train", arithmetic, f"run_dir={folder}")
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "step-00000002").is_dir() or len(rows_of(folder / "metrics.jsonl")) < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (folder / "summary.json").exists()
    unfinished = shutil.copytree(folder / "checkpoints" / "step-00000002", folder / "checkpoints" / "step-00000005")
    (unfinished / "state.json").unlink()
    return folder


@pytest.fixture(scope="module")
def continued(run: Callable[..., Outcome], killed: Path, arithmetic: Path) -> tuple[Path, Outcome]:
    """The killed run, continued to its end."""
    outcome = run("train", arithmetic, f"run_dir={killed}", "resume=auto")
    assert outcome.status == 0, outcome.err
    return killed, outcome


def _weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def test_the_same_seed_gives_the_same_files(cli, arithmetic: Path, whole: Path, tmp_path: Path) -> None:
    assert cli("train", arithmetic, f"run_dir={tmp_path / 'again'}").status == 0
    for name in LOGS:
        assert (tmp_path / "again" / name).read_bytes() == (whole / name).read_bytes()
    assert _weights(tmp_path / "again") == _weights(whole)


def test_another_seed_gives_other_files(cli, arithmetic: Path, whole: Path, tmp_path: Path) -> None:
    assert cli("train", arithmetic, f"run_dir={tmp_path / 'other'}", "seed=1", "max_steps=1").status == 0
    for name in LOGS:
        assert rows_of(tmp_path / "other" / name)[0] != rows_of(whole / name)[0]


def test_the_cut_into_micro_batches_changes_nothing_that_is_learnt(cli, arithmetic: Path, whole: Path, tmp_path: Path) -> None:
    assert cli("train", arithmetic, f"run_dir={tmp_path / 'cut'}", "engine.micro_batch_tokens=300", "max_steps=2").status == 0
    for ours, theirs in zip(rows_of(tmp_path / "cut" / "metrics.jsonl"), rows_of(whole / "metrics.jsonl")[:2], strict=True):
        for name in ("loss", "divergence", "reward", "grad_norm", "tokens", "length"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name


def test_a_killed_run_continues_to_the_last_digit(continued: tuple[Path, Outcome], whole: Path) -> None:
    folder, outcome = continued
    assert "resumed from " in outcome.out
    for name in LOGS:
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert _weights(folder) == _weights(whole)
    check_folder(folder, STEPS)
    ours, theirs = (json.loads((place / "summary.json").read_text()) for place in (folder, whole))
    for name in ("accuracy_before", "accuracy_after", "accuracy_teacher"):
        assert ours[name] == theirs[name]
    timeless = ({k: v for k, v in s["after"].items() if k != "tokens_per_second"} for s in (ours, theirs))
    assert next(timeless) == next(timeless)


def test_a_checkpoint_that_was_not_finished_is_passed_over(continued: tuple[Path, Outcome]) -> None:
    said = continued[1].out.replace("\n", "")
    assert "step-00000005 is passed over: it was not finished" in said and "resumed from" in said.split("step-00000005")[1]
    assert f"({STEPS} steps done)" not in said and f"of {STEPS} steps done)" in said


def test_continuing_a_finished_run_says_so_and_changes_nothing(cli, arithmetic: Path, whole: Path) -> None:
    before = _fingerprints(whole)
    outcome = cli("train", arithmetic, f"run_dir={whole}", "resume=auto")
    assert outcome.status == 0
    assert f"run_dir {whole} holds this run, finished after {STEPS} steps" in outcome.out
    assert _fingerprints(whole) == before


def test_a_finished_run_goes_on_where_more_steps_are_asked_for(cli, arithmetic: Path, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    assert cli("train", arithmetic, f"run_dir={folder}", "resume=auto", f"max_steps={STEPS + 1}").status == 0
    check_folder(folder, STEPS + 1)
    assert rows_of(folder / "rollouts.jsonl")[: len(rows_of(whole / "rollouts.jsonl"))] == rows_of(whole / "rollouts.jsonl")


def test_a_new_run_sets_the_earlier_one_aside_and_says_so(cli, arithmetic: Path, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    for number in (1, 2):
        outcome = cli("train", arithmetic, f"run_dir={folder}", "resume=new", "max_steps=1")
        assert outcome.status == 0
        assert f"{folder} held an earlier run: it is now {folder}.{number}" in outcome.out
    check_folder(folder, 1)
    assert (tmp_path / "run.1" / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    check_folder(tmp_path / "run.2", 1)


def test_a_run_is_not_continued_with_other_settings(refused, arithmetic: Path, whole: Path) -> None:
    before = _fingerprints(whole)
    for override, said in (
        ("objective.alpha=0.25", "holds a run with objective.alpha=0.5, not 0.25; resume=new sets it aside first"),
        ("rewards=[{path: reward_models.ArithmeticVerifier}]", "holds a run with rewards=None, not "),
        ("seed=5", "holds a run with seed=0, not 5"),
        ("max_steps=3", f"holds a run of {STEPS} steps, more than max_steps=3"),
    ):
        assert said in refused("train", arithmetic, f"run_dir={whole}", "resume=auto", override)
    assert _fingerprints(whole) == before


def test_an_interrupted_run_says_how_to_go_on(start: Callable, arithmetic: Path, tmp_path: Path) -> None:
    process = start("train", arithmetic, f"run_dir={tmp_path / 'run'}", "max_steps=10000")
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "gkd-rl: SIGINT: this step is finished and its state kept; a second signal leaves at once\n" in err
    assert err.endswith(" of 10000; resume=auto continues there\n")


def test_only_so_many_checkpoints_are_kept(whole: Path) -> None:
    assert sorted(place.name for place in (whole / "checkpoints").iterdir()) == [f"step-{step:08d}" for step in (2, 4, 6)]


def _fingerprints(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
