"""Rows from files of every form and from data sets as the hub has them; what is missing or broken is named."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gkd_rl.errors import UserError
from gkd_rl.tasks.sources import Row, located, open_rows, read_lines

ROWS = [{"prompt": f"question {i}", "reference": f"answer, {i}"} for i in range(3)]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """One file of the rows in each form."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "rows.jsonl").write_text(lines + "\n")
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    (tmp_path / "rows.json.gz").write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    return tmp_path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.json.gz", "rows.parquet", "rows.csv"])
def test_a_file_of_any_form_gives_its_rows(files: Path, name: str):
    assert [dict(row.fields) for row in open_rows(name, "train", str(files))] == ROWS
    assert [dict(row.fields) for row in open_rows(str(files / name), "train", None)] == ROWS


def test_several_sources_are_read_one_after_the_other(files: Path):
    rows = open_rows(["rows.csv", "rows.parquet"], "train", str(files))
    assert [dict(row.fields) for row in rows] == ROWS + ROWS
    assert [row.where.rsplit("/", 1)[-1] for row in rows[2:4]] == ["rows.csv, line 4", "rows.parquet, row 1"]


def test_a_data_set_in_the_hubs_form_gives_its_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for split, rows in (("train", ROWS), ("test", ROWS[:1])):
        (tmp_path / "set" / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet")
    train, test = (open_rows(f"hub:{tmp_path / 'set'}:{split}", split, None) for split in ("train", "test"))
    assert [dict(row.fields) for row in train] == ROWS and len(test) == 1
    assert [row.where for row in train[1:]] == [f"hub:{tmp_path / 'set'}:train, row {n}" for n in (2, 3)]
    with pytest.raises(UserError, match=r"task\.options\.dev: hub:.*:dev could not be loaded from the hub"):
        open_rows(f"hub:{tmp_path / 'set'}:dev", "dev", None)


def test_a_hub_data_set_that_cannot_be_reached_is_named():
    with pytest.raises(UserError, match=r"task\.options\.train: hub:nobody/nothing:train could not be loaded from the hub"):
        open_rows("hub:nobody/nothing:train", "train", None)


@pytest.mark.parametrize("source", ["hub:", "hub:name", "hub:name:", "hub:a:b:c:d"])
def test_a_hub_name_needs_its_split(source: str):
    with pytest.raises(UserError, match="write hub:NAME:SPLIT, or hub:NAME:CONFIG:SPLIT"):
        open_rows(source, "train", None)


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        ("{", "bad.jsonl", "bad.jsonl, line 1: not valid JSON"),
        ("[1]", "bad.jsonl", "line 1: a row is a JSON object, not list"),
        ("", "bad.jsonl", "bad.jsonl holds no rows"),
        ("{}", "bad.json", "a .json file is a list of objects"),
        ("[1", "bad.json", "bad.json: not valid JSON"),
        ("a,b\n1\n", "bad.csv", "line 2: 1 fields, but the header has 2"),
        ("x", "bad.parquet", "is not a Parquet file"),
        ("x", "bad.txt", "rows are read from .jsonl"),
        ("x", "bad.jsonl.gz", "bad.jsonl.gz cannot be read: Not a gzipped file"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: str, name: str, said: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said):  # UserError, and InputError of the readers that grading has too
        open_rows(name, "train", str(tmp_path))


def test_a_missing_file_is_named_with_the_nearest(files: Path):
    with pytest.raises(
        UserError, match=r"data file .*rows.jsn does not exist; set data_dir .* or task.options.train .*did you mean '.*rows"
    ):
        open_rows("rows.jsn", "train", str(files))
    with pytest.raises(UserError, match=r"task\.options\.train=rows.csv lies below data_dir, which is not set"):
        located("rows.csv", "train", None)
    with pytest.raises(UserError, match=r"task\.options\.train is 3; give a file's path"):
        open_rows(3, "train", None)


def test_lines_of_text_files_keep_their_places(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("\ufeffeins\r\n\nzwei drei".encode())
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    (tmp_path / "empty.txt").write_bytes(b"\n")
    (tmp_path / "latin.txt").write_bytes("größer".encode("latin-1"))
    assert read_lines(tmp_path / "a.txt") == ["eins", "", "zwei drei"]
    assert read_lines(tmp_path / "a.txt.gz") == ["one", "two"]
    with pytest.raises(UserError, match="holds no lines"):
        read_lines(tmp_path / "empty.txt")
    with pytest.raises(UserError, match="byte 3 is not UTF-8"):
        read_lines(tmp_path / "latin.txt")


def test_a_field_is_text_or_several_texts():
    row = Row({"text": "a b", "list": ["one ", "two"], "number": 3, "blank": " ", "gap": ["a", ""], "half": "\ud800"}, "rows, line 7")
    assert (row.text("text"), row.text("list")) == ("a b", "one two")
    assert (row.texts("text"), row.texts("list")) == (["a b"], ["one ", "two"])
    for name in ("number", "blank"):
        with pytest.raises(UserError, match=f"rows, line 7: field '{name}' is empty or not text"):
            row.text(name)
    for name in ("number", "blank", "gap"):
        with pytest.raises(UserError, match=f"rows, line 7: field '{name}' is neither a text nor a list of texts"):
            row.texts(name)
    with pytest.raises(UserError, match="half of a surrogate pair"):
        row.text("half")
    with pytest.raises(UserError, match="rows, line 7: has no field 'tekst'; the nearest is 'text'"):
        row.text("tekst")
