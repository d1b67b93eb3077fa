"""The configuration to begin with: it is valid, runs as it is, and nothing is written over."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gkd_rl.config.load import load_config
from gkd_rl.config.validate import validate


@pytest.mark.parametrize(
    "options", [(), ("--task", "gsm8k", "--student", "A", "--teacher", "B"), ("--task", "custom", "--student", "A", "--teacher", "B")]
)
def test_every_task_begins_with_a_valid_configuration(cli, tmp_path: Path, options: tuple[str, ...]):
    file = tmp_path / "mine.yaml"
    done = cli("init", file, *options)
    assert done.status == 0 and f"gkd-rl train {file}" in done.out
    config = load_config(file)
    validate(config)
    assert config.run_dir == "runs/mine" and config.task.path.split(".")[2] == (options[1] if options else "arithmetic")
    assert (config.student.path, config.teacher.path) == (
        ("A", "B") if options else ("embedded:arithmetic-student", "embedded:arithmetic-teacher")
    )


def test_it_says_what_the_quickstart_says(cli, tmp_path: Path):
    assert cli("init", tmp_path / "mine.yaml").status == 0
    mine, theirs = (
        load_config(path) for path in (tmp_path / "mine.yaml", Path(__file__).resolve().parents[2] / "configs" / "arithmetic.yaml")
    )
    for part in ("max_steps", "rollout", "objective", "optimizer", "task", "student", "teacher"):
        assert getattr(mine, part) == getattr(theirs, part), part


def test_the_line_that_is_commented_out_is_valid_too(cli, tmp_path: Path):
    file = tmp_path / "mine.yaml"
    assert cli("init", file).status == 0
    text = file.read_text().replace("# alpha_schedule", "alpha_schedule")
    assert yaml.safe_load(text)["objective"]["alpha_schedule"]["end"] == 0.1
    file.write_text(text)
    validate(load_config(file))


def test_a_file_is_not_written_over_and_models_are_asked_for(cli, tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("x")
    done = cli("init", file)
    assert done.status == 2 and "is there already" in done.err and file.read_text() == "x"
    done = cli("init", tmp_path / "other.yaml", "--task", "gsm8k", "--student", "A")
    assert done.status == 2 and "give --student and --teacher" in done.err and not (tmp_path / "other.yaml").exists()
    done = cli("init", tmp_path / "none" / "other.yaml")
    assert done.status == 2 and "cannot be written" in done.err
