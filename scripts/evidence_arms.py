"""The runs of ``evidence.py``: each an ``Arm``, a configuration with a few settings, and the questions that it helps to answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASELINES = ROOT / "configs" / "baselines"

STUDENT = "STUDENT"
"""Stands for the folder of the student that all runs begin from, which the script makes."""
PEER = "PEER"
"""Stands for the model of ``on_policy_gkd``, seed 0: a teacher of the student's own size."""

COMMON = (
    f"student.path={STUDENT}",
    "optimizer.kind=muon",
    "optimizer.lr=3e-4",
    "task.options={levels: [1, 2]}",
    "checkpoint.every=0",
    "log_rollouts_every=0",
    "evaluation.teacher=false",
    "evaluation.examples=200",
    "evaluation.during_examples=200",
)
"""What all runs share: problems of one or two operations without end, and an optimiser that gets somewhere within minutes."""

SOLVED = ("task.options={levels: [2, 1], held_out_levels: [1, 2]}", "task.train_examples=1500")
"""The problems whose solutions are known, which the student was fitted to: another stream of the same problems. What learns from given
solutions has these alone, whatever needs none has problems without end."""


LONG = 5.0
"""Times the arithmetic of others, where reward alone should have the time that it needs."""


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    name: str
    config: str
    """of ``configs/baselines``"""
    settings: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()
    halfway: bool = False
    """α changes to 0 after half of the steps"""
    taught: float = 0.0
    """share of the rows that the teacher writes, each once; runs do not count that work, which is added here"""
    budget: float = 1.0
    """of the arithmetic that a run may spend, in that of others"""
    needs: str | None = None
    """an arm whose model of seed 0 is this one's teacher"""

    @property
    def path(self) -> Path:
        return BASELINES / f"{self.config}.yaml"

    def overrides(self, student: str, peer: str, steps: int | None = None) -> list[str]:
        """Settings on the command line; without ``steps`` those that a plan needs."""
        found = [text.replace(STUDENT, student).replace(PEER, peer) for text in (*COMMON, *self.settings)]
        if steps is None:
            return found
        if self.halfway:
            found.append(f"objective.alpha_schedule={{kind: step, end: 0, start_step: {steps // 2}, patience: 3}}")
        return [*found, f"max_steps={steps}", f"evaluation.every={max(1, round(steps / 6))}"]


def _alpha(value: float) -> Arm:
    return Arm(f"alpha_{value:g}", "joint", (f"objective.alpha={value:g}",), ("frontier",))


def _long(name: str, config: str, *settings: str, needs: str | None = None) -> Arm:
    return Arm(f"{name}_long", config, settings, ("long",), budget=LONG, needs=needs)


def _kind(name: str, **settings: object) -> Arm:
    given = ", ".join(f"{key}: {value}" for key, value in settings.items())
    return Arm(name, "on_policy_gkd", (f"objective.divergence={{{given}}}",), ("divergence",))


ARMS = (
    Arm("on_policy_gkd", "on_policy_gkd", (), ("methods", "frontier", "share", "divergence", "prompts", "self")),
    Arm("joint", "joint", (), ("methods", "frontier")),
    Arm("sft", "sft", SOLVED, ("methods",)),
    Arm("supervised_kd", "supervised_kd", SOLVED, ("methods", "prompts")),
    Arm("rl", "rl", (), ("methods",)),
    _alpha(0),
    _alpha(0.1),
    _alpha(0.9),
    Arm("seqkd", "seqkd", (), ("methods",), taught=1.0),
    Arm("imitkd", "imitkd", SOLVED, ("methods",)),
    Arm("f_distill", "f_distill", (), ("methods",), taught=0.5),
    Arm("minillm", "minillm", (), ("methods",)),
    Arm("distillm", "distillm", SOLVED, ("methods",)),
    Arm("rl_to_initial", "rl_to_initial", (), ("methods",)),
    Arm("gated_joint", "gated_joint", (), ("methods", "frontier")),
    Arm("distil_then_rl", "distil_then_rl", (), ("methods", "frontier"), halfway=True),
    Arm("share_0", "on_policy_gkd", (*SOLVED, "rollout.on_policy_share=0"), ("share",)),
    Arm("share_0_unlimited", "on_policy_gkd", ("rollout.on_policy_share=0",), ("share",)),
    Arm("share_0.5_unlimited", "on_policy_gkd", ("rollout.on_policy_share=0.5",), ("share",)),
    Arm("alpha_falls", "joint", ("objective.alpha=1", "objective.alpha_schedule={kind: linear, end: 0}"), ("frontier",)),
    Arm("alpha_rises", "joint", ("objective.alpha=0", "objective.alpha_schedule={kind: linear, end: 1}"), ("frontier",)),
    _alpha(0.01),
    _kind("forward_kl", kind="forward_kl", rescale="false"),
    _kind("reverse_kl", kind="reverse_kl", rescale="false"),
    _kind("jsd_0.1", kind="gjsd", beta=0.1, rescale="true"),
    _kind("jsd_0.9", kind="gjsd", beta=0.9, rescale="true"),
    Arm("gkd_75_prompts", "on_policy_gkd", (SOLVED[0], "task.train_examples=75"), ("prompts",)),
    Arm("gkd_1500_prompts", "on_policy_gkd", SOLVED, ("prompts", "share")),
    Arm("self_gkd", "on_policy_gkd", (f"teacher.path={PEER}",), ("self",), needs="on_policy_gkd"),
    Arm("self_joint", "joint", (f"teacher.path={PEER}",), ("self",), needs="on_policy_gkd"),
    _long("self_gkd", "on_policy_gkd", f"teacher.path={PEER}", needs="on_policy_gkd"),
    _long("self_joint", "joint", f"teacher.path={PEER}", needs="on_policy_gkd"),
    _long("alpha_0", "joint", "objective.alpha=0"),
    _long("on_policy_gkd", "on_policy_gkd"),
    _long("joint", "joint"),
)
"""In the order in which they run: what matters most comes first."""

BY_NAME = {arm.name: arm for arm in ARMS}
