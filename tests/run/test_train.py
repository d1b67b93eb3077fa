"""``gkd-rl train`` from its configuration to its folder, on real rows, generated rows and every kind of model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from workbench import Models, Outcome, check_final_model, check_folder, check_rollouts_against_models, load, rows_of

from gkd_rl.models.tokenizers import load_tokenizer, prompt_tokens


@pytest.fixture
def train(cli: Callable[..., Outcome], small: Path, tmp_path: Path) -> Callable[..., tuple[Any, Any, Any]]:
    """``train(*overrides)``: metrics, rollouts and summary of a small run in ``tmp_path/run``."""

    def train(*overrides: str) -> tuple[Any, Any, Any]:
        outcome = cli("train", small, f"run_dir={tmp_path / 'run'}", *overrides)
        assert outcome.status == 0, outcome.err
        return check_folder(tmp_path / "run", steps=2)

    return train


# real rows of GSM8K


@pytest.fixture(scope="module")
def gsm8k_run(run: Callable[..., Outcome], small: Path, gsm8k: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """Three steps on the real GSM8K, in a process of its own as a user starts it."""
    folder = tmp_path_factory.mktemp("gsm8k") / "run"
    return folder, run("train", small, f"run_dir={folder}", f"data_dir={gsm8k.parent}", "max_steps=3", "evaluation.every=1")


def test_a_run_on_gsm8k_ends_well_and_says_what_came_of_it(gsm8k_run: tuple[Path, Outcome]) -> None:
    folder, outcome = gsm8k_run
    assert outcome.status == 0, outcome.err
    assert "Traceback" not in outcome.err and "Warning" not in outcome.err
    for said in ("student before", "teacher", "student after", "greedy accuracy", "95% interval", "parameters", "tokens/s"):
        assert said in outcome.out
    assert str(folder / "curves.png") in outcome.out and "gkd-rl evaluate" in outcome.out


def test_a_run_on_gsm8k_leaves_a_whole_folder(gsm8k_run: tuple[Path, Outcome], models: Models) -> None:
    metrics, rollouts, summary = check_folder(gsm8k_run[0], steps=3)
    assert [("eval_accuracy" in row) for row in metrics] == [True, True, False]
    assert len(rollouts) == 3 * 3 * 2
    assert summary["accuracy_teacher"] is not None
    check_final_model(gsm8k_run[0], models.student)


def test_every_held_out_answer_is_kept_before_and_after(gsm8k_run: tuple[Path, Outcome], gsm8k: Path) -> None:
    summary = json.loads((gsm8k_run[0] / "summary.json").read_text())
    answers = {row["question"]: row["answer"] for row in rows_of(gsm8k / "test.jsonl")}
    before, after = (rows_of(gsm8k_run[0] / f"evaluation-{when}.jsonl") for when in ("before", "after"))
    for when, rows in (("before", before), ("after", after)):
        assert len(rows) == 4 and sum(row["right"] for row in rows) / 4 == summary[when]["accuracy"]
        for row in rows:
            assert row["reference"] == answers[row["prompt"].removeprefix("Question: ").removesuffix("\nAnswer:")]
            assert isinstance(row["completion"], str)
    assert [row["example"] for row in before] == [row["example"] for row in after]
    assert [row["completion"] for row in before] != [row["completion"] for row in after]


def test_stored_rollouts_of_gsm8k_are_what_the_models_say(gsm8k_run: tuple[Path, Outcome], models: Models, gsm8k: Path) -> None:
    rollouts = rows_of(gsm8k_run[0] / "rollouts.jsonl")
    questions = {row["question"]: row["answer"] for row in rows_of(gsm8k / "train.jsonl")}
    for row in rollouts:
        question = row["prompt"].removeprefix("Question: ").removesuffix("\nAnswer:")
        assert row["columns"]["reference"] == questions[question]
    check_rollouts_against_models([row for row in rollouts if row["step"] == 1], models.student, models.teacher)


def test_a_chat_templated_run_on_gsm8k_asks_in_the_template(train, gsm8k: Path, models: Models) -> None:
    _, rollouts, _ = train(f"data_dir={gsm8k}", "task.prompt_format=chat")
    for row in rollouts:
        assert [message["role"] for message in row["prompt"]] == ["system", "user"]
        assert row["prompt"][1]["content"] == row["columns"]["question"]
    check_rollouts_against_models([row for row in rollouts if row["step"] == 1], models.student, models.teacher)


def test_an_encoder_decoder_student_learns_from_an_encoder_decoder_teacher_on_gsm8k(
    train, gsm8k: Path, models: Models, tmp_path: Path
) -> None:
    _, rollouts, _ = train(
        f"data_dir={gsm8k}",
        f"student.path={models.t5_student}",
        f"teacher.path={models.t5_teacher}",
        *("rollout.on_policy_share=0.5", "rollout.max_new_tokens=250", "task.train_examples=6"),
    )
    assert {row["on_policy"] for row in rollouts} == {True, False}
    check_rollouts_against_models([row for row in rollouts if row["step"] == 1], models.t5_student, models.t5_teacher)
    check_final_model(tmp_path / "run", models.t5_student)


# rewards


def test_the_verifier_judges_the_completions_that_are_stored(cli, arithmetic: Path, tmp_path: Path) -> None:
    from reward_models import ArithmeticVerifier

    assert cli("train", arithmetic, f"run_dir={tmp_path / 'run'}", "max_steps=2", "rollout.on_policy_share=1").status == 0
    rows = rows_of(tmp_path / "run" / "rollouts.jsonl")
    judged = ArithmeticVerifier()(None, [row["completion"] for row in rows], reference=[row["columns"]["reference"] for row in rows])
    assert [row["reward"] for row in rows] == judged
    assert {0.0, 1.0} == set(judged)
    for step in (1, 2):
        rewards = [row["reward"] for row in rows if row["step"] == step]
        for row in (row for row in rows if row["step"] == step):
            assert row["advantage"] == pytest.approx(row["reward"] - sum(rewards) / len(rewards), abs=1e-4)


def test_a_classifier_can_take_the_verifiers_place(train, models: Models) -> None:
    from reward_models import SequenceClassificationReward

    options = f"{{model: {models.judge}, template: '{{question}} {{completion}}'}}"
    metrics, rollouts, _ = train(f"rewards=[{{path: reward_models.SequenceClassificationReward, name: judge, options: {options}}}]")
    judge = SequenceClassificationReward(models.judge, template="{question} {completion}")
    judged = judge([""] * len(rollouts), [row["completion"] for row in rollouts], question=[row["columns"]["question"] for row in rollouts])
    assert [row["rewards"]["judge"] for row in rollouts] == pytest.approx(judged, abs=1e-4)
    assert len(set(judged)) > len(judged) / 2
    assert metrics[0]["reward_judge"] == pytest.approx(sum(judged[:6]) / 6, abs=1e-4)
    assert all(row["advantage_rms"] > 0 for row in metrics)


def test_several_rewards_add_up_by_their_weights(train, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def brevity(prompts, completions, scale=1.0, **columns):\n"
        "    return [None if 'e' in text else -scale * len(text) for text in completions]\n"
    )
    own = f"{{path: '{tmp_path / 'own.py'}:brevity', weight: 0.5, options: {{scale: 0.1}}}}"
    _, rollouts, _ = train(f"rewards=[{{path: reward_models.ArithmeticVerifier, name: correct}}, {own}]")
    assert {row["rewards"]["brevity"] is None for row in rollouts} == {True, False}
    for row in rollouts:
        brevity = row["rewards"]["brevity"]
        assert brevity is None or brevity == pytest.approx(-0.1 * len(row["completion"]), abs=1e-4)
        assert row["reward"] == pytest.approx(row["rewards"]["correct"] + 0.5 * (brevity or 0), abs=1e-4)


# on-policy and dataset rows


def test_without_on_policy_rows_the_datasets_completions_are_distilled(train) -> None:
    metrics, rollouts, _ = train("rollout.on_policy_share=0", "objective.alpha=1", "rollout.max_new_tokens=100")
    for row in rollouts:
        assert not row["on_policy"] and row["reward"] is None
        assert row["completion"].strip() == row["columns"]["reference"]
    assert all("reward" not in row and row["divergence_loss"] > 0 for row in metrics)


def test_a_share_of_one_half_mixes_sampled_and_dataset_rows(train) -> None:
    _, rollouts, _ = train("rollout.on_policy_share=0.5", "rollout.prompts_per_step=8", "rollout.max_new_tokens=100")
    assert {row["on_policy"] for row in rollouts} == {True, False}
    for row in rollouts:
        assert (row["reward"] is not None) == row["on_policy"]


def test_a_share_of_one_has_sampled_rows_only(train) -> None:
    _, rollouts, _ = train()
    assert all(row["on_policy"] and row["version"] == row["step"] - 1 for row in rollouts)


def test_cross_entropy_on_dataset_rows_joins_the_other_terms(train) -> None:
    metrics, _, _ = train(
        "rollout.on_policy_share=0.5", "rollout.prompts_per_step=8", "rollout.max_new_tokens=100", "objective.cross_entropy_weight=0.3"
    )
    for row in metrics:
        assert row["cross_entropy_loss"] > 0 and row["divergence_loss"] > 0
        parts = row["cross_entropy_loss"] + row["divergence_loss"] + row["reward_loss"]
        assert row["loss"] == pytest.approx(parts)


SEQKD = ["rollout.on_policy_share=0", "rollout.completions=teacher", "objective.reward_weight=0", "objective.divergence_weight=0"]


def test_sequence_level_distillation_is_a_configuration(train, models: Models, tmp_path: Path) -> None:
    """The student learns the teacher's own completions by cross-entropy; the same ones come from the store in another run."""
    settings = [*SEQKD, "objective.cross_entropy_weight=1", "rollout.completions_temperature=0", "rollout.per_prompt=1"]
    store = tmp_path / "completions"
    metrics, rollouts, _ = train(*settings, f"rollout.completions_dir={store}")
    assert all(row["loss"] == row["cross_entropy_loss"] > 0 for row in metrics)
    assert not any(row["on_policy"] for row in rollouts)
    teacher, tokenizer = load(models.teacher), load_tokenizer(models.teacher, "teacher.path", False)
    for row in rollouts:
        prompt = torch.tensor([prompt_tokens(tokenizer, row["prompt"])])
        answer = teacher.generate(prompt, do_sample=False, max_new_tokens=10, pad_token_id=0)[0, prompt.shape[1] :].tolist()
        assert row["tokens"] == answer
    kept = (store / "rank-0.jsonl").read_bytes()
    _, again, _ = train(*settings, f"rollout.completions_dir={store}", "resume=new")
    assert again == rollouts and (store / "rank-0.jsonl").read_bytes() == kept


