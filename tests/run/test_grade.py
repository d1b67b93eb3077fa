"""``gkd-rl grade`` on files as they come."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from workbench import Outcome, rows_of


def test_the_answers_of_gsm8k_are_right_against_themselves(run: Callable[..., Outcome], gsm8k: Path, tmp_path: Path) -> None:
    fields = ["--reference-field", "answer", "--completion-field", "answer"]
    outcome = run("grade", gsm8k / "test.jsonl", *fields, "--json", "--out", tmp_path / "graded.jsonl")
    assert outcome.status == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["n"] == report["correct"] == 1319
    assert report["accuracy"] == 1.0
    graded = rows_of(tmp_path / "graded.jsonl")
    assert len(graded) == 1319 and {row["verdict"] for row in graded} == {"correct"}
    assert [row["question"] for row in graded] == [row["question"] for row in rows_of(gsm8k / "test.jsonl")]


def test_right_wrong_missing_and_unreadable_are_told_apart(cli, tmp_path: Path) -> None:
    cases = {
        "48+24=72\n#### 72": ("72", "correct"),
        "The answer is $1,234.50.": ("1234.5", "correct"),
        "A: -3": ("3", "wrong"),
        "I do not know.": ("5", "no_answer"),
        "#### 5": ("five or so", "bad_reference"),
        "__import__('os').system('exit 3')": ("3", None),
    }
    file, out = tmp_path / "answers.jsonl", tmp_path / "graded.jsonl"
    file.write_text("".join(json.dumps({"ref": ref, "text": text}) + "\n" for text, (ref, _) in cases.items()))
    outcome = cli("grade", file, "--reference-field", "ref", "--completion-field", "text", "--out", out)
    assert outcome.status == 0, outcome.err
    for row, (_, verdict) in zip(rows_of(out), cases.values(), strict=True):
        assert verdict is None or row["verdict"] == verdict, row
    assert "wrong" in outcome.out and "no answer" in outcome.out.lower().replace("_", " ")


def test_the_rollouts_of_a_run_can_be_graded(cli, arithmetic: Path, tmp_path: Path) -> None:
    assert cli("train", arithmetic, f"run_dir={tmp_path / 'run'}", "max_steps=1").status == 0
    rows = rows_of(tmp_path / "run" / "rollouts.jsonl")
    flat = tmp_path / "flat.jsonl"
    flat.write_text("".join(json.dumps({**row, **row["columns"]}) + "\n" for row in rows if row["on_policy"]))
    outcome = cli("grade", flat, "--json", "--prompt-field", "prompt")
    report = json.loads(outcome.out)
    assert report["correct"] == sum(row["reward"] == 1 for row in rows if row["on_policy"])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("answers.jsonl", "", "is empty"),
        ("answers.jsonl", "\n\n", "has no rows"),
        ("answers.jsonl", '{"reference": "1", "completion": "1"}\n{"reference"', "line 2 is not JSON"),
        ("answers.jsonl", '{"reference": "1", "completoin": "1"}\n', "there is no field 'completion'; did you mean 'completoin'?"),
        ("answers.txt", "1", "the format '.txt' is unknown"),
        ("answers.csv", "reference,completion\n1\n", "line 2: 1 fields, but the header has 2"),
    ],
)
def test_a_file_that_cannot_be_graded_is_refused_and_nothing_written(refused, tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    assert said in refused("grade", tmp_path / name, "--out", tmp_path / "graded.jsonl")
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_grading_refuses_what_it_cannot_write_or_use(refused, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"reference": "1", "completion": "1"}\n')
    assert "is the input itself" in refused("grade", file, "--out", file)
    assert "there is no folder" in refused("grade", file, "--out", tmp_path / "absent" / "graded.jsonl")
    assert "did you mean" in refused("grade", tmp_path / "answer.jsonl")
    assert "did you mean 'tolerance'?" in refused("grade", file, "--option", "tolerence=1")
    assert "cannot grade" in refused("grade", file, "--verifier", "reward_models.load_reward", "--option", "path=math.sqrt")
