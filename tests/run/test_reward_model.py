"""``gkd-rl reward-model``: pairs from every form of data, a model that learns them, and a training run that uses it."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gkd_rl.config.reward_model import PreferencesConfig
from gkd_rl.errors import UserError
from gkd_rl.reward_model.pairs import read_pairs
from gkd_rl.reward_model.tables import read_table
from reward_models import SequenceClassificationReward

DATA = os.environ.get("GKD_RL_DATA")  # before a fixture takes it away
NOUNS = ["cat", "dog", "tree", "house", "road", "lamp", "book", "sea"]
SMALL = "model.config={hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32, classifier_pooling: mean}"


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _preferences(count: int, seed: int = 0, chat: bool = False) -> list[dict[str, Any]]:
    """Answers with "fine" are better than those with "poor"."""
    draw, rows = random.Random(seed), []
    for number in range(count):
        noun, other = draw.choices(NOUNS, k=2)
        prompt = f"Describe the {noun} {number}: "
        better, worse = f"a fine {other} by the {noun}", f"a poor {other} by the {noun}" + " there" * draw.randint(0, 1)
        row = {"prompt": prompt, "chosen": better, "rejected": worse}
        if chat:
            question = {"role": "user", "content": prompt}
            answer = lambda text: [{"role": "assistant", "content": text}]
            row = {"prompt": [question], "chosen": answer(better), "rejected": [question, *answer(worse)]}
        rows.append(row)
    return rows


def _config(folder: Path, text: str) -> Path:
    (folder / "rm.yaml").write_text(text)
    return folder / "rm.yaml"


TRAINING = "{epochs: 6, batch_size: 16, lr: 2.0e-3, center_rewards_coefficient: 0.01, threads: 1}"


def test_a_model_from_scratch_learns_preferences_and_serves_as_a_reward(cli, small: Path, tmp_path: Path) -> None:
    data = _jsonl(tmp_path / "pairs.jsonl", _preferences(150))
    config = _config(
        tmp_path, f"run_dir: {tmp_path}/rm\nmax_length: 64\npreferences: {{train: {data}, held_out_share: 0.2}}\ntraining: {TRAINING}\n"
    )
    said = cli("reward-model", config, SMALL, "model.vocabulary=400")
    assert said.status == 0, said.err
    assert "held-out accuracy" in said.out and "{'loss'" not in said.out
    report = json.loads((tmp_path / "rm" / "report.json").read_text())
    assert report["accuracy"]["share"] > 0.9 and report["accuracy"]["low"] > 0.5
    assert (report["training_pairs"], report["held_out_pairs"], report["accuracy"]["count"]) == (120, 30, 30)
    assert report["log_loss"] < 0.4 and 0 <= report["calibration_error"] <= 0.5
    reward = SequenceClassificationReward(tmp_path / "rm" / "model", device="cpu")
    fine, poor = reward(["Describe the sea 7: "] * 2, ["a fine dog by the sea", "a poor dog by the sea"])
    assert fine is not None and poor is not None and fine > poor + 0.5
    line = next(line for line in said.out.splitlines() if line.startswith("to train with it: "))
    entry = json.loads(line.partition("rewards=")[2])
    entry[0]["options"] |= {"truncate": "right", "max_length": 64}
    trained = cli("train", small, f"run_dir={tmp_path / 'run'}", "max_steps=1", f"rewards={json.dumps(entry)}")
    assert trained.status == 0, trained.err
    rows = [json.loads(row) for row in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    direct = SequenceClassificationReward(**{**entry[0]["options"], "device": "cpu"})
    expected = direct([row["prompt"] for row in rows], [row["completion"] for row in rows])
    assert [row["reward"] for row in rows] == pytest.approx(expected, abs=1e-4)


def test_a_checkpoint_is_trained_on_and_the_same_seed_gives_the_same_report(cli, tmp_path: Path) -> None:
    data = _jsonl(tmp_path / "pairs.jsonl", _preferences(40))
    text = f"max_length: 64\npreferences: {{train: {data}}}\ntraining: {{epochs: 1, batch_size: 20, threads: 1}}\n"
    first = ["reward-model", _config(tmp_path, text), SMALL, "model.type=bert", "model.vocabulary=400"]
    assert cli(*first, f"run_dir={tmp_path / 'a'}").status == 0
    again = ["reward-model", _config(tmp_path, text), f"model.path={tmp_path / 'a' / 'model'}", "training.lr=1e-9"]
    reports = []
    for name in ("b", "c"):
        assert cli(*again, f"run_dir={tmp_path / name}").status == 0
        reports.append(
            {k: v for k, v in json.loads((tmp_path / name / "report.json").read_text()).items() if k not in ("seconds", "model")}
        )
    assert reports[0] == reports[1]
    assert reports[0]["reward_mean"] == pytest.approx(json.loads((tmp_path / "a" / "report.json").read_text())["reward_mean"], abs=1e-3)


def test_margins_ask_for_larger_differences(cli, tmp_path: Path) -> None:
    spreads = []
    for margin in (0.0, 5.0):
        rows = [{**row, "gap": margin} for row in _preferences(80)]
        text = f"max_length: 64\npreferences: {{train: {_jsonl(tmp_path / 'p.jsonl', rows)}, margin_field: gap}}\ntraining: {TRAINING}\n"
        folder = tmp_path / f"rm{margin:g}"
        assert (
            cli("reward-model", _config(tmp_path, text), SMALL, "model.vocabulary=400", f"run_dir={folder}", "training.epochs=20").status
            == 0
        )
        spreads.append(json.loads((folder / "report.json").read_text())["reward_deviation"])
    assert spreads[1] > spreads[0] + 0.5


def test_chats_are_read_whole_or_by_their_answers(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "chats.jsonl", _preferences(10, chat=True))
    train, held_out = read_pairs(PreferencesConfig(train=str(path), held_out_share=0.2), None, 0)
    assert (len(train), len(held_out)) == (8, 2)
    for pair in train:
        assert pair.chosen.prompt == pair.rejected.prompt and pair.rejected.completion[0]["role"] == "assistant"
        assert "fine" in pair.chosen.completion[0]["content"] and len(pair.rejected.completion) == 1


def _scored(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"p{number % 5}", "completion": f"c{number}", "score": number % 7} for number in range(count)]


def test_scored_answers_to_one_prompt_make_pairs(tmp_path: Path) -> None:
    rows = _scored(60)
    path = _jsonl(tmp_path / "scored.jsonl", rows)
    scores = {row["completion"]: row["score"] for row in rows}
    config = PreferencesConfig(train=str(path), kind="scored", min_gap=2, pairs_per_row=3, score_margins=True, held_out_share=0.4)
    train, held_out = read_pairs(config, None, 0)
    seen = {frozenset((pair.chosen.completion, pair.rejected.completion)) for pair in train}
    assert len(seen) == len(train) > 20
    counts = Counter(answer.completion for pair in train for answer in (pair.chosen, pair.rejected))
    assert max(counts.values()) == 3
    for pair in (*train, *held_out):
        gap = scores[pair.chosen.completion] - scores[pair.rejected.completion]
        assert pair.chosen.prompt == pair.rejected.prompt and gap == pair.margin >= 2
    assert not {pair.chosen.prompt for pair in train} & {pair.chosen.prompt for pair in held_out}
    members = [answer.completion for pair in held_out for answer in (pair.chosen, pair.rejected)]
    assert len(members) == len(set(members)) and len(held_out) >= 8
    assert read_pairs(config, None, 0) == (train, held_out) != read_pairs(config, None, 1)


def test_scored_answers_to_different_prompts_make_pairs_only_where_that_is_asked_for(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "scored.jsonl", [{"prompt": f"p{i}", "completion": f"c{i}", "score": i} for i in range(20)])
    within = PreferencesConfig(train=str(path), kind="scored")
    with pytest.raises(UserError, match=r"preferences\.train: no pair can be made of these rows; lower preferences\.min_gap"):
        read_pairs(within, None, 0)
    train, _ = read_pairs(PreferencesConfig(train=str(path), kind="scored", across_prompts=True, pairs_per_row=2), None, 0)
    assert any(pair.chosen.prompt != pair.rejected.prompt for pair in train)
    assert all(int(pair.chosen.completion[1:]) > int(pair.rejected.completion[1:]) for pair in train)


def test_tables_are_read_in_every_form_and_from_archives(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": 'a "quoted" one', "rejected": "b"}, {"prompt": "q", "chosen": "c", "rejected": "d"}]
    tsv = "\t".join(rows[0]) + "\n" + "".join("\t".join(row.values()) + "\n" for row in rows)
    (tmp_path / "t.tsv").write_text(tsv)
    with (tmp_path / "t.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with tarfile.open(tmp_path / "t.tar.gz", "w:gz") as packed:
        member = tarfile.TarInfo("inner/t.tsv")
        member.size = len(tsv.encode())
        packed.addfile(member, io.BytesIO(tsv.encode()))
    _jsonl(tmp_path / "t.jsonl", rows)
    for name in ("t.tsv", "t.csv", "t.jsonl", "t.tar.gz/inner/t.tsv"):
        assert [dict(row.fields) for row in read_table(tmp_path / name)] == rows
    assert read_table(tmp_path / "t.tar.gz/inner/t.tsv")[1].where.endswith("t.tar.gz/inner/t.tsv, line 3")


@pytest.mark.parametrize(
    ("content", "overrides", "said"),
    [
        ("", [], "preferences.train names no file; set it to the file of preference pairs"),
        ("preferences: {train: absent.jsonl}", [], "there is no file absent.jsonl"),
        ("preferences: {train: absent.tar.gz/a.tsv}", [], "there is no archive absent.tar.gz; set data_dir"),
        ("preferences: {train: PAIRS}", ["preferences.chosen_field=choosen"], "has no field 'choosen'; the nearest is 'chosen'"),
        ("preferences: {train: PAIRS}", ["preferences.kind=scored", "preferences.score_field=chosen",
                                         "preferences.completion_field=rejected"], "'chosen' is 'a fine"),
        ("preferences: {train: PAIRS}", ["preferences.margin_feld=a"], "the nearest is 'preferences.margin_field'"),
        ("preferences: {train: PAIRS}", ["max_length=4"], "over max_length=4; raise it, or set long_texts to drop or cut"),
        ("preferences: {train: PAIRS}", ["max_length=4", "long_texts=drop"], "max_length=4 leaves no pair"),
        ("preferences: {train: PAIRS}", ["model.type=modernberd"], "no architecture 'modernberd'; did you mean 'modernbert'?"),
        ("preferences: {train: PAIRS}", ["model.config={num_attention_heads: 7}"], "no 'modernbert' with one output can be made"),
        ("preferences: {train: PAIRS}", ["model.path=/absent/model"], "model.path"),
        ("preferences: {train: PAIRS}", ["training.lr=0"], "training.lr is 0.0; it must be above 0"),
        ("preferences: {train: PAIRS, template: '{prompt} {answer}'}", [], "the template needs a column 'answer'"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_and_leaves_no_folder(refused, tmp_path: Path, content: str, overrides: list[str], said: str) -> None:
    data = _jsonl(tmp_path / "pairs.jsonl", _preferences(10))
    config = _config(tmp_path, content.replace("PAIRS", str(data)))
    assert said in refused("reward-model", config, f"run_dir={tmp_path / 'rm'}", "model.vocabulary=300", *overrides)
    assert not (tmp_path / "rm").exists()


@pytest.mark.slow
def test_human_judgements_of_translations_are_ranked_better_than_by_chance(cli, tmp_path: Path) -> None:
    configs = Path(__file__).resolve().parents[2] / "configs"
    if DATA is None or not (Path(DATA) / "mlqe_pe_ende").is_dir():
        pytest.skip("GKD_RL_DATA names no folder with mlqe_pe_ende")
    done = cli("reward-model", configs / "reward_model_mlqe.yaml", f"data_dir={DATA}", f"run_dir={tmp_path / 'rm'}")
    assert done.status == 0, done.err
    report = json.loads((tmp_path / "rm" / "report.json").read_text())
    assert report["accuracy"]["low"] > 0.5 and report["accuracy"]["count"] > 300