def test_one_coin_for_a_whole_batch_gives_batches_of_one_kind(cli, small: Path, tmp_path: Path) -> None:
    mixed = ["rollout.on_policy_share=0.5", "rollout.mixing=batch", "rollout.max_new_tokens=100", "max_steps=8", "evaluation.teacher=false"]
    assert cli("train", small, f"run_dir={tmp_path / 'run'}", *mixed).status == 0
    kinds: dict[int, set[bool]] = {}
    for row in rows_of(tmp_path / "run" / "rollouts.jsonl"):
        kinds.setdefault(row["step"], set()).add(row["on_policy"])
    assert all(len(kind) == 1 for kind in kinds.values()) and {True, False} == set().union(*kinds.values())


def test_groups_judged_alike_make_room_for_fresh_prompts(train, tmp_path: Path) -> None:
    (tmp_path / "longer.py").write_text(
        "def longer(prompts, completions, **columns):\n    return [float(len(text) > 30) for text in completions]\n"
    )
    longer = "rewards=[{path: " + f"'{tmp_path / 'longer.py'}:longer'" + "}]"
    plain, _, _ = train(longer)
    metrics, rollouts, _ = train(longer, "rollout.max_resamples=8", "resume=new")
    assert sum(row["rows_without_advantage"] for row in metrics) < sum(row["rows_without_advantage"] for row in plain)
    assert all(row["groups_resampled"] > 0 for row in metrics)
    assert any(row["example"] >= 2**28 for row in rollouts)


