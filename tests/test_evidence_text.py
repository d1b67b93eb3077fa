"""The evidence on real text: rows, models, intervals, and a page whose tables come from its CSV file."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gkd_rl.config.load import load_config
from gkd_rl.config.validate import validate

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import evidence_text  # noqa: E402
import text_models  # noqa: E402
import text_page  # noqa: E402
import text_results  # noqa: E402
import text_rows  # noqa: E402

PAGE = ROOT / "docs" / "evidence-text.md"
DATA = os.environ.get("GKD_RL_DATA", "")
needs_data = pytest.mark.skipif(not (Path(DATA) / "opennmt_ende10k").is_dir() or not DATA, reason="GKD_RL_DATA names no data folder")

TEXTS = ["the cat sat on the mat today", "a dog ran home", "we saw 17 birds", "nothing of it is here"]
REFERENCES = ["the cat sat on a mat today", "the dog ran home at night", "we saw 17 birds", "something else"]


def judged(score: float, reward: float, rows: int = 40) -> text_results.Judged:
    """Rows whose values alternate around the means."""
    wave = [(-1) ** i for i in range(rows)]
    figures = {
        "rouge1": score,
        "rouge2": score,
        "rougeL": score,
        "score": score,
        "reward": reward,
        "reverse_kl": 0.5,
        "length": 9.0,
        "self_bleu": 3.0,
    }
    return text_results.Judged(figures, [score + w for w in wave], [reward + 0.01 * w for w in wave])


def test_the_interval_counts_both_rows_and_seeds():
    def width(runs) -> float:
        low, high = text_results.interval(text_results.bootstrap(runs)[0])
        return high - low

    same = [judged(5.0, 0.2)] * 3
    assert width(same) == pytest.approx(2 * 1.96 / 40**0.5, rel=0.1), "rows alone: values ±1"
    assert width([judged(5.0, 0.2, rows=4000)] * 3) < 0.15 * width(same)
    assert width([judged(3.0, 0.2), judged(5.0, 0.2), judged(7.0, 0.2)]) > 3 * width(same), "seeds that differ"


def test_differences_are_paired_by_row():
    ours, others = (text_results.bootstrap([judged(score, reward)] * 3) for score, reward in ((5.5, 0.3), (5.0, 0.2)))
    assert np.allclose(ours[0] - others[0], 0.5) and np.allclose(ours[1] - others[1], 0.1)


def test_lines_hold_seeds_means_and_gains(tmp_path: Path):
    made = {
        "teacher-itself": (9.0, 0.4),
        "student-itself": (2.0, 0.1),
        "on_policy_gkd-seed-0": (4.0, 0.2),
        "on_policy_gkd-seed-1": (6.0, 0.3),
    }
    for name, values in {**made, "reward-seed-0": (3.0, 0.35)}.items():
        (tmp_path / "summarization" / name / "run").mkdir(parents=True)
        text_results.save(judged(*values), tmp_path / "summarization" / name / "test.json")
    metrics = tmp_path / "summarization" / "reward-seed-0" / "run" / "metrics.jsonl"
    metrics.write_text('{"flops_student": 1e12, "flops_generation": 5e11}\n' * 2)
    lines = text_page.lines_of(tmp_path / "summarization")
    assert [line["method"] for line in lines if line["seed"] == "all"] == ["initial student", "teacher", "on_policy_gkd", "reward"]
    by = {(line["method"], line["seed"]): line for line in lines}
    assert by["on_policy_gkd", "all"]["score"] == "5" and by["on_policy_gkd", "1"]["score"] == "6"
    assert by["reward", "0"]["steps"] == "2" and by["reward", "0"]["student"] == "2" and by["reward", "all"]["generation"] == "1"
    assert (
        float(by["reward", "all"]["score_gain_mean"]) == pytest.approx(-2, abs=0.1) and "score_gain_mean" not in by["on_policy_gkd", "all"]
    )
    text_page.write_table(lines, tmp_path / "page.csv")
    read = text_page.read_table(tmp_path / "page.csv")
    for _ in range(2):  # a second writing changes nothing but the tables between their marks
        text_page.write(read, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert text.count("| `on_policy_gkd` | 2 | 5.00 |") == 1 and "4.00 6.00" in text
    (tmp_path / "page.md").write_text(text.replace("5.00", "9.99") + "Words.\n")
    text_page.write(read, tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() == text + "Words.\n"
    assert (tmp_path / "images" / "page.png").stat().st_size > 1000


def test_the_page_says_what_its_table_file_says():
    lines, text = text_page.read_table(PAGE.with_suffix(".csv")), PAGE.read_text(encoding="utf-8")
    tasks = {line["task"] for line in lines}
    assert "translation" in tasks
    for task in tasks:
        begin, end = text_page.marks(task)
        of_task = [line for line in lines if line["task"] == task]
        assert text.split(begin)[1].split(end)[0].strip() == text_page.tables(of_task).strip()
        for line in (line for line in of_task if line["seed"] == "all"):
            runs = [run for run in of_task if run["method"] == line["method"] and run["seed"] != "all"]
            for name in (*text_page.FIGURES, *text_page.SAMPLED, *text_page.PHASES):
                if line[name]:
                    assert float(line[name]) == pytest.approx(np.mean([float(run[name]) for run in runs]), rel=1e-3), (line["method"], name)
            assert float(line["reward_low"]) <= float(line["reward"]) <= float(line["reward_high"])


def test_the_tokenizer_gives_back_the_text():
    tokenizer = text_models.fit_tokenizer(["Große Bären, 12 Äpfel; größere Bäume.", *TEXTS], 330)
    for text in ("Große Bäume, 21 Äpfel", "nothing — 日本 ß\u00e9 here"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_batches_hold_every_pair_once_in_a_pass():
    pairs = [([i + 1] * (1 + i % 5), [i + 1] * (1 + i % 3)) for i in range(20)]
    taken = list(itertools.islice(text_models.batches(pairs, 4, 0, random.Random(0)), 10))
    for half in (taken[:5], taken[5:]):
        rows = [(p[m].tolist(), c[n].tolist()) for ps, ms, cs, ns in half for p, m, c, n in zip(ps, ms, cs, ns, strict=True)]
        assert Counter(map(repr, rows)) == Counter(map(repr, pairs))
    assert all((ids[~mask] == 0).all() for ids, mask, *_ in taken)


def test_a_model_learns_its_pairs():
    tokenizer = text_models.fit_tokenizer(TEXTS, 300)
    pairs = [(tokenizer(text)["input_ids"], [*tokenizer(other)["input_ids"], 1]) for text, other in zip(TEXTS, REFERENCES, strict=True)]
    model = text_models.new_teacher(tokenizer, seed=0)

    before = text_models.surprise(model, pairs)
    text_models.fit(model, pairs, 60, batch=4)
    assert text_models.surprise(model, pairs) < 0.3 * before
    student = text_models.smaller(model)
    mine, its = (dict(one.module.named_parameters()) for one in (student, model))
    assert student.parameters < model.parameters and "encoder.block.2.layer.0.layer_norm.weight" not in mine
    for ours, theirs in (
        ("encoder.block.0", "encoder.block.0"),
        ("encoder.block.1", "encoder.block.2"),
        ("decoder.block.0", "decoder.block.0"),
    ):
        of_layer = [name for name in mine if name.startswith(ours)]
        assert of_layer and all(mine[name].equal(its[name.replace(ours, theirs)]) for name in of_layer)
    assert mine["shared.weight"].equal(its["shared.weight"])
    assert student.completion_hidden(*next(text_models.batches(pairs, 4, 0, random.Random(0)))).isfinite().all()


@pytest.mark.parametrize("method", evidence_text.METHODS)
@pytest.mark.parametrize("name", evidence_text.STUDIES)
def test_every_method_of_every_task_is_a_valid_configuration(name: str, method: str, tmp_path: Path):
    config = load_config(evidence_text.configuration(evidence_text.STUDIES[name], tmp_path), evidence_text.METHODS[method])
    validate(config)
    assert config.rollout.prompts_per_step * config.rollout.per_prompt == 64
    supervised = method in ("sft", "supervised_kd")
    assert config.rollout.on_policy_share == (0 if supervised else 1)
    assert config.optimizer == load_config(tmp_path / "test.yaml").optimizer


def test_easier_rows_are_made_of_training_rows():
    pairs = [{"en": "one", "de": "eins"}, {"en": "two", "de": "zwei"}]
    assert text_rows.with_copied_targets(pairs) == [*pairs, {"en": "eins", "de": "eins"}, {"en": "zwei", "de": "zwei"}]
    document = {"source": ["A long first sentence.", "Too short.", "And a third long one."], "target": ["A summary."]}
    assert text_rows.leading_sentences([document]) == [
        {"source": document["source"], "target": ["A long first sentence."]},
        {"source": document["source"][2:], "target": ["And a third long one."]},
    ]


@needs_data
def test_no_training_pair_shares_a_side_with_a_held_out_one():
    rows = text_rows.translation_rows(Path(DATA))
    known = {text for part in ("test", "ntrex") for pair in rows[part] for text in pair.values()}
    assert len(rows["test"]) == text_rows.HELD_OUT and not known & set(text_rows.texts(rows["train"]))
    assert len({pair["en"] for pair in rows["train"]}) == len(rows["train"]) > 10_000
    assert all(len(text.split()) <= text_rows.LONGEST for text in text_rows.texts(rows["train"]))
    assert not any("&apos;" in text or " ," in text for text in text_rows.texts(rows["test"]))


@needs_data
@pytest.mark.slow
def test_the_whole_path_and_a_second_call_that_repeats_nothing(tmp_path: Path):
    command = [sys.executable, str(ROOT / "scripts" / "evidence_text.py"), "--shorten", "0.001", "--seeds", "0", "--samples", "2"]
    command += ["--examples", "8", "--methods", "sft", "joint_0.5", "--out", str(tmp_path / "runs"), "--page", str(tmp_path / "page.md")]
    first = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert first.returncode == 0, first.stderr[-3000:]
    page, table = (tmp_path / "page.md").read_text(), (tmp_path / "page.csv").read_text()
    assert page.count("| `joint_0.5` | 1 |") == 2 and table.count("\ntranslation,teacher,") == 2
    second = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert second.returncode == 0 and "seed 0" in first.stdout and "seed 0" not in second.stdout
    assert (tmp_path / "page.md").read_text() == page and (tmp_path / "page.csv").read_text() == table
