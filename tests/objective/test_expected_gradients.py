"""Every estimator's expected gradient, by enumeration, against the exact gradient of what it claims to estimate.

The student is a table of logits, one row per prefix, over answers of two tokens from a vocabulary of three. A batch of all answers,
each weighted by its probability, has the expectation as its gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from token_batches import logits_batch
from torch import Tensor

from gkd_rl.config.objective import AdvantageConfig, CorrectionConfig, DivergenceConfig, ObjectiveConfig, SurrogateConfig
from gkd_rl.objective import fused_objective, token_divergence, unified_objective
from gkd_rl.objective.advantage import advantages
from gkd_rl.types import GlobalCounts

VOCABULARY = 3
ANSWERS = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=2)))
"""[9, 2]"""
PREFIX = torch.stack([torch.zeros(9, dtype=torch.int64), 1 + ANSWERS[:, 0]], dim=1)
"""[9, 2] row of the table from which each token is drawn"""
COUNTS = GlobalCounts(1, 1, 1)
UNCLIPPED = {"clip_low": None, "clip_high": None}

generator = torch.Generator().manual_seed(0)
STUDENT, TEACHER, REFERENCE, SAMPLER = torch.randn(4, 1 + VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)
REWARDS = torch.rand(9, generator=generator, dtype=torch.float64)


def answer_logprobs(table: Tensor) -> Tensor:
    """log p(y) [9]."""
    return table.log_softmax(-1)[PREFIX].gather(-1, ANSWERS[..., None]).squeeze(-1).sum(-1)


def exact(value: Callable[[Tensor], Tensor]) -> Tensor:
    """Gradient in the student's table."""
    table = STUDENT.clone().requires_grad_()
    return torch.autograd.grad(value(table), table)[0]


def at_fixed_prefixes(divergence: Callable[[Tensor], Tensor]) -> Tensor:
    """Gradient of a divergence per prefix [4], weighted by how often the student comes there, which is not differentiated."""
    visits = torch.cat([torch.ones(1, dtype=torch.float64), STUDENT[0].softmax(-1)])
    return exact(lambda table: (visits * divergence(table)).sum())


REVERSE = at_fixed_prefixes(lambda table: token_divergence(table, TEACHER, kind="reverse_kl"))
FORWARD = at_fixed_prefixes(lambda table: token_divergence(table, TEACHER, kind="forward_kl"))
SEQUENCE_REVERSE = exact(lambda table: (answer_logprobs(table).exp() * (answer_logprobs(table) - answer_logprobs(TEACHER))).sum())
REWARD = exact(lambda table: (answer_logprobs(table).exp() * REWARDS).sum())


def expected(
    objective: Callable,
    config: ObjectiveConfig,
    *,
    of_answers: Tensor | None = None,
    reward: float = 0.0,
    divergence: float = 0.0,
    drawn_from: Tensor = STUDENT,
    **changes,
) -> Tensor:
    """Expectation over answers drawn from a table of the objective's gradient in the student's table [4, 3]."""
    table = STUDENT.clone().requires_grad_()
    probability = answer_logprobs(drawn_from).exp()[:, None].expand(9, 2).flatten()
    values = REWARDS if of_answers is None else of_answers
    batch = logits_batch(
        table[PREFIX].flatten(0, 1),
        ANSWERS.flatten(),
        TEACHER[PREFIX].flatten(0, 1),
        reward_weights=reward * probability,
        divergence_weights=divergence * probability,
        advantages=values[:, None].expand(9, 2).flatten(),
        sequence_index=torch.arange(9).repeat_interleave(2),
        reference_hidden=REFERENCE[PREFIX].flatten(0, 1),
    )
    changes = {"reference_head": batch.student_head, **changes}
    batch = type(batch)(**{**vars(batch), **changes})
    return torch.autograd.grad(objective(batch, config, COUNTS).loss, table)[0]


def token_logprobs(table: Tensor) -> Tensor:
    """[18]"""
    return table.log_softmax(-1)[PREFIX].gather(-1, ANSWERS[..., None]).flatten()


both = pytest.mark.parametrize("objective", [unified_objective, fused_objective])


@both
@pytest.mark.parametrize("ratio", ["none", "token", "sequence"])
def test_the_reward_term_estimates_the_gradient_of_the_expected_reward(objective, ratio):
    config = ObjectiveConfig(surrogate=SurrogateConfig(ratio=ratio))
    torch.testing.assert_close(expected(objective, config, reward=1.0), -REWARD)


