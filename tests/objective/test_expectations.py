"""Expected gradients, summed over every answer of a tiny vocabulary, against the exact gradients of what the estimators claim to
estimate; and the combinations that are refused, which fail that comparison.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from tabular import Tabular
from torch import Tensor

from gkd_rl.config.objective import AdvantageConfig, CorrectionConfig, DivergenceConfig, ObjectiveConfig, SurrogateConfig
from gkd_rl.objective import fused_objective, token_divergence, unified_objective
from gkd_rl.objective.advantage import advantages

OBJECTIVES = pytest.mark.parametrize("objective", [unified_objective, fused_objective])

REVERSE_KL, FORWARD_KL = DivergenceConfig("reverse_kl"), DivergenceConfig("forward_kl")


@pytest.fixture
def world() -> Tabular:
    return Tabular()


def assert_same(ours: Tensor, exact: Tensor) -> None:
    assert exact.norm() > 1e-3
    torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-7)


def kl(one: Tensor, other: Tensor) -> Tensor:
    """KL(one‖other) of the rows of two tables of logits."""
    return (one.softmax(-1) * (one.log_softmax(-1) - other.log_softmax(-1))).sum(-1)


def at_prefixes(world: Tabular, values: Tensor, policy: Tensor | None = None) -> Tensor:
    """Σ over prefixes of values weighted by the chance, held fixed, that the policy comes by."""
    return (world.prefix_mass(world.student if policy is None else policy).detach() * values).sum()


@OBJECTIVES
@pytest.mark.parametrize(
    ("config", "forward"),
    [
        (REVERSE_KL, False),
        (FORWARD_KL, True),
        (DivergenceConfig("reverse_kl", estimator="k2"), False),
        (DivergenceConfig("forward_kl", estimator="k3"), True),
        (DivergenceConfig("reverse_kl", estimator="k1", use="advantage"), False),
    ],
    ids=["reverse_kl", "forward_kl", "k2", "k3", "k1 as advantage"],
)
def test_each_estimator_has_its_divergences_gradient_at_fixed_prefixes(world, objective, config, forward):
    exact = kl(world.teacher, world.student) if forward else kl(world.student, world.teacher)
    ours = world.gradient(objective, world.batch(), ObjectiveConfig(alpha=1, divergence=config))
    assert_same(ours, world.exact(at_prefixes(world, exact)))


@OBJECTIVES
def test_k1_without_discount_follows_the_kl_of_whole_answers(world, objective):
    """Prefixes count too: what is said early changes what comes later."""
    config = DivergenceConfig("reverse_kl", estimator="k1", use="advantage", discount=1.0)
    ours = world.gradient(objective, world.batch(), ObjectiveConfig(alpha=1, divergence=config))
    own, teachers = world.logprobs(world.student), world.logprobs(world.teacher)
    assert_same(ours, world.exact((own.exp() * (own - teachers)).sum()))
    assert (ours - world.exact(at_prefixes(world, kl(world.student, world.teacher)))).norm() > 0.01


@OBJECTIVES
def test_extrapolated_reverse_kl_is_the_kl_to_the_reference_less_the_weighted_log_ratio(world, objective):
    """G-OPD: E[log p/p_ref − λ·log q/p_ref] at fixed prefixes."""
    config = ObjectiveConfig(alpha=1, divergence=DivergenceConfig("reverse_kl", extrapolation=1.25))
    batch = world.batch()
    batch = replace(batch, reference_hidden=world.other[world.rows], reference_head=batch.teacher_head)
    p, lp, lq, lr = world.student.softmax(-1), *(t.log_softmax(-1) for t in (world.student, world.teacher, world.other))
    exact = (p * (lp - lr - 1.25 * (lq - lr))).sum(-1)
    assert_same(world.gradient(objective, batch, config), world.exact(at_prefixes(world, exact)))


@OBJECTIVES
@pytest.mark.parametrize("ratio", ["none", "token"])
@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_the_reward_term_follows_the_expected_reward_whatever_the_baseline(world, objective, ratio, baseline):
    batch = world.batch()
    batch = replace(batch, reward_weights=batch.divergence_weights, advantages=world.of_answers(world.rewards - baseline))
    ours = world.gradient(objective, batch, ObjectiveConfig(divergence_weight=0, surrogate=SurrogateConfig(ratio=ratio)))
    # Weights of the divergence are still set: it is subtracted.
    ours = ours - world.gradient(objective, replace(batch, reward_weights=0 * batch.reward_weights), ObjectiveConfig())
    assert_same(ours, world.exact(-(world.logprobs(world.student).exp() * world.rewards).sum()))


@OBJECTIVES
def test_entropy_bonus_and_reference_kl_have_their_gradients_at_fixed_prefixes(world, objective):
    batch = world.batch()
    batch = replace(
        batch,
        reward_weights=batch.divergence_weights,
        divergence_weights=0 * batch.divergence_weights,
        reference_hidden=world.other[world.rows],
        reference_head=batch.teacher_head,
    )
    config = ObjectiveConfig(alpha=0, surrogate=SurrogateConfig(entropy_weight=0.3, reference_kl_weight=0.4))
    entropy = -(world.student.softmax(-1) * world.student.log_softmax(-1)).sum(-1)
    exact = at_prefixes(world, 0.4 * kl(world.student, world.other) - 0.3 * entropy)
    assert_same(world.gradient(objective, batch, config), world.exact(exact))


def expected_with_groups(kind: str, vocabulary: int = 3, size: int = 2) -> tuple[Tensor, Tensor]:
    """Expected gradient over all groups of ``size`` answers of one token, and the exact one."""
    world = Tabular(vocabulary, length=1)
    drawn = torch.tensor(list(itertools.product(range(vocabulary), repeat=size)))
    chances = world.logprobs(world.student).detach().exp()[drawn].prod(1).repeat_interleave(size) / size
    # `batch` takes its mean over all rows it is given: one group at a time.
    values = torch.cat([advantages(world.rewards[row], torch.zeros(size), AdvantageConfig(kind)) for row in drawn])  # pyright: ignore
    tokens = drawn.flatten()
    batch = replace(
        world.batch(),
        student_hidden=world.student.expand(len(tokens), -1),
        teacher_hidden=None,
        teacher_head=None,
        token_ids=tokens,
        reward_weights=chances,
        divergence_weights=0 * chances,
        cross_entropy_weights=0 * chances,
        advantages=values,
        old_logprobs=world.student.detach().log_softmax(-1)[0, tokens],
        sampler_logprobs=world.student.detach().log_softmax(-1)[0, tokens],
        sequence_index=torch.arange(len(tokens)),
    )
    ours = world.gradient(fused_objective, batch, ObjectiveConfig(alpha=0))
    return ours, world.exact(-(world.logprobs(world.student).exp() * world.rewards).sum())


@pytest.mark.parametrize(
    ("kind", "size", "factor"), [("rloo", 2, 1), ("rloo", 3, 1), ("dr_grpo", 2, 1 / 2), ("dr_grpo", 3, 2 / 3), ("batch", 3, 2 / 3)]
)
def test_baselines_are_unbiased_up_to_the_share_of_a_rows_own_reward(kind, size, factor):
    """A mean of n rewards contains the row's own, which costs 1/n of the gradient; leaving it out costs nothing."""
    ours, exact = expected_with_groups(kind, size=size)
    assert_same(ours, factor * exact)


