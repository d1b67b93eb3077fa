"""Data, tasks and prompts that cannot be used: one sentence, status 2, and no run half made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from workbench import problems

GOOD = "".join(json.dumps(row) + "\n" for row in problems("train", 3))


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., str]:
    """``rows(train)``: the override that names a data folder with that ``train.jsonl``."""

    def rows(train: str | bytes, test: str = GOOD) -> str:
        folder = tmp_path / "data"
        folder.mkdir()
        (folder / "train.jsonl").write_bytes(train if isinstance(train, bytes) else train.encode())
        (folder / "test.jsonl").write_text(test)
        return f"data_dir={folder}"

    return rows


@pytest.mark.parametrize("command", ["train", "sft", "evaluate"])
def test_gsm8k_without_a_data_folder_names_the_setting(refused_run, command: str) -> None:
    assert "the gsm8k task needs data_dir (or GKD_RL_DATA)" in refused_run("data_dir=null", command=command)


def test_a_data_folder_without_the_file_is_named(refused_run, tmp_path: Path) -> None:
    said = refused_run(f"data_dir={tmp_path / 'absent'}")
    assert f"data file {tmp_path / 'absent' / 'train.jsonl'} does not exist; set data_dir" in said


def test_an_empty_file_is_refused(refused_run, rows) -> None:
    assert refused_run(rows("\n\n")).endswith("train.jsonl holds no rows")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"question": "x", ', "not valid JSON (Expecting property name enclosed in double quotes at column 19)"),
        ('["a", "b"]', "a row is a JSON object, not list"),
        ('{"question": "x", "anser": "1"}', "has no field 'answer'; the nearest is 'anser'"),
        ('{"question": "  ", "answer": "1"}', "field 'question' is empty or not text"),
        ('{"question": 5, "answer": "1"}', "field 'question' is empty or not text"),
        (b'{"question": "\xff", "answer": "1"}', "byte 15 is not UTF-8"),
        ('{"question": "\\ud800", "answer": "1"}', "half of a surrogate pair"),
        ('{"question": "x", "answer": ' + "9" * 5000 + "}", "too long"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(refused_run, rows, line: str | bytes, said: str) -> None:
    given = line if isinstance(line, bytes) else line.encode()
    answer = refused_run(rows(GOOD.encode() + b"\n" + given + b"\n"))
    assert "train.jsonl, line 5: " in answer
    assert said in answer


def test_a_bad_row_of_the_held_out_file_is_found_before_training(refused_run, rows) -> None:
    assert "test.jsonl, line 4: not valid JSON" in refused_run(rows(GOOD, GOOD + "{"))


def test_a_prompt_over_the_limit_is_named_with_its_length(refused_run) -> None:
    said = refused_run("task.max_prompt_tokens=20")
    assert "the prompt of held-out example 0 has " in said and "over task.max_prompt_tokens=20; raise it" in said


def test_a_long_training_prompt_is_found_before_the_run(refused_run, rows) -> None:
    long = json.dumps({"question": "word " * 400, "answer": "#### 1"}) + "\n"
    assert "the prompt of training example 3 has " in refused_run(rows(GOOD + long), "task.max_prompt_tokens=300")


def test_prompt_and_answer_must_fit_the_model(refused_run) -> None:
    said = refused_run("task.max_prompt_tokens=1020")
    assert "task.max_prompt_tokens + rollout.max_new_tokens = 1030" in said and "reads at most 1024 tokens" in said


def test_options_of_a_task_are_checked(refused_run) -> None:
    assert "task 'gkd_rl.tasks.gsm8k.Gsm8kTask' has no option 'calculator_mark'; did you mean 'calculator_marks'?" in refused_run(
        "task.options={calculator_mark: true}"
    )


def test_an_unknown_task_names_the_nearest(refused_run) -> None:
    assert "did you mean 'Gsm8kTask'?" in refused_run("task.path=gkd_rl.tasks.gsm8k.Gsm8KTask")


def test_a_class_that_is_no_task_is_refused(refused_run) -> None:
    said = refused_run("task.path=gkd_rl.types.Example", "task.options={prompt: x}")
    assert "gkd_rl.types.Example" in said


def test_the_data_folder_may_come_from_the_environment(refused_run, rows, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = rows("{").removeprefix("data_dir=")
    monkeypatch.setenv("GKD_RL_DATA", folder)
    assert f"{folder}/train.jsonl, line 1: not valid JSON" in refused_run("data_dir=null")