# updates and terms


def test_two_passes_of_two_updates_use_every_row_twice(train) -> None:
    metrics, rollouts, _ = train("rollout.passes=2", "rollout.updates_per_pass=2", "optimizer.lr=5.0e-3")
    for row in metrics:
        stored = [kept for kept in rollouts if kept["step"] == row["step"]]
        assert len(stored) == 6
        assert row["tokens"] == 2 * sum(len(kept["tokens"]) for kept in stored)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "gjsd"])
def test_every_divergence_of_the_paper_trains(train, kind: str) -> None:
    metrics, _, _ = train(f"objective.divergence.kind={kind}", "objective.divergence.beta=0.1")
    for row in metrics:
        assert row["divergence_loss"] == pytest.approx(0.5 * row["divergence"], rel=1e-4)
        if kind == "gjsd":
            assert 0 < row["divergence"] < min(row["forward_kl"], row["reverse_kl"], math.log(2))
        else:
            assert row["divergence"] == pytest.approx(row[kind], rel=1e-4)


def test_pure_reward_needs_no_teacher(train) -> None:
    metrics, rollouts, summary = train("objective.alpha=0", "teacher.path=null")
    assert summary["accuracy_teacher"] is None and "teacher" not in summary
    assert summary["after"]["divergence"] is None
    assert all("divergence" not in row and row["loss"] == row["reward_loss"] for row in metrics)
    assert all(set(row["divergence"]) == {0.0} for row in rollouts)


