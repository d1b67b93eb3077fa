"""Objectives that cannot work are refused when they are read, with the key, the reason and the fix."""

from __future__ import annotations

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.errors import UserError
from gkd_rl.objective.validate import validate_objective


def objective(*overrides: str) -> ObjectiveConfig:
    """The default objective with dotted overrides, through OmegaConf as a run reads it."""
    config = OmegaConf.merge(OmegaConf.structured(ObjectiveConfig), OmegaConf.from_dotlist(list(overrides)))
    made = OmegaConf.to_object(config)
    assert isinstance(made, ObjectiveConfig)
    return made


def check(*overrides: str, **situation) -> None:
    validate_objective(objective(*overrides), **{"has_reward": True, "has_teacher": True, "has_reference": False, **situation})


K1_ADVANTAGE = ("divergence.kind=reverse_kl", "divergence.estimator=k1", "divergence.use=advantage")

FORWARD = "divergence.kind=forward_kl"
BOTH = ("divergence.kind=reverse_kl", "divergence.use=both")
TOP_4 = ("divergence.estimator=top_k", "divergence.top_k=4")

ACCEPTED = [
    (),
    ("alpha=1",),
    ("alpha=0",),
    ("divergence.kind=gjsd", "divergence.beta=0", "divergence.rescale=true"),
    K1_ADVANTAGE,
    (*K1_ADVANTAGE, "divergence.discount=0.9"),
    (*K1_ADVANTAGE, "divergence.discount=1", "divergence.average=true"),
    ("divergence.kind=reverse_kl", "divergence.use=both", "divergence.discount=1"),
    ("divergence.kind=reverse_kl", "divergence.estimator=k2"),
    ("divergence.kind=forward_kl", "divergence.estimator=k3"),
    ("divergence.estimator=top_k", "divergence.tail=renormalise"),
    ("gate.kind=wrong",),
    ("gate.kind=unsolved_group", "alpha=1"),
    ("gate.kind=sign_agreement",),
    ("gate.kind=right_reward_wrong_divergence",),
    ("alpha=1", "alpha_schedule.kind=plateau", "alpha_schedule.end=0"),
    ("reward_weight=1", "divergence_weight=0.005", "divergence_schedule.kind=exponential", "divergence_schedule.end=0.001"),
    ("surrogate.clip_low=null", "surrogate.clip_high=null"),
    ("surrogate.ratio=none",),
    ("surrogate.teacher_in_ratio=0.5",),
]


@pytest.mark.parametrize("overrides", ACCEPTED, ids=" ".join)
def test_what_makes_sense_is_accepted(overrides):
    check(*overrides)