@pytest.mark.parametrize(("kind", "factor"), [("rloo", 1.0), ("dr_grpo", 0.5)])
def test_group_baselines_change_the_expected_gradient_by_the_factor_they_should(kind, factor):
    """Over all pairs of answers: leave-one-out is unbiased, the group's own mean shrinks the gradient by (G−1)/G."""
    pairs = list(itertools.product(range(9), repeat=2))
    rewards = torch.stack([REWARDS[list(pair)] for pair in pairs]).flatten()
    made = advantages(rewards, torch.arange(81).repeat_interleave(2), AdvantageConfig(kind=kind)).reshape(81, 2)
    probability = answer_logprobs(STUDENT).exp()
    mean = torch.zeros(9, dtype=torch.float64)
    for (first, second), (a, b) in zip(pairs, made, strict=True):
        mean[first] += a * probability[second] / 2
        mean[second] += b * probability[first] / 2
    torch.testing.assert_close(expected(unified_objective, ObjectiveConfig(), of_answers=mean, reward=1.0), -factor * REWARD)


K1 = DivergenceConfig(kind="reverse_kl", estimator="k1", use="advantage")


@both
def test_k1_as_advantage_estimates_the_reverse_kl_of_tokens(objective):
    torch.testing.assert_close(expected(objective, ObjectiveConfig(divergence=K1), divergence=1.0), REVERSE)


@both
def test_k1_as_advantage_without_discount_estimates_the_reverse_kl_of_answers(objective):
    config = ObjectiveConfig(divergence=DivergenceConfig(kind="reverse_kl", estimator="k1", use="advantage", discount=1.0))
    torch.testing.assert_close(expected(objective, config, divergence=1.0), SEQUENCE_REVERSE)


@both
@pytest.mark.parametrize("average", [False, True])
def test_a_tokens_own_divergence_and_later_log_ratios_estimate_the_reverse_kl_of_answers(objective, average):
    """With two tokens there is one later one at most, so that mean and sum are the same."""
    divergence = DivergenceConfig(kind="reverse_kl", use="both", discount=1.0, average=average)
    torch.testing.assert_close(expected(objective, ObjectiveConfig(divergence=divergence), divergence=1.0), SEQUENCE_REVERSE)
    assert (SEQUENCE_REVERSE - REVERSE).abs().max() > 0.03


@both
def test_k2_as_loss_estimates_the_reverse_kl_and_k3_the_forward_kl(objective):
    k2 = ObjectiveConfig(divergence=DivergenceConfig(kind="reverse_kl", estimator="k2"))
    k3 = ObjectiveConfig(divergence=DivergenceConfig(kind="forward_kl", estimator="k3"))
    torch.testing.assert_close(expected(objective, k2, divergence=1.0), REVERSE)
    torch.testing.assert_close(expected(objective, k3, divergence=1.0), FORWARD)
    assert (FORWARD - REVERSE).abs().max() > 0.05


@both
@pytest.mark.parametrize("estimator", [{"estimator": "k1", "use": "advantage"}, {"estimator": "k2"}])
def test_sampled_estimators_follow_a_teacher_with_a_temperature_of_its_own(objective, estimator):
    sharp = at_fixed_prefixes(lambda table: token_divergence(table, TEACHER, kind="reverse_kl", temperature=1.0, teacher_temperature=0.5))
    config = ObjectiveConfig(divergence=DivergenceConfig(kind="reverse_kl", teacher_temperature=0.5, **estimator))
    torch.testing.assert_close(expected(objective, config, divergence=1.0), sharp)
    assert (sharp - REVERSE).abs().max() > 0.05


@both
@pytest.mark.parametrize(("kind", "claim"), [("reverse_kl", REVERSE), ("forward_kl", FORWARD)])
def test_full_divergences_are_exact(objective, kind, claim):
    torch.testing.assert_close(expected(objective, ObjectiveConfig(divergence=DivergenceConfig(kind=kind)), divergence=1.0), claim)


@both
def test_the_joint_objective_is_the_weighted_sum_of_both_gradients(objective):
    config = ObjectiveConfig(divergence=DivergenceConfig(kind="reverse_kl"))
    torch.testing.assert_close(expected(objective, config, reward=0.75, divergence=0.25), -0.75 * REWARD + 0.25 * REVERSE)


@both
def test_additive_k1_and_reward_share_one_surrogate(objective):
    torch.testing.assert_close(expected(objective, ObjectiveConfig(divergence=K1), reward=1.0, divergence=0.5), -REWARD + 0.5 * REVERSE)


@both
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_samplers_correction_makes_answers_from_elsewhere_count_right(objective, level):
    """Exact at the sequence's level; the token's alone leaves the gap in how often prefixes are visited."""
    correction = CorrectionConfig("truncate", level=level, high=1e6)
    config = ObjectiveConfig(surrogate=SurrogateConfig(correction=correction, **UNCLIPPED))
    made = expected(objective, config, reward=1.0, drawn_from=SAMPLER, sampler_logprobs=token_logprobs(SAMPLER))
    assert torch.allclose(made, -REWARD) == (level == "sequence")


