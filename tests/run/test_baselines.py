"""The methods that joint training is compared with: each runs, and each is what its name says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from workbench import rows_of

from gkd_rl.config.load import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "baselines"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
TERMS = {  # terms of the loss at the first step, and whether rows are the student's own: True, False or both
    "sft": ({"cross_entropy"}, {False}),
    "seqkd": ({"cross_entropy"}, {False}),
    "supervised_kd": ({"divergence"}, {False}),
    "imitkd": ({"divergence"}, {True, False}),
    "f_distill": ({"divergence"}, {True, False}),
    "minillm": ({"divergence"}, {True}),
    "distillm": ({"divergence"}, {True, False}),
    "on_policy_gkd": ({"divergence"}, {True}),
    "rl": ({"reward"}, {True}),
    "rl_to_initial": ({"reward", "divergence"}, {True}),
    "joint": ({"reward", "divergence"}, {True}),
    "gated_joint": ({"reward", "divergence"}, {True}),
    "distil_then_rl": ({"divergence"}, {True}),
}
QUICK = ("sft", "imitkd", "minillm", "gated_joint")
"""Those of the ordinary test run, which other tests train too; the others are slow together."""


@pytest.fixture
def trained(cli, tmp_path: Path) -> Callable[..., Path]:
    """``trained(name, *overrides)``: the folder of a baseline's run, cut to two steps of few rows."""

    def trained(name: str, *overrides: str) -> Path:
        few = ["rollout.prompts_per_step=10", "rollout.passes=1", "rollout.updates_per_pass=1"]
        small = ["evaluation.examples=4", "evaluation.teacher=false", "log_rollouts_every=1", "engine.threads=1"]
        config = load_config(CONFIGS / f"{name}.yaml")
        few += ["rollout.per_prompt=3"] if config.rollout.per_prompt > 1 else []
        few += [f"rollout.completions_dir={tmp_path / 'said'}"] if config.rollout.completions == "teacher" else []
        outcome = cli(
            "train", CONFIGS / f"{name}.yaml", "max_steps=2", "checkpoint.every=0", f"run_dir={tmp_path / 'run'}", *few, *small, *overrides
        )
        assert outcome.status == 0, outcome.err
        return tmp_path / "run"

    return trained


def test_every_baseline_is_tested() -> None:
    assert set(TERMS) == set(NAMES)


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES])
def test_a_baseline_trains_by_its_own_terms_on_its_own_rows(trained, name: str) -> None:
    folder = trained(name)
    metrics, rollouts = rows_of(folder / "metrics.jsonl"), rows_of(folder / "rollouts.jsonl")
    terms, own = TERMS[name]
    assert len(metrics) == 2
    assert {term for term in ("reward", "divergence", "cross_entropy") if acts(metrics[0], term)} == terms
    assert {row["on_policy"] for row in rollouts} == own
    assert any(row["grad_norm"] > 0 for row in metrics), "something is learned"


def acts(row: dict[str, Any], term: str) -> bool:
    """Whether a term is in the loss of a step."""
    weight = {"reward": "reward_weight", "divergence": "divergence_weight"}.get(term)
    if weight is None:
        return bool(row.get("cross_entropy_loss"))
    return row[weight] != 0 and row.get(f"{term}_loss", 0.0) != 0


def test_completions_of_seqkd_are_the_teachers_and_its_likeliest(trained) -> None:
    """The embedded teacher is nearly always right, and its likeliest answers are the same in every run."""
    rows = rows_of(trained("seqkd") / "rollouts.jsonl")
    right = sum(f"#### {row['columns']['reference']}" in row["completion"] for row in rows)
    assert right > 0.8 * len(rows)


LINE = "rollout.on_policy_schedule={kind: linear, end: 1}"


def test_the_share_of_the_students_rows_rises_along_a_line(trained) -> None:
    folder = trained("distillm", "max_steps=4", "rollout.prompts_per_step=40", "rollout.on_policy_share=0.1", LINE)
    shares = [[row["on_policy"] for row in rows_of(folder / "rollouts.jsonl") if row["step"] == step] for step in range(1, 5)]
    own = [sum(of_step) / len(of_step) for of_step in shares]
    assert own[0] < 0.4 and own[3] == 1.0 and own[0] < own[1] < own[2] < own[3]


