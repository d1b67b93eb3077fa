"""``gkd-rl grade`` on files as they come."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

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
