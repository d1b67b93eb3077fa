"""Checks that load the models and compute with them on a few real prompts: log-probabilities, divergences, gradients.

Shapes: B sequences, C completion positions.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gkd_rl.build import build_engine
from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.config.teachers import teacher_configs
from gkd_rl.config.validate import needs_teacher
from gkd_rl.console import PhaseTimes
from gkd_rl.errors import UserError
from gkd_rl.learner import Learner, local_counts
from gkd_rl.models.source import resolve
from gkd_rl.objective.advantage import advantages
from gkd_rl.objective.gate import row_gates
from gkd_rl.objective.schedule import TermWeights, weights_at
from gkd_rl.objective.telemetry import summarise
from gkd_rl.preflight.finding import Finding, worst
from gkd_rl.preflight.places import gib
from gkd_rl.preflight.trial import Trial
from gkd_rl.rollout.rescoring import policy_logprobs
from gkd_rl.rollout.rows import micro_batches
from gkd_rl.rollout.sampler import dataset_rollouts
from gkd_rl.scoring import score_rollouts
from gkd_rl.teacher.build import load_frozen
from gkd_rl.teacher.local import LocalTeacher, TopKTeacher
from gkd_rl.teacher.served import ServedTeacher
from gkd_rl.types import Experience, GlobalCounts, Rollouts

EXACT = 1e-3
"""Largest gap in nats between two ways to one log-probability in float32."""
ROUNDED = 0.25
"""The same where one of them is in bfloat16, or another program's."""
VANISHED = 1e-6
"""A gradient's norm that rounding alone may leave."""
TEN = 10.0
"""A gap so many times larger than that is no rounding."""


def student_loads(trial: Trial) -> Finding:
    """Whether the student can be loaded, with finite weights."""
    model = trial.student
    bad = next((name for name, p in model.module.named_parameters() if not bool(p.isfinite().all())), None)
    if bad is not None:
        raise UserError(f"student.path: {bad} of {trial.config.student.path} holds values that are not finite; take another checkpoint")
    return Finding("pass", f"{model.parameters:,} parameters, {model.trained_parameters:,} trained, on {model.device}")


def teacher_loads(trial: Trial) -> Finding:
    """Whether teachers and reference can be loaded."""
    if not teacher_configs(trial.config) and trial.reference is None:
        return Finding("skip", "the run has no teacher")
    reference = "" if trial.reference is None else ", and the initial student as reference"
    return Finding("pass", f"{trial.teaching.parameters:,} parameters in this process{reference}")


def sampler_agrees(trial: Trial) -> Finding:
    """Largest gap between the sampler's log-probabilities of its answers and the trainer's."""
    rollouts, config = trial.rollouts, trial.config
    ours = policy_logprobs(trial.student, rollouts, config.engine.micro_batch_tokens)
    exact = config.student.dtype == "float32" and config.rollout.sampler != "vllm"
    gap = _largest_gap(ours, rollouts.sampler_logprobs, rollouts.completion_mask)
    fix = "the sampler does not sample from the student: see rollout.sampler, or set rollout.sampler=generate"
    return _gap(gap, EXACT if exact else ROUNDED, int(rollouts.completion_mask.sum()), fix)


def served_agrees(trial: Trial) -> Finding:
    """Largest gap between what a server says of the answers, and the same model in this process."""
    findings: list[Finding] = []
    for key, settings in teacher_configs(trial.config).items():
        if settings.url is None or settings.path is None or not _has_weights(settings.path, key):
            continue
        local = LocalTeacher(load_frozen(settings, f"{key}.path", trial.processes), 4 * trial.config.engine.micro_batch_tokens)
        served = ServedTeacher(settings, trial.student.vocabulary, key).score(trial.rollouts)
        here = TopKTeacher(local, settings.top_k or 1).score(trial.rollouts)
        gap = _largest_gap(served.token_logprobs, here.token_logprobs, trial.rollouts.completion_mask)
        fix = f"{key}.url serves another model than {key}.path, or at another temperature: see {key}.served_model"
        findings.append(_gap(gap, ROUNDED, int(trial.rollouts.completion_mask.sum()), fix))
    return worst(findings) if findings else Finding("skip", "no teacher is both served and here as a folder")


def _has_weights(path: str, key: str) -> bool:
    return any(Path(resolve(path, f"{key}.path")).glob("*.safetensors"))


def own_teacher(trial: Trial) -> Finding:
    """The divergence of the student from itself, which is 0, by the objective's own code."""
    objective = trial.config.objective
    divergence = replace(objective.divergence, teacher_temperature=None, extrapolation=1.0, estimator="full", use="loss")
    scores = LocalTeacher(trial.student, 4 * trial.config.engine.micro_batch_tokens).score(trial.rollouts)
    zeros = torch.zeros(len(trial.rollouts.examples), device=trial.student.device)
    experience = Experience(trial.rollouts, zeros, {}, zeros, scores)
    learner = Learner(trial.student, replace(objective, divergence=divergence), TermWeights(0.0, 1.0, 0.0), GlobalCounts(0.0, 1.0, 0.0))
    with torch.no_grad():
        for part in micro_batches(experience, trial.config.engine.micro_batch_tokens, trial.student.one_sequence):
            learner.loss(part)
    value = abs(summarise(learner.sums)["divergence"])
    limit = 1e-5 if trial.config.student.dtype == "float32" else 1e-2
    status = "pass" if value <= limit else "fail"
    return Finding(status, f"{value:.2g} per token", "" if status == "pass" else "the student's own distribution is not finite, or not one")