def test_dividing_by_the_groups_deviation_changes_the_direction():
    ours, exact = expected_with_groups("grpo", vocabulary=4)
    assert torch.cosine_similarity(ours.flatten(), exact.flatten(), dim=0) < 0.999


def off_policy_gradient(objective, world: Tabular, correction: CorrectionConfig, other: Tensor) -> Tensor:
    """Expected gradient of the reward's term over answers sampled from another distribution than the policy."""
    batch = world.batch(sampled_from=other)
    batch = replace(
        batch,
        reward_weights=batch.divergence_weights,
        divergence_weights=0 * batch.divergence_weights,
        advantages=world.of_answers(world.rewards),
        sampler_logprobs=world.token_logprobs(other),
    )
    return world.gradient(objective, batch, ObjectiveConfig(alpha=0, surrogate=SurrogateConfig(correction=correction)))


@OBJECTIVES
def test_the_samplers_correction_is_unbiased_as_long_as_nothing_is_truncated(world, objective):
    exact = world.exact(-(world.logprobs(world.student).exp() * world.rewards).sum())
    sampler = 0.7 * world.student.detach() + 0.3 * world.other
    whole = CorrectionConfig("truncate", "sequence", high=1e6)
    assert_same(off_policy_gradient(objective, world, whole, sampler), exact)
    assert_same(off_policy_gradient(objective, world, CorrectionConfig("mask", "sequence", low=0, high=1e6), sampler), exact)
    for biased in (
        CorrectionConfig("none"),
        CorrectionConfig("truncate", "sequence", high=1.0),
        CorrectionConfig("mask", "sequence", 0.9, 1.1),
    ):
        assert (off_policy_gradient(objective, world, biased, sampler) - exact).norm() > 0.01


@OBJECTIVES
def test_one_weight_per_token_is_unbiased_for_the_tokens_at_the_samplers_prefixes(objective):
    world = Tabular(vocabulary=4, length=1)
    exact = world.exact(-(world.logprobs(world.student).exp() * world.rewards).sum())
    assert_same(off_policy_gradient(objective, world, CorrectionConfig("truncate", "token", high=1e6), world.other), exact)