REFUSED = [
    (("divergence.estimator=k1", "divergence.kind=reverse_kl"), {}, "the teacher does not appear"),
    (("divergence.use=advantage",), {}, "inert: it does not depend on the sampled token"),
    (("divergence.estimator=top_k", "divergence.use=advantage"), {}, "inert"),
    (("divergence.estimator=k2", "divergence.kind=reverse_kl", "divergence.use=advantage"), {}, "biased"),
    (("divergence.estimator=k3", "divergence.kind=forward_kl", "divergence.use=advantage"), {}, "biased"),
    (("divergence.estimator=k3", "divergence.kind=reverse_kl"), {}, "has the forward KL's gradient"),
    (("divergence.estimator=k2", "divergence.kind=gjsd"), {}, "estimates the reverse KL"),
    (K1_ADVANTAGE, {"on_policy_share": 0.5}, "assumes tokens sampled from the policy"),
    ((*K1_ADVANTAGE, "divergence.temperature=2"), {}, "tokens are drawn at temperature 1"),
    (("alpha=0.5", "divergence.temperature=2", "gate.kind=sign_agreement"), {}, "tokens are drawn at temperature 1"),
    (("alpha=0.5", "divergence.temperature=2", "surrogate.teacher_in_ratio=0.5"), {}, "tokens are drawn at temperature 1"),
    (("divergence.discount=0.5",), {}, "discount needs estimator 'k1'"),
    ((*K1_ADVANTAGE, "divergence.average=true"), {}, "average is about the sum over later tokens, which needs a discount"),
    (("divergence.use=both", "divergence.discount=1"), {}, "is the gradient of the reverse KL of whole sequences"),
    ((*BOTH, "divergence.estimator=k1", "divergence.discount=1"), {}, "kind=reverse_kl, estimator=full"),
    (BOTH, {}, "sums log-ratios over later tokens, and objective.divergence.discount is 0"),
    ((*BOTH, "divergence.discount=1", "divergence.temperature=2"), {}, "tokens are drawn at temperature 1"),
    ((*BOTH, "divergence.discount=1"), {"on_policy_share": 0.5}, "assumes tokens sampled from the policy"),
    ((*BOTH, "divergence.discount=1"), {"other_tokenizer": True}, "use 'both' needs the teacher's probability of each sampled token"),
    ((*BOTH, "divergence.discount=1", "surrogate.ratio=none"), {"passes": 2}, "biased from the second of 2 passes"),
    (("divergence.estimator=top_k", "divergence.tail=drop"), {}, "drain the kept tokens"),
    (("divergence.estimator=top_k", "divergence.top_k=0"), {}, "too few tokens"),
    (("divergence.estimator=top_k", "divergence.tail=renormalise", "divergence.top_k=1"), {}, "too few tokens"),
    (("divergence.beta=1.5",), {}, r"outside \[0, 1\]"),
    (("divergence.beta=-0.1",), {}, r"outside \[0, 1\]"),
    (("divergence.kind=skew_forward_kl", "divergence.skew=1"), {}, "0 for every student"),
    (("divergence.temperature=0",), {}, "must be above 0"),
    (("divergence.teacher_temperature=-1",), {}, "must be above 0"),
    (("divergence.kind=reverse_kl", "divergence.rescale=true"), {}, "belongs to kind 'gjsd'"),
    (("divergence.extrapolation=1.25",), {}, "needs a reference policy"),
    (("divergence.extrapolation=0",), {"has_reference": True}, "must be above 0"),
    (("alpha=0", "divergence.extrapolation=1.25"), {"has_reference": True}, "has no effect"),
    ((), {"has_reward": False}, "no reward is configured"),
    ((), {"has_teacher": False}, "no teacher is configured"),
    (("alpha=0.5",), {"on_policy_share": 0.0}, "no row is sampled from the policy"),
    (("cross_entropy_weight=0.1",), {}, "there are no dataset rows"),
    (("cross_entropy_weight=-1",), {"on_policy_share": 0.5}, "below 0"),
    (("reward_weight=0", "divergence_weight=0"), {}, "every weight is 0"),
    (("reward_weight=-1",), {}, "maximise what should be minimised"),
    (("alpha=1.2",), {}, r"outside \[0, 1\]"),
    (("alpha_schedule.kind=linear", "alpha_schedule.end=2"), {}, r"outside \[0, 1\]"),
    (("alpha_schedule.kind=linear",), {}, "end is not set"),
    (("alpha_schedule.kind=exponential", "alpha_schedule.end=0"), {}, "touches 0"),
    (("alpha_schedule.kind=linear", "alpha_schedule.end=0", "alpha_schedule.steps=0"), {}, "at least 1"),
    (("alpha_schedule.kind=linear", "alpha_schedule.end=0", "alpha_schedule.start_step=-1"), {}, "at least 0"),
    (("alpha_schedule.kind=plateau", "alpha_schedule.end=0", "alpha_schedule.patience=0"), {}, "patience ≥ 1"),
    (("alpha_schedule.kind=adaptive", "alpha_schedule.end=0"), {}, "moves the share of sampled rows alone"),
    (("reward_schedule.kind=linear", "reward_schedule.end=1"), {}, "which is not set"),
    (
        ("reward_weight=1", "divergence_weight=1", "alpha_schedule.kind=linear", "alpha_schedule.end=0"),
        {},
        "alpha_schedule has no effect",
    ),
    (("alpha=1", "gate.kind=wrong"), {"has_reward": False}, "needs a reward"),
    (("alpha=0", "gate.kind=wrong"), {}, "gates the divergence, whose weight is 0"),
    (("alpha=1", "gate.kind=right_reward_wrong_divergence"), {}, "needs the reward's term"),
    ((), {"has_old_logprobs": False}, "log-probabilities at sampling"),
    (("surrogate.ratio=none",), {"passes": 2}, "biased from the second of 2 passes"),
    (("surrogate.ratio=none", "surrogate.teacher_in_ratio=0.5"), {}, "needs an importance ratio"),
    (("surrogate.teacher_in_ratio=2",), {}, r"outside \[0, 1\]"),
    (("surrogate.clip_low=1.5",), {}, "never acts"),
    (("surrogate.clip_high=-0.1",), {}, "below 0"),
    ((), {"sampler_is_exact": False}, "draws from another distribution"),
    (("surrogate.correction.kind=mask", "surrogate.ratio=none"), {"has_old_logprobs": False}, "correction needs the sampler's"),
    (("surrogate.correction.high=0.5", "surrogate.correction.low=0.1"), {}, "high ≥ 1"),
    (("surrogate.reference_kl_weight=0.1",), {}, "needs a reference policy"),
    (("alpha=1", "surrogate.reference_kl_weight=0.1"), {"has_reference": True}, "part of the reward's term"),
    (("alpha=1", "surrogate.entropy_weight=0.1"), {}, "part of the reward's term"),
    ((), {"group_size": 1}, "every advantage is 0"),
    (("telemetry.interference_stride=-1",), {}, "below 0"),
    (("alpha=0",), {"teacher_top_k": 20}, "needs the whole distribution but the teacher gives 20"),
    (("divergence.estimator=top_k", "divergence.top_k=21"), {"teacher_top_k": 20}, "lower it, or raise teacher.top_k"),
    ((*TOP_4, "divergence.extrapolation=1.25"), {"teacher_top_k": 20, "has_reference": True}, "extrapolation needs the whole"),
    ((*TOP_4, "divergence.temperature=2"), {"teacher_top_k": 20}, "temperature is 2, for which its whole distribution is needed"),
    ((*K1_ADVANTAGE, "divergence.teacher_temperature=0.5"), {"teacher_top_k": 0}, "temperature is 0.5"),
    (("divergence.estimator=draws", FORWARD), {"teacher_top_k": 4}, "needs tokens drawn from the teacher"),
    (("divergence.estimator=draws", FORWARD, "divergence.use=advantage"), {}, "inert"),
    (TOP_4, {"teacher_top_k": 4, "teacher_draws": True}, "takes for the likeliest tokens"),
    (("divergence.estimator=draws",), {"teacher_top_k": 4, "teacher_draws": True}, "estimates the forward KL"),
    (
        ("divergence.estimator=draws", FORWARD, "divergence.teacher_temperature=2"),
        {"teacher_top_k": 4, "teacher_draws": True},
        "drawn at temperature 1",
    ),
    (
        (*TOP_4, "divergence.tail=renormalise", "divergence.teacher_temperature=2", "gate.kind=sign_agreement"),
        {"teacher_top_k": 20},
        "of the sampled token at temperature 2",
    ),
]