def finite_steps(trial: Trial) -> Finding:
    """One update for each term of the objective by the run's engine, at a learning rate of 0, with its gradient's norm."""
    config = trial.config
    terms = used_terms(config.objective, needs_teacher(config), config.max_steps)
    experiences = {term: _experience(trial, term) for term in terms}
    engine = build_engine(config, trial.processes, trial.student, PhaseTimes())
    norms: dict[str, float] = {}
    for term, experience in experiences.items():
        cuts = micro_batches(experience, config.engine.micro_batch_tokens, trial.student.one_sequence)
        counts = GlobalCounts(**local_counts(cuts, config.objective))
        weights = TermWeights(*(float(term == name) for name in ("reward", "divergence", "cross_entropy")))
        norms[term] = engine.update(cuts, Learner(trial.student, config.objective, weights, counts).loss, 0.0).norm
    peak = f", {gib(torch.cuda.max_memory_allocated())} at most on the device" if torch.cuda.is_available() else ""
    detail = "gradient norms: " + ", ".join(f"{term.replace('_', '-')} {norm:.3g}" for term, norm in norms.items()) + peak
    if bad := [term for term, norm in norms.items() if not math.isfinite(norm)]:
        return Finding("fail", detail, f"the {bad[0]} term's gradient is not finite: lower its weight's temperature, or use float32")
    if norms.get("reward", 1.0) < VANISHED:
        return Finding("warn", detail, "all answers tried were judged alike; see that some are right and others wrong, or fine-tune first")
    if norms.get("divergence", 1.0) < VANISHED and all(teacher.kind == "model" for teacher in teacher_configs(config).values()):
        return Finding("warn", detail, "the teacher's term has no gradient: is teacher.path the student, or a gate closed?")
    return Finding("pass", detail)


def used_terms(objective: ObjectiveConfig, taught: bool, max_steps: int) -> list[str]:
    """Terms whose weight is not 0 throughout the run."""
    weights = weights_at(objective, 0, max_steps)
    moving = any(schedule.kind != "constant" for schedule in (objective.alpha_schedule, objective.reward_schedule))
    used = {"reward": weights.reward != 0 or moving, "divergence": taught, "cross_entropy": weights.cross_entropy != 0}
    return [term for term, is_used in used.items() if is_used]


def _experience(trial: Trial, term: str) -> Experience:
    """Sampled answers with rewards and scores; for the cross-entropy, the data set's rows."""
    config, rollouts = trial.config, trial.rollouts
    if term == "cross_entropy":
        rollouts = _given(trial)
    rewards, components = score_rollouts(trial.rewards[0].at(0), rollouts)
    batch = replace(config.objective.advantage, kind="batch")  # there is one answer to each prompt
    gains = advantages(rewards.cpu(), rollouts.group.cpu(), batch).to(rewards)
    teacher = trial.teaching.teacher
    taught = teacher.score(rollouts) if teacher is not None and _reads_teacher(config.objective, term) else None
    reference = trial.reference.score(rollouts) if trial.reference is not None else None
    gates = row_gates(rewards, rollouts.group, config.objective.gate)
    return Experience(rollouts, rewards, components, gains, taught, reference, gates)


def _reads_teacher(objective: ObjectiveConfig, term: str) -> bool:
    """Whether a term's own gradient depends on the teacher: of one that is broken, the others know nothing."""
    in_reward = objective.surrogate.teacher_in_ratio != 0 or objective.gate.kind == "sign_agreement"
    return term == "divergence" or (term == "reward" and in_reward)


def _given(trial: Trial) -> Rollouts:
    """Rows that are not the student's own: the data set's, or, where the teacher writes them, sampled ones in their place."""
    if trial.config.rollout.completions == "teacher":
        return replace(trial.rollouts, on_policy=torch.zeros_like(trial.rollouts.on_policy))
    return dataset_rollouts(trial.student, trial.prompts, trial.config.rollout.max_new_tokens, 0)


def _largest_gap(one: Tensor, other: Tensor, mask: Tensor) -> float:
    """max |one − other| over the mask; not finite where one of them is not."""
    gaps = (one - other)[mask].abs()
    return float(gaps.max()) if bool(gaps.isfinite().all()) else math.nan


def _gap(gap: float, limit: float, tokens: int, fix: str) -> Finding:
    detail = f"largest gap {gap:.2g} nats over {tokens} tokens"
    if gap <= limit:
        return Finding("pass", detail)
    return Finding("warn" if gap <= TEN * limit else "fail", f"{detail}, and {limit:g} is what rounding explains", fix)
