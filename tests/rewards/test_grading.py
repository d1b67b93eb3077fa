"""Grading files: the report, the written rows, several completions per prompt, and bad input."""

import argparse
import csv
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reward_models import ArithmeticVerifier, InputError
from reward_models.grading import add_arguments, command, grade
from reward_models.statistics import pass_at_k, wilson_interval

ROWS: list[dict[str, Any]] = [
    {"id": 1, "reference": "72", "completion": "#### 72"},
    {"id": 2, "reference": 72, "completion": "#### -72"},
    {"id": 3, "reference": "so 48+24=72\n#### 72", "completion": "no idea"},
    {"id": 4, "reference": "?", "completion": "#### 72"},
    {"id": 5, "reference": 0.5, "completion": None},
    {"id": 6, "reference": "1,000", "completion": [{"role": "assistant", "content": "the answer is 1000"}]},
]


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def _grade(path: Path, **options: Any):
    return grade(path, **{"reference_field": "reference", "completion_field": "completion", "progress": False, **options})


def test_the_report_counts_verdicts_and_leaves_bad_references_out_of_accuracy(tmp_path: Path):
    report = _grade(_jsonl(tmp_path / "rows.jsonl", ROWS))
    assert (report.n, report.correct, report.wrong, report.no_answer, report.bad_reference) == (6, 2, 1, 2, 1)
    assert report.accuracy == 2 / 5
    assert report.interval == wilson_interval(2, 5)
    assert report.pass_at_k is None
    assert {kind: failures.count for kind, failures in report.failures.items()} == {
        "no answer in the text": 2,
        "sign reversed": 1,
        "reference cannot be read": 1,
    }
    assert report.failures["sign reversed"].examples[0].where == "line 2"


def test_each_row_is_written_with_its_verdict(tmp_path: Path):
    out = tmp_path / "graded.jsonl"
    rows = [*ROWS[:5], {**ROWS[5], "reference": "1000.5", "completion": "2*500.25=1000.5, 1+1=3, so the answer is 1000.50"}]
    report = _grade(_jsonl(tmp_path / "rows.jsonl", rows), out=out, verifier=ArithmeticVerifier(check_steps=True))
    assert (report.steps, report.right_steps) == (2, 1)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["verdict"] for row in rows] == ["correct", "wrong", "no_answer", "bad_reference", "no_answer", "correct"]
    assert [row["read"] for row in rows] == ["72", "-72", "", "72", "", "1000.50"]
    assert [row["value"] for row in rows] == ["72", "-72", None, "72", None, "1000.5"]
    assert [row["first_wrong_step"] for row in rows] == [None] * 5 + ["1+1=3"]
    steps = {"steps": 0, "right_steps": 0, "first_wrong_step": None}
    assert rows[1] == ROWS[1] | {"verdict": "wrong", "read": "-72", "form": "hash", "value": "-72"} | steps
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graded.jsonl", "rows.jsonl"]


def test_csv_and_parquet_give_the_same_report_as_jsonl(tmp_path: Path):
    rows = [{"reference": str(row["reference"]), "completion": f'so,\n"{row["id"]}" #### 72'} for row in ROWS]
    expected = _grade(_jsonl(tmp_path / "rows.jsonl", rows)).to_json()
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["reference", "completion"])
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for name in ("rows.csv", "rows.parquet"):
        report = _grade(tmp_path / name).to_json()
        assert {key: value for key, value in report.items() if key not in ("file", "failures")} == {
            key: value for key, value in expected.items() if key not in ("file", "failures")
        }


def test_lists_of_completions_give_pass_at_k_and_majority_vote(tmp_path: Path):
    rows = [
        {"reference": "7", "completion": ["#### 7", "#### 7.0", "#### 8", "?"]},
        {"reference": "7", "completion": ["#### 8", "#### 8", "#### 7", "#### 9"]},
        {"reference": "?", "completion": ["#### 8", "#### 8", "#### 7", "#### 9"]},
    ]
    report = _grade(_jsonl(tmp_path / "rows.jsonl", rows), out=tmp_path / "out.jsonl")
    assert (report.n, report.prompts, report.bad_reference) == (12, 2, 4)
    assert report.pass_at_k == pytest.approx({1: (2 / 4 + 1 / 4) / 2, 2: (5 / 6 + 1 / 2) / 2, 4: 1.0})
    assert report.majority_vote == 0.5
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert written[0]["verdict"] == ["correct", "correct", "wrong", "no_answer"]


def test_rows_that_share_a_prompt_are_its_completions(tmp_path: Path):
    rows = [{"q": q, "reference": "7", "completion": f"#### {answer}"} for q, answer in [("a", 7), ("b", 7), ("a", 8), ("b", 7)]]
    report = _grade(_jsonl(tmp_path / "rows.jsonl", rows), prompt_field="q")
    assert (report.prompts, report.pass_at_k, report.majority_vote) == (2, {1: 0.75, 2: 1.0}, 1.0)


