"""What a report is made of: differences of configurations, columns of logs, chunks of rollouts, texts of tokens."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from run_folders import rollout, write_rows, write_run

from gkd_rl.config.load import with_overrides
from gkd_rl.config.run import Config
from gkd_rl.errors import UserError
from gkd_rl.report.chunks import chunks, unpacked
from gkd_rl.report.logs import columns, new_rows
from gkd_rl.report.reader import RunReader
from gkd_rl.report.settings import differences, flat
from gkd_rl.report.words import TokenTexts


def _settings(*overrides: str) -> dict:
    return asdict(with_overrides(Config(), overrides))


def test_settings_name_what_is_not_at_its_default():
    rows = differences([_settings("objective.alpha=0.25", "task.options={levels: [1, 2]}", "run_dir=elsewhere")])
    assert [(row["key"], row["default"], row["values"]) for row in rows] == [
        ("objective.alpha", "0.5", ["0.25"]),
        ("task.options.levels", None, ["[1, 2]"]),
    ]


def test_settings_on_which_runs_differ_come_first():
    rows = differences([_settings("max_steps=7", "optimizer.lr=0.1"), _settings("max_steps=7"), _settings("max_steps=7")])
    assert [(row["key"], row["between"], row["values"]) for row in rows] == [
        ("optimizer.lr", True, ["0.1", "0.001", "0.001"]),
        ("max_steps", False, ["7", "7", "7"]),
    ]


def test_a_setting_that_an_earlier_version_had_not_counts_as_default_and_one_that_is_gone_is_shown():
    earlier = _settings("log_top_choices=3")
    del earlier["log_top_choices"]
    (row,) = differences([{**earlier, "gone": 5}, _settings()])
    assert row == {"key": "gone", "default": None, "values": ["5", None], "between": True}


def test_a_list_is_one_value_and_an_empty_mapping_too():
    assert flat({"a": {"b": [1], "c": {}}, "d": None}) == {"a.b": [1], "a.c": {}, "d": None}


def test_points_are_means_of_as_many_steps_as_it_takes():
    rows = [{"step": i + 1, "x": float(i), "rare": 2.0 if i == 4 else None} for i in range(11)]
    assert columns(rows, most=11) == {"width": 1, "step": list(range(1, 12)), "values": {
        "x": [float(i) for i in range(11)], "rare": [2.0 if i == 4 else None for i in range(11)],
    }}  # fmt: skip
    assert columns(rows, most=3) == {"width": 4, "step": [4, 8, 11], "values": {"x": [1.5, 5.5, 9.0], "rare": [None, 2.0, None]}}
    assert columns([]) == {"width": 1, "step": [], "values": {}}


@pytest.mark.parametrize("count", [1, 1999, 2000, 2001, 54_321])
def test_curves_have_at_most_two_thousand_points_and_keep_their_end(count: int):
    made = columns([{"step": i + 1, "x": 1.0} for i in range(count)])
    assert min(count, 1000) <= len(made["step"]) <= 2000 and made["step"][-1] == count
    assert set(made["values"]["x"]) == {1.0}


def test_a_line_without_an_end_is_read_once_it_has_one(tmp_path: Path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"step":1}\n{"st')
    ((row, position),) = new_rows(log, 0)
    assert row == {"step": 1} and list(new_rows(log, position)) == []
    log.write_bytes(b'{"step":1}\n{"step":2}\n')
    assert [row for row, _ in new_rows(log, position)] == [{"step": 2}]
    assert list(new_rows(tmp_path / "absent.jsonl", 0)) == []


@pytest.mark.parametrize("damage", [b"{broken\n", b"[1]\n", b"\xff\xfe\n", b"\n"])
def test_a_damaged_line_is_named(tmp_path: Path, damage: bytes):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step":1}\n' + damage + b'{"step":3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: not a JSON object; "):
        list(new_rows(tmp_path / "metrics.jsonl", 0))


def test_chunks_hold_every_row_once_and_prompts_once_a_chunk():
    rows = [rollout(step, step // 4, step % 4, prompt=f"prompt {step // 4}") for step in range(1, 24)]
    made = list(chunks(rows, lambda row: None, size=10))
    assert [chunk["rows"] for chunk, _ in made] == [10, 10, 3] and [row for _, part in made for row in part] == rows
    index, texts, tokens = ([unpacked(chunk[name]) for chunk, _ in made] for name in ("index", "texts", "tokens"))
    assert [step for part in index for step in part["step"]] == list(range(1, 24))
    assert [part["prompts"][place] for part in texts for place in part["prompt"]] == [row["prompt"] for row in rows]
    assert texts[0]["prompts"] == ["prompt 0", "prompt 1", "prompt 2"]
    for name in ("tokens", "logprobs", "divergence", "student_top", "teacher_top"):
        assert [value for part in tokens for value in part[name]] == [row[name] for row in rows], name


def test_the_first_reward_says_what_is_right():
    given = [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}, {"a": None, "b": 1.0}, {}, {"a": 0.5}]
    ((chunk, _),) = chunks([rollout(1, 1, 0, rewards=rewards) for rewards in given], lambda row: None)
    assert unpacked(chunk["index"])["right"] == [1, 0, None, None, 0]


def test_rows_without_top_choices_are_read():
    row = {name: value for name, value in rollout(1, 1, 0).items() if not name.endswith("_top")}
    ((chunk, _),) = chunks([row], lambda row: None)
    assert set(unpacked(chunk["tokens"])) == {"tokens", "logprobs", "divergence"}


def test_every_token_has_a_text_and_together_they_are_the_answer(tmp_path: Path):
    texts = TokenTexts(tmp_path, Config())
    ids = texts.tokenizer("12+3=15\n#### 15", add_special_tokens=False)["input_ids"]
    assert "".join(texts.of(set(ids))[number] for number in ids) == "12+3=15\n#### 15"
    assert texts.of([10**6]) == {10**6: "⟨1000000⟩"}


def test_bytes_of_a_character_keep_their_spelling_and_leading_spaces_stay(tmp_path: Path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "model"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({token: i for i, token in enumerate([*alphabet, "Ġa", "<end>"])}, [("Ġ", "a")]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>").save_pretrained(folder)
    texts = TokenTexts(tmp_path, Config())
    ids = texts.tokenizer(" aé")["input_ids"]
    assert list(texts.of(ids).values()) == [" a", "Ã", "©"]


def test_the_verifier_says_what_it_read(tmp_path: Path):
    rows = [rollout(1, 2, 0), rollout(1, 2, 1), rollout(1, 2, 2, completion="no idea")]
    pack = RunReader(write_run(tmp_path / "run", rollouts=rows)).read({})
    readings = unpacked(pack["chunks"][0]["texts"])["reading"]
    assert [reading["status"] for reading in readings] == ["correct", "wrong", "no_answer"]
    assert readings[1]["read"] == "999" and readings[1]["form"] == "hash" and readings[1]["reference"] == "3"


def test_runs_are_read_on_from_where_they_were(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=12, finished=False)
    reader = RunReader(folder)
    first = reader.read({})
    assert reader.read(first["positions"])["metrics"]["step"] == [] and not reader.restarted(first["positions"])
    with (folder / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": 13, "loss": 1.0}) + "\n")
    with (folder / "rollouts.jsonl").open("a") as log:
        log.write(json.dumps(rollout(13, 1, 0, tokens=[30, 1])) + "\n")
    news = reader.read(first["positions"])
    assert news["metrics"]["step"] == [13] and [chunk["rows"] for chunk in news["chunks"]] == [1] and 30 in news["tokens"]
    write_rows(folder / "metrics.jsonl", [{"step": 1}])
    assert reader.restarted(news["positions"])
