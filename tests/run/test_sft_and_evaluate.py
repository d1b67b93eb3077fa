"""``gkd-rl sft`` makes a student that ``train`` starts from; ``gkd-rl evaluate`` measures any model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from workbench import Models, Outcome, check_final_model, check_folder, rows_of

SFT = ["sft.examples=16", "sft.epochs=8", "sft.batch_size=8", "sft.lr=5.0e-3", "rollout.max_new_tokens=60"]


@pytest.fixture(scope="module")
def fine_tuned(run: Callable[..., Outcome], small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a supervised run."""
    folder = tmp_path_factory.mktemp("sft") / "run"
    outcome = run("sft", small, f"run_dir={folder}", *SFT)
    assert outcome.status == 0, outcome.err
    return folder


def test_fine_tuning_lowers_the_cross_entropy_of_its_examples(fine_tuned: Path) -> None:
    losses = [row["cross_entropy_loss"] for row in rows_of(fine_tuned / "metrics.jsonl")]
    assert len(losses) == 8 * 16 / 8
    assert losses[-1] < 0.8 * losses[0]
    assert all(row["loss"] == row["cross_entropy_loss"] for row in rows_of(fine_tuned / "metrics.jsonl"))


def test_fine_tuning_leaves_a_model_without_asking_for_a_teacher(fine_tuned: Path, models: Models) -> None:
    check_final_model(fine_tuned, models.student)
    summary = json.loads((fine_tuned / "summary.json").read_text())
    assert summary["accuracy_teacher"] is None


def test_its_model_is_a_student_to_train(cli, fine_tuned: Path, small: Path, tmp_path: Path) -> None:
    outcome = cli("train", small, f"run_dir={tmp_path / 'run'}", f"student.path={fine_tuned / 'model'}")
    assert outcome.status == 0, outcome.err
    check_folder(tmp_path / "run", steps=2)
    check_final_model(tmp_path / "run", fine_tuned / "model")


def test_its_model_repeats_what_it_was_taught_better_than_the_initial_one(cli, fine_tuned: Path, small: Path, tmp_path: Path) -> None:
    """The divergence from the fine-tuned model to the initial one, on the data's rows, is that of a model that has moved."""
    share = ["rollout.on_policy_share=0", "objective.alpha=1", "max_steps=1", "evaluation.teacher=false", "rollout.max_new_tokens=100"]
    outcome = cli("train", small, f"run_dir={tmp_path / 'run'}", f"teacher.path={fine_tuned / 'model'}", *share)
    assert outcome.status == 0, outcome.err
    metrics = rows_of(tmp_path / "run" / "metrics.jsonl")[0]
    assert metrics["divergence"] > 0.01


@pytest.fixture(scope="module")
def teacher_evaluation(run: Callable[..., Outcome], arithmetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The embedded teacher on held-out problems, four samples each."""
    model = ["model=embedded:arithmetic-teacher", "evaluation.examples=12", "evaluation.samples=4"]
    folder = tmp_path_factory.mktemp("evaluation") / "run"
    outcome = run("evaluate", arithmetic, f"run_dir={folder}", *model, "--json")
    assert not folder.exists()
    return outcome


def test_evaluation_as_json_is_one_object_with_pass_at_k_rising_in_k(teacher_evaluation: Outcome) -> None:
    assert teacher_evaluation.status == 0, teacher_evaluation.err
    figures = json.loads(teacher_evaluation.out)
    assert figures["model"] == "embedded:arithmetic-teacher" and figures["examples"] == 12
    assert list(figures["pass_at"]) == ["1", "2", "4"]
    shares = list(figures["pass_at"].values())
    assert 0 < shares[0] <= shares[1] <= shares[2] <= 1
    assert figures["accuracy_low"] < figures["accuracy"] <= figures["accuracy_high"]
    assert figures["pass_at"]["1"] == pytest.approx(figures["reward"])
    assert figures["reverse_kl"] == pytest.approx(0, abs=1e-4)


def test_evaluation_as_a_table_says_the_same(cli, teacher_evaluation: Outcome, arithmetic: Path) -> None:
    figures = json.loads(teacher_evaluation.out)
    given = ["evaluation.examples=12", "evaluation.samples=4", "model=embedded:arithmetic-teacher"]
    outcome = cli("evaluate", arithmetic, *given)
    assert outcome.status == 0, outcome.err
    for label, value in (("greedy accuracy", figures["accuracy"]), ("pass@4", figures["pass_at"]["4"])):
        row = next(line for line in outcome.out.splitlines() if label in line)
        assert f"{value:.3f}" in row


def test_the_teacher_answers_better_than_the_student(cli, teacher_evaluation: Outcome, arithmetic: Path, tmp_path: Path) -> None:
    outcome = cli("evaluate", arithmetic, "--json", "evaluation.examples=12", "evaluation.samples=4", f"run_dir={tmp_path}")
    student, teacher = json.loads(outcome.out), json.loads(teacher_evaluation.out)
    assert student["model"] == "embedded:arithmetic-student"
    assert student["pass_at"]["4"] < teacher["pass_at"]["1"]
    assert student["accuracy"] < teacher["accuracy"]
    assert student["reverse_kl"] > 0.1


def test_the_runs_final_model_is_evaluated_where_none_is_named(cli, fine_tuned: Path, small: Path) -> None:
    outcome = cli("evaluate", small, "--json", f"run_dir={fine_tuned}")
    assert json.loads(outcome.out)["model"] == str(fine_tuned / "model")
    outcome = cli("evaluate", fine_tuned / "config.yaml", "--json")
    assert json.loads(outcome.out)["model"] == str(fine_tuned / "model")


def test_answers_near_temperature_0_are_all_the_greedy_one(cli, arithmetic: Path) -> None:
    given = ["evaluation.examples=12", "evaluation.samples=4", "evaluation.temperature=1.0e-4", "teacher.path=null", "objective.alpha=0"]
    figures = json.loads(cli("evaluate", arithmetic, "--json", *given, "model=embedded:arithmetic-student").out)
    assert figures["pass_at"]["1"] == figures["pass_at"]["4"] == figures["accuracy"]
