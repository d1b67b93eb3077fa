"""How the terms add up: linear in their weights, pure at the ends of α, apart in their denominators, and blind to what is masked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from experiences import experience, in_double
from tiny_models import language_model
from token_batches import gradients, token_batch
from torch import Tensor

from gkd_rl.config.objective import DivergenceConfig, GateConfig, ObjectiveConfig, SurrogateConfig, TelemetryConfig
from gkd_rl.learner import Learner
from gkd_rl.objective import fused_objective, unified_objective
from gkd_rl.objective.schedule import TermWeights, weights_at
from gkd_rl.types import Experience, GlobalCounts, TokenBatch

OBJECTIVES = pytest.mark.parametrize("objective", [unified_objective, fused_objective])
COUNTS = GlobalCounts(7.0, 5.0, 3.0)
CONFIG = ObjectiveConfig(divergence=DivergenceConfig(beta=0.9), surrogate=SurrogateConfig(entropy_weight=0.1))


def weighted(reward: float, divergence: float, cross_entropy: float) -> TokenBatch:
    shape = torch.linspace(0.5, 1.5, 11, dtype=torch.float64)
    return token_batch(
        dtype=torch.float64,
        reward_weights=reward * shape,
        divergence_weights=divergence * shape.flip(0),
        cross_entropy_weights=cross_entropy * shape,
    )


def gradient(objective, weights: tuple[float, float, float], counts: GlobalCounts = COUNTS) -> Tensor:
    return torch.cat([found.flatten() for found in gradients(objective, weighted(*weights), CONFIG, counts)[1]])


@OBJECTIVES
def test_loss_and_gradient_are_linear_in_the_weights(objective):
    parts = [gradient(objective, weights) for weights in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert all(part.norm() > 0.01 for part in parts)
    joint = gradient(objective, (0.3, 0.7, 2.0))
    torch.testing.assert_close(joint, 0.3 * parts[0] + 0.7 * parts[1] + 2.0 * parts[2], rtol=1e-5, atol=1e-6)


@OBJECTIVES
def test_each_terms_gradient_is_divided_by_its_own_count(objective):
    parts = [gradient(objective, weights, GlobalCounts(1, 1, 1)) for weights in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    joint = gradient(objective, (1, 1, 1), GlobalCounts(2, 4, 8))
    torch.testing.assert_close(joint, parts[0] / 2 + parts[1] / 4 + parts[2] / 8, rtol=1e-5, atol=1e-6)


@OBJECTIVES
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_at_the_ends_of_alpha_the_other_term_is_not_there(objective, alpha):
    """What the absent term is made of may be anything."""
    weights = weights_at(ObjectiveConfig(alpha=alpha), 0, 10)
    batch = weighted(weights.reward, weights.divergence, 0.0)
    if alpha == 0:
        other = replace(batch, teacher_hidden=3 * batch.teacher_hidden.flip(0))
    else:
        old = batch.old_logprobs * 2
        other = replace(batch, advantages=-batch.advantages, old_logprobs=old, sampler_logprobs=old - 1)
    for one, two in zip(gradients(objective, batch, CONFIG, COUNTS)[1], gradients(objective, other, CONFIG, COUNTS)[1], strict=True):
        assert one.norm() > 0.01
        torch.testing.assert_close(one, two)


@OBJECTIVES
def test_the_sign_gate_takes_out_exactly_the_tokens_that_disagree(objective):
    batch = weighted(1e-9, 1.0, 0.0)
    gated = replace(CONFIG, gate=GateConfig("sign_agreement"), surrogate=SurrogateConfig())
    plain = replace(gated, gate=GateConfig())
    (by_gate, *_), (by_all, *_) = (gradients(objective, batch, config, COUNTS)[1] for config in (gated, plain))
    kept = by_gate.norm(dim=-1) > 1e-6
    assert 0 < kept.sum() < 11
    torch.testing.assert_close(by_gate[kept], by_all[kept], rtol=1e-5, atol=1e-7)
    flipped = gradients(objective, replace(batch, advantages=-batch.advantages), gated, COUNTS)[1][0]
    assert torch.equal(flipped.norm(dim=-1) > 1e-6, ~kept)


@OBJECTIVES
def test_interference_is_that_of_the_terms_own_gradients(objective):
    config = replace(CONFIG, telemetry=TelemetryConfig(1), surrogate=SurrogateConfig(entropy_weight=0.1, reference_kl_weight=0.2))
    sums = gradients(objective, weighted(0.4, 0.6, 0.0), config, COUNTS)[0].sums
    reward = gradients(objective, weighted(0.4, 0.0, 0.0), config, COUNTS)[1][0]
    divergence = gradients(objective, weighted(0.0, 0.6, 0.0), config, COUNTS)[1][0]
    dots = (reward * divergence).sum(-1)
    assert 0 < (dots < 0).sum() < 11
    expected = {
        "compared_tokens": 11.0,
        "reward_grad_sq": reward.square().sum().item(),
        "divergence_grad_sq": divergence.square().sum().item(),
        "grad_dot": dots.sum().item(),
        "opposed_tokens": (dots < 0).sum().item(),
    }
    assert {name: sums[name].item() for name in expected} == pytest.approx(expected, rel=1e-5)


def test_masked_positions_may_hold_nan_or_infinity_and_change_nothing():
    """Padding reaches neither loss, gradient nor figure, whatever stands in it."""
    student, teacher = language_model("llama", 12, seed=2), language_model("llama", 12, seed=3)
    student.module.double()
    clean = in_double(experience(student, teacher, prompts=3, per_prompt=2))
    padding = ~clean.rollouts.completion_mask
    assert padding.any() and clean.teacher is not None

    def update(e: Experience) -> tuple[Tensor, dict[str, float]]:
        config = ObjectiveConfig(surrogate=SurrogateConfig(ratio="sequence"), telemetry=TelemetryConfig(1))
        learner = Learner(student, config, TermWeights(0.5, 0.5, 0.0), GlobalCounts(5.0, 6.0, 1.0))
        student.module.zero_grad()
        learner.loss(e).backward()
        found = torch.cat([p.grad.flatten() for p in student.module.parameters() if p.grad is not None])
        return found, {name: value.item() for name, value in learner.sums.items()}

    expected, sums = update(clean)
    for poison in (torch.nan, torch.inf):
        rollouts = replace(
            clean.rollouts,
            logprobs=clean.rollouts.logprobs.masked_fill(padding, poison),
            sampler_logprobs=clean.rollouts.sampler_logprobs.masked_fill(padding, poison),
        )
        scores = replace(clean.teacher, hidden=clean.teacher.hidden.masked_fill(padding[..., None], poison))
        found, poisoned = update(replace(clean, rollouts=rollouts, teacher=scores))
        assert torch.equal(found, expected) and poisoned == sums