RISING = ("optimizer.lr=0.05", "optimizer.warmup_steps=0", "evaluation.every=1", "evaluation.during_examples=4")
"""Large enough for every update to harm."""


def test_the_share_of_distillm_grows_when_the_loss_on_the_dataset_rises(trained) -> None:
    folder = trained("distillm", "max_steps=5", "rollout.prompts_per_step=40", *RISING)
    metrics = rows_of(folder / "metrics.jsonl")
    losses, shares = [row.get("eval_dataset_loss") for row in metrics], [row["on_policy_share"] for row in metrics]
    assert losses[0] > 3 and losses[-1] is None, "there is no evaluation during training behind the last step"
    last, expected = 0.0, [0.01]
    for loss in losses[:-1]:
        risen = loss >= last + 0.1
        last, expected = (loss, [*expected, expected[-1] + 0.1]) if risen else (last, [*expected, expected[-1]])
    assert shares == pytest.approx(expected) and shares[-1] > 0.1
    drawn = [sum(row["on_policy"] for row in rows_of(folder / "rollouts.jsonl") if row["step"] == step) / 40 for step in range(1, 6)]
    assert drawn == pytest.approx(shares, abs=0.2) and drawn[-1] > drawn[0]


def test_a_run_that_goes_on_has_the_share_that_it_would_have_had(trained) -> None:
    """Cut off behind its third step, where the share has grown and is about to grow again."""
    settings = ("distillm", "max_steps=5", "rollout.prompts_per_step=20", "checkpoint.every=3", *RISING)
    folder = trained(*settings)
    logs = {name: (folder / name).read_bytes() for name in ("metrics.jsonl", "rollouts.jsonl")}
    shutil.rmtree(folder / "checkpoints" / "step-00000005")
    (folder / "summary.json").unlink()
    trained(*settings, "resume=auto")
    assert {name: (folder / name).read_bytes() for name in logs} == logs
    shares = [row["on_policy_share"] for row in rows_of(folder / "metrics.jsonl")]
    assert shares[0] < shares[2] < shares[4]


def test_the_second_phase_begins_where_the_score_stops_rising(trained) -> None:
    """With a patience of one evaluation, and none that gains as much as is asked for."""
    plateau = "objective.alpha_schedule={kind: plateau, end: 0, patience: 1, min_gain: 1}"
    folder = trained("distil_then_rl", "max_steps=4", "evaluation.every=1", "evaluation.during_examples=2", plateau)
    assert [row["divergence_weight"] for row in rows_of(folder / "metrics.jsonl")] == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("rollout.on_policy_schedule.kind=linear",), "rollout.on_policy_schedule.end is not set but kind 'linear' needs it"),
        (
            ("rollout.on_policy_schedule={kind: linear, end: 1}",),
            "moves rollout.on_policy_share from 1 to 1; it must begin between 0 and 1",
        ),
        (("rollout.on_policy_share=0.5", "rollout.on_policy_schedule={kind: linear, end: 2}"), "from 0.5 to 2; it must begin"),
        (
            ("rollout.on_policy_share=0.5", "rollout.on_policy_schedule={kind: plateau, end: 1}", "rollout.overlap=true"),
            "kind 'plateau' waits for evaluations, which rollout.overlap samples ahead of",
        ),
        (
            ("rollout.on_policy_share=0.5", "rollout.on_policy_schedule={kind: adaptive, end: 1}", "evaluation.every=0"),
            "kind 'adaptive' goes by evaluations and evaluation.every is 0, so the share would never move; set it above 0",
        ),
        (
            ("rollout.on_policy_share=0.5", "rollout.on_policy_schedule={kind: adaptive, end: 0.4}"),
            "only lets the share grow and end=0.4 is below it",
        ),
        (
            ("rollout.on_policy_share=0.5", "rollout.on_policy_schedule={kind: adaptive, end: 1, increment: 0}"),
            "rollout.on_policy_schedule needs increment > 0 and tolerance ≥ 0.",
        ),
    ],
)
def test_a_share_that_cannot_move_so_is_refused(refused, overrides: tuple[str, ...], said: str) -> None:
    assert said in refused("train", CONFIGS / "on_policy_gkd.yaml", *overrides)