@both
def test_token_ratios_correct_for_the_policys_own_movement_at_the_token(objective):
    """On answers from the old policy, with the same prefixes: Σ μ(y)·ρ·∇log p = ∇ Σ p(y|prefix)·A."""
    config = ObjectiveConfig(surrogate=SurrogateConfig(**UNCLIPPED))
    made = expected(objective, config, reward=1.0, drawn_from=SAMPLER, old_logprobs=token_logprobs(SAMPLER))
    first = exact(lambda table: (table[0].softmax(-1) * _second_step_mean(SAMPLER)).sum())
    torch.testing.assert_close(made[0], -first[0])


def _second_step_mean(table: Tensor) -> Tensor:
    """Expected reward after each first token [3], the second drawn from a table."""
    return (table[1:].softmax(-1) * REWARDS.reshape(3, 3)).sum(-1)


@both
@pytest.mark.parametrize("weight", [0.5, 1.25])
def test_extrapolation_is_the_dense_reward_of_g_opd(objective, weight):
    """KL(p‖ref) − λ·E_p[log pT − log pRef] at fixed prefixes."""

    def g_opd(table: Tensor) -> Tensor:
        lp, lt, lr = (x.log_softmax(-1) for x in (table, TEACHER, REFERENCE))
        return (lp.exp() * ((lp - lr) - weight * (lt - lr))).sum(-1)

    config = ObjectiveConfig(divergence=DivergenceConfig(kind="reverse_kl", extrapolation=weight))
    torch.testing.assert_close(expected(objective, config, divergence=1.0), at_fixed_prefixes(g_opd))
    assert (at_fixed_prefixes(g_opd) - REVERSE).abs().max() > 0.02


@both
def test_entropy_bonus_and_reference_kl_are_exact(objective):
    def regulariser(table: Tensor) -> Tensor:
        lp, lr = table.log_softmax(-1), REFERENCE.log_softmax(-1)
        return (lp.exp() * (0.3 * lp + 0.7 * (lp - lr))).sum(-1)

    config = ObjectiveConfig(surrogate=SurrogateConfig(entropy_weight=0.3, reference_kl_weight=0.7))
    made = expected(objective, config, of_answers=torch.zeros(9, dtype=torch.float64), reward=1.0)
    torch.testing.assert_close(made, at_fixed_prefixes(regulariser))


def as_advantage(values: Tensor) -> Tensor:
    """Expected gradient with per-token values [18] as detached advantages to be lowered."""
    return expected(unified_objective, ObjectiveConfig(), reward=1.0, advantages=-values)


def test_the_refused_k1_loss_has_no_teacher_in_it_and_no_expected_gradient():
    def k1_loss(teacher: Tensor) -> Tensor:
        probability = answer_logprobs(STUDENT).exp()[:, None].expand(9, 2).flatten()
        return exact(lambda table: (probability * (token_logprobs(table) - token_logprobs(teacher))).sum())

    assert k1_loss(TEACHER).abs().max() < 1e-12
    assert torch.equal(k1_loss(TEACHER), k1_loss(REFERENCE))
    assert REVERSE.abs().max() > 0.05


@pytest.mark.parametrize("top_k", [None, 2])
def test_the_refused_full_and_top_k_advantages_are_inert(top_k):
    divergence = token_divergence(STUDENT, TEACHER, kind="reverse_kl", top_k=top_k)[PREFIX].flatten()
    only_first = torch.tensor([1.0, 0.0], dtype=torch.float64).repeat(9)
    assert as_advantage(divergence * only_first)[0].abs().max() < 1e-12
    assert as_advantage(divergence * (1 - only_first))[1:].abs().max() < 1e-12


@pytest.mark.parametrize("form", ["k2", "k3"])
def test_the_refused_k2_and_k3_advantages_are_biased(form):
    log_ratio = token_logprobs(TEACHER) - token_logprobs(STUDENT)
    values = log_ratio.square() / 2 if form == "k2" else log_ratio.exp() - log_ratio - 1
    assert (as_advantage(values) - REVERSE).abs().max() > 0.05
    assert (as_advantage(values) - FORWARD).abs().max() > 0.05


def test_changing_the_teacher_changes_every_accepted_gradient():
    for divergence in (K1, DivergenceConfig(kind="reverse_kl", estimator="k2"), DivergenceConfig(kind="gjsd")):
        config = ObjectiveConfig(divergence=divergence)
        other = expected(unified_objective, config, divergence=1.0, teacher_hidden=REFERENCE[PREFIX].flatten(0, 1))
        assert (other - expected(unified_objective, config, divergence=1.0)).abs().max() > 0.02
