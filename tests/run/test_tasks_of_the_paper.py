"""Every task trains and is evaluated with tiny models of both families, on its real rows where GKD_RL_DATA names them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import torchrun
from workbench import Models, check_folder, write_config

TASKS = {
    "arithmetic": ("arithmetic.ArithmeticTask", {}, {"majority_vote"}),
    "gsm8k": ("gsm8k.Gsm8kTask", {"shots": 1, "calculator_marks": True, "calculator": True}, {"majority_vote"}),
    "summarization": ("summarization.SummarizationTask", {}, {"rouge1", "rouge2", "rougeL", "self_bleu", "distinct_1", "distinct_2"}),
    "translation": ("translation.TranslationTask", {}, {"bleu", "chrf", "self_bleu", "distinct_1", "distinct_2"}),
    "instruction": ("instruction.InstructionTask", {}, {"rouge1", "rouge2", "rougeL", "self_bleu", "distinct_1", "distinct_2"}),
}
"""Task → its class, options, and the figures of an evaluation with several samples."""
CASES = [(task, family) for task in TASKS for family in ("llama", "t5")]
QUICK = [("arithmetic", "t5"), ("gsm8k", "llama"), ("summarization", "t5"), ("translation", "llama"), ("instruction", "llama")]
"""Those of the ordinary test run; the other half is slow together."""
OF_SEVERAL = {"majority_vote", "self_bleu"}


@pytest.fixture(scope="module")
def real() -> str:
    folder = os.environ.get("GKD_RL_DATA")
    if not folder or not (Path(folder) / "scitldr").is_dir():
        pytest.skip("GKD_RL_DATA names no folder with the tasks' files")
    return folder


@pytest.fixture
def config(real: str, models: Models, tmp_path: Path) -> Callable[..., Path]:
    """``config(task, family, **options)``: a run of two steps, with prompts of ordinary length."""

    def config(task: str, family: str, **options) -> Path:
        path, given, _ = TASKS[task]
        long = {"gsm8k": "drop", "arithmetic": "error", "instruction": "drop"}.get(task, "truncate")
        settings = {
            "max_steps": 2,
            "run_dir": str(tmp_path / "run"),
            "data_dir": real,
            "student": {"path": str(models.t5_student if family == "t5" else models.student)},
            "teacher": {"path": str(models.t5_teacher if family == "t5" else models.teacher)},
            "task": {
                **{"path": f"gkd_rl.tasks.{path}", "options": {**given, **options}, "max_prompt_tokens": 400},
                **{"long_prompts": long, "long_completions": "drop", "train_examples": 8},
            },
            "rollout": {"prompts_per_step": 4, "per_prompt": 2, "max_new_tokens": 60, "on_policy_share": 0.5},
            "objective": {"alpha": 0.5, "cross_entropy_weight": 0.1},
            "optimizer": {"lr": 1e-3, "schedule": "constant"},
            "engine": {"threads": 1},
            "evaluation": {"examples": 2, "samples": 2, "teacher": False},
            "checkpoint": {"every": 0},
        }
        return write_config(tmp_path / "config.yaml", settings)

    return config


@pytest.mark.parametrize(("task", "family"), [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES])
def test_a_task_trains_and_is_evaluated(cli, config, tmp_path: Path, task: str, family: str) -> None:
    path = config(task, family)
    outcome = cli("train", path)
    assert outcome.status == 0, outcome.err
    metrics, rollouts, summary = check_folder(tmp_path / "run", steps=2)
    assert all(row["divergence_loss"] > 0 for row in metrics) and {row["on_policy"] for row in rollouts} == {True, False}
    assert set(summary["after"]["metrics"]) == TASKS[task][2] - OF_SEVERAL
    said = cli("evaluate", path, "--json")
    assert said.status == 0, said.err
    result = json.loads(said.out)
    assert set(result["metrics"]) == TASKS[task][2]
    assert set(result["pass_at"]) == {"1", "2"} and 0 < result["length"] <= 60


def test_instructions_are_judged_by_their_checks(cli, config, tmp_path: Path) -> None:
    path = config("instruction", "t5", test="ifeval/input_data.jsonl", language=False)
    outcome = cli("train", path, "max_steps=1", "evaluation.examples=3", "rollout.on_policy_share=0.9")
    assert outcome.status == 0, outcome.err
    rows = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    sampled = [row["rewards"] for row in rows if row["on_policy"]]
    assert sampled and all(row["followed"] is None and row["rougeL"] is not None for row in sampled), "training rows have references"


def test_what_was_left_out_or_cut_is_said(cli, config) -> None:
    outcome = cli("train", config("translation", "llama"), "task.max_prompt_tokens=40", "max_steps=1")
    assert outcome.status == 0, outcome.err
    assert "1 of 10000 pairs have an empty side and are left out" in outcome.out
    assert "of 8 training prompts are cut to task.max_prompt_tokens=40" in outcome.out
    assert "training rows are over" in outcome.out


@pytest.mark.slow
def test_metrics_are_of_the_answers_of_all_ranks(run, config) -> None:
    path = config("translation", "llama")
    alone, together = run("evaluate", path, "--json"), run("evaluate", path, "--json", launcher=torchrun())
    assert alone.status == together.status == 0, together.err
    one, two = (json.loads(outcome.out)["metrics"] for outcome in (alone, together))
    assert one == pytest.approx(two) and set(one) == TASKS["translation"][2]


@pytest.mark.parametrize(("sign", "best"), [(1, 2), (-1, 1)])
def test_the_best_checkpoint_is_the_one_with_the_best_score(cli, config, tmp_path: Path, sign: int, best: int) -> None:
    """By a metric that rises, or falls, from one evaluation to the next."""
    (tmp_path / "mine.py").write_text(
        f"calls = []\n\ndef moving(answers):\n    calls.append(1)\n    return {{'moving': {sign} * len(calls)}}\n"
    )
    settings = ["evaluation.score=moving", f"evaluation.metrics=['{tmp_path / 'mine.py'}:moving']", "evaluation.during_examples=2"]
    keeping = ["evaluation.every=1", "checkpoint.every=1", "checkpoint.keep=1", "checkpoint.keep_best=true"]
    outcome = cli("train", config("translation", "llama"), *settings, *keeping, "max_steps=3")
    assert outcome.status == 0, outcome.err
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sign * rows[0]["eval_moving"] < sign * rows[1]["eval_moving"] and "eval_moving" not in rows[2]
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {f"step-{best:08d}", "step-00000003"}


def test_a_score_that_is_no_figure_is_refused_before_anything_is_loaded(refused, config, tmp_path: Path) -> None:
    said = refused("train", config("summarization", "llama"), "evaluation.score=bleu")
    assert "evaluation.score is 'bleu', and evaluations of this run give accuracy, reward, rouge1" in said
    assert not (tmp_path / "run").exists()
