"""Which advantages, corrections and divergences are biased, and by how much: expectations over every answer of a tiny vocabulary."""

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
from gkd_rl.types import TokenBatch

OBJECTIVES = pytest.mark.parametrize("objective", [unified_objective, fused_objective])


@pytest.fixture
def world() -> Tabular:
    return Tabular()


def assert_same(ours: Tensor, exact: Tensor) -> None:
    assert exact.norm() > 1e-2
    torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-7)


def kl(one: Tensor, other: Tensor) -> Tensor:
    """KL(one‖other) of the rows of two tables of logits."""
    return (one.softmax(-1) * (one.log_softmax(-1) - other.log_softmax(-1))).sum(-1)


def at_prefixes(world: Tabular, values: Tensor, policy: Tensor) -> Tensor:
    """Exact gradient of values of the prefixes weighted by the chance, held fixed, that a policy comes by."""
    return world.exact((world.prefix_mass(policy).detach() * values).sum())


def expected_reward(world: Tabular) -> Tensor:
    """Gradient of −E[r]."""
    return world.exact(-(world.logprobs(world.student).exp() * world.rewards).sum())


def for_reward(world: Tabular, sampled_from: Tensor | None = None, **changes) -> TokenBatch:
    """All answers under the reward's term alone, with the reward as advantage."""
    batch = world.batch(sampled_from)
    weights = {"reward_weights": batch.divergence_weights, "divergence_weights": 0 * batch.divergence_weights}
    return replace(batch, **{**weights, "advantages": world.of_answers(world.rewards), **changes})


def expected_with_groups(kind: str, vocabulary: int, size: int) -> tuple[Tensor, Tensor]:
    """Expected gradient over all groups of ``size`` answers of one token, and the exact one."""
    world = Tabular(vocabulary, length=1)
    drawn = torch.tensor(list(itertools.product(range(vocabulary), repeat=size)))
    chances = world.logprobs(world.student).detach().exp()[drawn].prod(1) / size
    # `batch` takes its mean over all rows it is given: one group at a time.
    one_group = torch.zeros(size, dtype=torch.int64)
    values = torch.stack([advantages(world.rewards[row], one_group, AdvantageConfig(kind)) for row in drawn])  # pyright: ignore
    by_answer = torch.zeros(vocabulary, dtype=torch.float64).index_add(0, drawn.flatten(), (chances[:, None] * values).flatten())
    batch = for_reward(world, reward_weights=torch.ones(vocabulary), advantages=by_answer)
    return world.gradient(fused_objective, batch, ObjectiveConfig(alpha=0)), expected_reward(world)


@pytest.mark.parametrize(
    ("kind", "size", "factor"), [("rloo", 2, 1), ("rloo", 3, 1), ("dr_grpo", 2, 1 / 2), ("dr_grpo", 3, 2 / 3), ("batch", 3, 2 / 3)]
)
def test_baselines_are_unbiased_up_to_the_share_of_a_rows_own_reward(kind, size, factor):
    """A mean of n rewards contains the row's own, which costs 1/n of the gradient; leaving it out costs nothing."""
    ours, exact = expected_with_groups(kind, 4, size)
    assert_same(ours, factor * exact)


def test_dividing_by_the_groups_deviation_changes_the_direction():
    ours, exact = expected_with_groups("grpo", 4, 2)
    assert 0 < torch.cosine_similarity(ours.flatten(), exact.flatten(), dim=0) < 0.999


@pytest.mark.parametrize("kind", ["truncate", "mask"])
@OBJECTIVES
def test_the_samplers_correction_is_unbiased_only_while_no_weight_is_cut(world, objective, kind):
    sampler = 0.7 * world.student.detach() + 0.3 * world.other

    def corrected(low: float, high: float) -> Tensor:
        config = ObjectiveConfig(alpha=0, surrogate=SurrogateConfig(correction=CorrectionConfig(kind, "sequence", low, high)))
        return world.gradient(objective, for_reward(world, sampler, sampler_logprobs=world.token_logprobs(sampler)), config)

    assert_same(corrected(0.0, 1e6), expected_reward(world))
    assert (corrected(0.9, 1.1) - expected_reward(world)).norm() > 0.01


@OBJECTIVES
def test_without_a_correction_another_sampler_biases_the_gradient(world, objective):
    sampler = 0.7 * world.student.detach() + 0.3 * world.other
    batch = for_reward(world, sampler, sampler_logprobs=world.token_logprobs(sampler))
    assert (world.gradient(objective, batch, ObjectiveConfig(alpha=0)) - expected_reward(world)).norm() > 0.01


@OBJECTIVES
@pytest.mark.parametrize("ratio", ["token", "sequence", "none"])
def test_only_ratios_follow_the_policys_own_reward_after_it_has_moved(objective, ratio):
    """On answers of one token from an older policy; without a ratio the gradient is another."""
    world = Tabular(vocabulary=4, length=1)
    batch = for_reward(world, world.other, old_logprobs=world.token_logprobs(world.other))
    config = ObjectiveConfig(alpha=0, surrogate=SurrogateConfig(ratio=ratio, clip_low=None, clip_high=None))
    found, exact = world.gradient(objective, batch, config), expected_reward(world)
    assert torch.allclose(found, exact, rtol=1e-6, atol=1e-7) == (ratio != "none")


def test_the_refused_bare_truncation_drains_the_kept_tokens(world):
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
def test_the_refused_names_of_estimators_are_not_what_they_follow(world, estimator, forward):
    """k2 has not the forward KL's gradient, k3 not the reverse one's."""
    config = ObjectiveConfig(alpha=1, divergence=DivergenceConfig(estimator=estimator))
    claimed = kl(world.teacher, world.student) if forward else kl(world.student, world.teacher)
    difference = world.gradient(unified_objective, world.batch(), config) - at_prefixes(world, claimed, world.student)
    assert difference.norm() > 0.05


@pytest.mark.parametrize(
    ("divergence", "unbiased"),
    [
        (DivergenceConfig("reverse_kl"), True),
        (DivergenceConfig("reverse_kl", estimator="k2"), False),
        (DivergenceConfig("reverse_kl", estimator="k1", use="advantage"), False),
    ],
    ids=["full", "k2", "k1"],
)
@OBJECTIVES
def test_the_refused_estimators_on_dataset_rows_are_biased_and_the_full_divergence_is_not(world, objective, divergence, unbiased):
    """Answers of another policy: the reverse KL at its prefixes."""
    found = world.gradient(objective, world.batch(sampled_from=world.other), ObjectiveConfig(alpha=1, divergence=divergence))
    exact = at_prefixes(world, kl(world.student, world.teacher), world.other)
    assert ((found - exact).norm() < 1e-6) == unbiased
    assert unbiased or (found - exact).norm() > 0.05


@OBJECTIVES
def test_the_refused_temperature_leaves_k2_without_a_zero_at_agreement(world, objective):
    """The student's tokens are drawn at temperature 1: a softened teacher is another distribution than the softened student's."""
    batch = replace(world.batch(), teacher_hidden=world.student.detach()[world.rows])
    softened = DivergenceConfig("reverse_kl", estimator="k2", temperature=2.0)
    assert world.gradient(objective, batch, ObjectiveConfig(alpha=1, divergence=softened)).norm() > 0.05