@pytest.mark.parametrize(
    ("overrides", "situation", "reason"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_what_is_inert_biased_or_impossible_is_refused_with_the_reason(overrides, situation, reason):
    with pytest.raises(UserError, match=reason) as refusal:
        check(*overrides, **situation)
    message = str(refusal.value)
    assert "\n" not in message and message.endswith(".") and message.count(". ") == 0, "one sentence"


@pytest.mark.parametrize(
    "overrides",
    [
        TOP_4,
        (*TOP_4, "divergence.temperature=2", "divergence.teacher_temperature=1"),
        (*TOP_4, "divergence.temperature=2", "divergence.tail=renormalise"),
        ("alpha=0", *TOP_4),
    ],
    ids=" ".join,
)
def test_what_top_k_scores_can_do_is_accepted(overrides):
    check(*overrides, teacher_top_k=4)


def test_the_sampled_token_alone_is_enough_for_sampled_estimators():
    check(*K1_ADVANTAGE, teacher_top_k=0)


def test_a_correction_makes_an_inexact_sampler_acceptable():
    check("surrogate.correction.kind=truncate", sampler_is_exact=False)
    check("alpha=1", sampler_is_exact=False)


def test_a_single_rollout_per_prompt_is_fine_with_a_batch_baseline():
    check("advantage.kind=batch", group_size=1)


def test_checking_a_configuration_imports_no_torch():
    program = "import sys, gkd_rl.objective.validate, gkd_rl.objective.schedule; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
