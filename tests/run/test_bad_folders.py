"""Run folders that are taken, in use or no folders: refused, and left as they are."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest


def test_a_folder_that_holds_a_run_is_left_as_it_is(refused, small: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("max_steps: 1\n")
    assert "already holds a run; resume=auto continues it, resume=new sets it aside first" in refused("train", small, f"run_dir={run}")
    assert (run / "config.yaml").read_text() == "max_steps: 1\n"
    assert not (run / "metrics.jsonl").exists()


def test_a_folder_in_use_by_another_run_is_refused(refused, small: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with (run / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for command in ("train", "sft"):
            assert f"run_dir {run} is in use by another run" in refused(command, small, f"run_dir={run}", "resume=auto")
        assert "is in use by another run" in refused("ablate", small, f"run_dir={run}", "ablation.grid={objective.alpha: [0, 1]}")
    assert [file.name for file in run.iterdir()] == [".lock"]


@pytest.mark.parametrize("command", ["train", "sft"])
def test_a_file_is_no_run_folder(refused, small: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        said = refused(command, small, f"run_dir={tmp_path / place}")
        assert f"run_dir {tmp_path / place} is not a folder" in said
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_refused(refused, small: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    for place in (closed, closed / "below"):
        assert f"run_dir {place} cannot be written to" in refused("train", small, f"run_dir={place}")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc, where nobody can make a folder")
def test_a_folder_that_cannot_be_made_is_refused(refused, small: Path) -> None:
    assert "run_dir /proc/gkd-rl/run cannot be written to (" in refused("train", small, "run_dir=/proc/gkd-rl/run")


def test_a_file_in_the_place_of_a_run_of_a_grid_is_refused(cli, small: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "alpha-0_seed-0").write_text("mine")
    grid = ["ablation.grid={objective.alpha: [0]}", "ablation.seeds=[0]"]
    outcome = cli("ablate", small, f"run_dir={tmp_path / 'sweep'}", *grid)
    assert outcome.status == 2 and "alpha-0_seed-0, where a run of the grid belongs, is not a folder" in outcome.err


def test_an_earlier_run_stays_in_place_while_the_new_one_cannot_start(refused, small: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("max_steps: 1\n")
    refused("train", small, f"run_dir={run}", "resume=new", "student.path=embedded:nobody")
    assert (run / "config.yaml").read_text() == "max_steps: 1\n"
    assert [folder.name for folder in tmp_path.iterdir()] == ["run"]