def test_pure_distillation_has_no_reward_term(train) -> None:
    metrics, rollouts, _ = train("objective.alpha=1", "rollout.per_prompt=1")
    assert all(row["reward_loss"] == 0 and row["loss"] == row["divergence_loss"] > 0 for row in metrics)
    assert all(row["reward"] is not None for row in rollouts)


def test_two_teachers_lead_to_two_students(cli, small: Path, models: Models, tmp_path: Path) -> None:
    for name, teacher in (("a", models.teacher), ("b", models.student)):
        alone = ["objective.alpha=1", "max_steps=1", f"teacher.path={teacher}", "evaluation.teacher=false"]
        assert cli("train", small, f"run_dir={tmp_path / name}", *alone).status == 0
    first, second, initial = (load(path).lm_head.weight for path in (tmp_path / "a/model", tmp_path / "b/model", models.student))
    assert not torch.allclose(first, initial, atol=1e-5)
    torch.testing.assert_close(second, initial, atol=1e-3, rtol=0)
    assert rows_of(tmp_path / "b" / "metrics.jsonl")[0]["divergence"] == pytest.approx(0, abs=1e-5)


def test_prompts_that_are_too_long_are_left_out_where_that_is_asked_for(train, cli, small: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "long"
    folder.mkdir()
    rows = rows_of(data / "train.jsonl")
    for row in rows[::2]:
        row["question"] = "on and " * 500 + row["question"]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "test.jsonl").write_text((data / "test.jsonl").read_text())
    _, rollouts, _ = train(f"data_dir={folder}", "task.long_prompts=drop", "rollout.prompts_per_step=12")
    assert rollouts and all("on and" not in row["prompt"] for row in rollouts)
    assert len(rollouts) == 2 * 12 * 2


def test_a_run_that_diverges_ends_with_a_sentence(cli, small: Path, tmp_path: Path) -> None:
    outcome = cli("train", small, f"run_dir={tmp_path / 'run'}", "optimizer.lr=1.0e+30", "max_steps=5")
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert "the run has diverged; lower optimizer.lr (here 1e+30)" in outcome.err
    assert not (tmp_path / "run" / "summary.json").exists()


def test_bfloat16_models_train(train) -> None:
    metrics, _, _ = train("student.dtype=bfloat16", "teacher.dtype=bfloat16")
    assert all(row["divergence_loss"] > 0 for row in metrics)