@OBJECTIVES
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_unclipped_ratios_follow_the_policys_own_reward_after_it_has_moved(objective, ratio):
    world = Tabular(vocabulary=4, length=1)
    batch = world.batch(sampled_from=world.other)
    batch = replace(
        batch,
        reward_weights=batch.divergence_weights,
        divergence_weights=0 * batch.divergence_weights,
        advantages=world.of_answers(world.rewards),
        old_logprobs=world.token_logprobs(world.other),
    )
    config = ObjectiveConfig(alpha=0, surrogate=SurrogateConfig(ratio=ratio, clip_low=None, clip_high=None))
    assert_same(world.gradient(objective, batch, config), world.exact(-(world.logprobs(world.student).exp() * world.rewards).sum()))


# What is refused, and why.


def test_refused_k1_as_a_loss_has_no_expected_gradient_and_no_teacher_in_any(world):
    weights = world.batch().divergence_weights

    def k1_loss(teacher: Tensor, weights: Tensor) -> Tensor:
        log_ratio = world.token_logprobs(teacher) - world.token_logprobs(world.student)
        return (weights * -log_ratio).sum()

    exact = world.exact(at_prefixes(world, kl(world.student, world.teacher)))
    assert exact.norm() > 0.1
    assert world.exact(k1_loss(world.teacher, weights)).norm() < 1e-12
    ones = torch.ones_like(weights)
    assert torch.equal(world.exact(k1_loss(world.teacher, ones)), world.exact(k1_loss(world.other, ones)))


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_k": 2, "tail": "renormalise"}], ids=str)
def test_refused_divergences_as_advantages_have_no_expected_gradient(world, options):
    values = token_divergence(world.student.detach(), world.teacher, kind="reverse_kl", **options)[world.rows]
    batch = world.batch()
    batch = replace(batch, reward_weights=batch.divergence_weights, divergence_weights=0 * batch.divergence_weights, advantages=-values)
    assert values.min() > 1e-3
    assert world.gradient(unified_objective, batch, ObjectiveConfig(alpha=0)).norm() < 1e-6


def test_refused_bare_truncation_drains_the_kept_tokens(world):
    """Gradient descent from the teacher itself: the truncated sum falls as mass leaves the kept tokens; the proper ones stay."""
    lq = world.teacher.log_softmax(-1)
    kept = lq.topk(2).indices

    def kept_mass_after(divergence) -> float:
        table = world.teacher.clone().requires_grad_()
        for _ in range(20):
            (gradient,) = torch.autograd.grad(divergence(table).sum(), table)
            table = (table - gradient).detach().requires_grad_()
        return table.softmax(-1).gather(-1, kept).sum(-1).mean().item()

    def bare(table: Tensor) -> Tensor:
        lp = table.log_softmax(-1).gather(-1, kept)
        return (lp.exp() * (lp - lq.gather(-1, kept))).sum(-1)

    right = world.teacher.softmax(-1).gather(-1, kept).sum(-1).mean().item()
    assert kept_mass_after(bare) < right - 0.1
    for tail in ("bucket", "renormalise"):
        after = kept_mass_after(lambda table, tail=tail: token_divergence(table, world.teacher, kind="reverse_kl", top_k=2, tail=tail))
        assert after == pytest.approx(right, abs=1e-9)


@pytest.mark.parametrize(("estimator", "forward"), [("k2", True), ("k3", False)])
def test_refused_names_of_estimators_do_not_have_those_gradients(world, estimator, forward):
    """k2 is not the forward KL, k3 not the reverse one."""
    ours = world.gradient(unified_objective, world.batch(), ObjectiveConfig(alpha=1, divergence=DivergenceConfig(estimator=estimator)))
    claimed = kl(world.teacher, world.student) if forward else kl(world.student, world.teacher)
    assert (ours - world.exact(at_prefixes(world, claimed))).norm() > 0.05


def test_refused_dataset_rows_under_sampled_estimators_are_biased(world):
    """Over answers of another policy, k2's gradient is not the reverse KL's at its prefixes; the full divergence's is."""
    batch = world.batch(sampled_from=world.other)
    exact = world.exact(at_prefixes(world, kl(world.student, world.teacher), world.other))
    assert_same(world.gradient(unified_objective, batch, ObjectiveConfig(alpha=1, divergence=REVERSE_KL)), exact)
    sampled = replace(REVERSE_KL, estimator="k2")
    assert (world.gradient(unified_objective, batch, ObjectiveConfig(alpha=1, divergence=sampled)) - exact).norm() > 0.05