def test_the_estimators_by_hand():
    assert pass_at_k(4, 0, 2) == 0.0
    assert pass_at_k(4, 3, 2) == 1.0
    assert pass_at_k(5, 2, 2) == pytest.approx(1 - (3 / 5) * (2 / 4))
    assert wilson_interval(50, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    with pytest.raises(ValueError, match="pass@3 needs at least 3 samples"):
        pass_at_k(2, 1, 3)


@pytest.mark.parametrize(
    ("wrong", "reference", "kind"),
    [
        ("#### -5", "5", "sign reversed"),
        ("#### 500", "5", "off by a power of ten"),
        ("#### 6", "5", "off by one"),
        ("#### 1005", "1000", "within 1% of the reference"),
        ("#### 17", "5", "another number"),
        ("\\boxed{x+1}", "5", "stated answer is no number"),
    ],
)
def test_failures_have_kinds(tmp_path: Path, wrong: str, reference: str, kind: str):
    report = _grade(_jsonl(tmp_path / "rows.jsonl", [{"reference": reference, "completion": wrong}]))
    assert list(report.failures) == [kind]


BAD_FILES = [
    ("rows.jsonl", b"", "is empty"),
    ("rows.jsonl", b"\n\n", "has no rows"),
    ("rows.jsonl", b'{"reference": 1, "completion": "1"}\n{"reference": 1,\n', "line 2 is not JSON"),
    ("rows.jsonl", b"[1, 2]\n", "line 1: each line must be a JSON object, not list"),
    ("rows.jsonl", b"[" * 100_000, "line 1 is not JSON: too large or too deep"),
    ("rows.jsonl", b'{"reference": "caf\xe9"}\n', "line 1: byte 19 is not UTF-8"),
    ("rows.jsonl", b'{"refrence": 1, "completion": "1"}\n', "line 1: there is no field 'reference'; did you mean 'refrence'"),
    (
        "rows.jsonl",
        b'{"reference": 1, "completion": "1"}\n\n{"reference": 1, "completions": "1"}\n',
        "line 3: there is no field 'completion'; did you mean 'completions'",
    ),
    (
        "rows.jsonl",
        b'{"reference": 1, "completion": {"a": [1]}}\n{"reference": 1, "completion": true}',
        "field 'completion': a compl",
    ),
    ("rows.csv", b"reference,completion\n", "has no rows"),
    ("rows.csv", b"reference,completion\n1\n", "line 2: 1 fields, but the header has 2"),
    ("rows.csv", b"reference,reference\n1,2\n", "the header names a field twice"),
    ("rows.csv", b'reference,completion\n1,"2\n', "is not CSV"),
    ("rows.csv", b"reference,completion\n1,caf\xe9\n", "line 2: byte 6 is not UTF-8"),
    ("rows.parquet", b"PAR1 no", "is not a Parquet file"),
    ("rows.json", b"[]", "format '.json' is unknown; use .jsonl"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_bad_files_are_refused_in_one_sentence_and_leave_nothing(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        _grade(tmp_path / name, out=tmp_path / "out.jsonl")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_bad_paths_are_refused(tmp_path: Path):
    rows = _jsonl(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(InputError, match=r"no file .*row.jsonl; did you mean '.*rows.jsonl'"):
        _grade(tmp_path / "row.jsonl")
    with pytest.raises(InputError, match="is a folder"):
        _grade(tmp_path)
    for out, message in [
        (rows, "is the input itself"),
        (tmp_path / "missing" / "out.jsonl", "there is no folder"),
        (tmp_path / "out.csv", "written as JSONL"),
        (Path("/proc/out.jsonl"), "cannot be written"),
    ]:
        with pytest.raises(InputError, match=message):
            _grade(rows, out=out)
    assert rows.read_text().count("\n") == len(ROWS)


def test_an_interrupted_run_keeps_the_old_output(tmp_path: Path):
    rows = _jsonl(tmp_path / "rows.jsonl", ROWS)
    out = tmp_path / "out.jsonl"
    out.write_text("old\n")

    class Interrupted(ArithmeticVerifier):
        def verify(self, completion: str, reference: str):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _grade(rows, out=out, verifier=Interrupted())
    assert out.read_text() == "old\n"
    assert sorted(os.listdir(tmp_path)) == ["out.jsonl", "rows.jsonl"]


def _command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return command(parser.parse_args(arguments))


def test_the_command_prints_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = _jsonl(tmp_path / "rows.jsonl", ROWS)
    assert _command(str(rows), "--json", "--option", "fallback=false", "--option", "tolerance=0.5") == 0
    report = json.loads(capsys.readouterr().out)
    assert {name: report[name] for name in ("n", "correct", "wrong", "no_answer", "bad_reference", "accuracy")} == {
        "n": 6,
        "correct": 2,
        "wrong": 1,
        "no_answer": 2,
        "bad_reference": 1,
        "accuracy": 0.4,
    }


def test_the_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert _command(str(_jsonl(tmp_path / "rows.jsonl", [*ROWS, {"reference": "[bold]", "completion": "[/x]"}]))) == 0
    printed = capsys.readouterr().out
    assert "40.0% (95% interval 11.8% to 76.9%)" in printed
    assert "sign reversed" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--verifier", "reward_models.WeightedSums"], "did you mean 'WeightedSum'"),
        (["--verifier", "math.gcd"], "cannot grade: it has no method verify"),
        (["--option", "tolerance"], "write it as KEY=VALUE"),
        (["--option", "tol=1"], "no option 'tol'"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, arguments: list[str], message: str):
    with pytest.raises(InputError, match=message):
        _command(str(_jsonl(tmp_path / "rows.jsonl", ROWS)), *arguments)
