"""The dense objective's gradient in hidden states, head weight and bias, by finite differences in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from token_batches import token_batch
from torch import Tensor

from gkd_rl.config.objective import CorrectionConfig, DivergenceConfig, GateConfig, ObjectiveConfig, SurrogateConfig
from gkd_rl.objective import unified_objective
from gkd_rl.objective.head import logits_of
from gkd_rl.types import GlobalCounts, TokenBatch

COUNTS = GlobalCounts(6.0, 5.0, 4.0)
KINDS = ("gjsd", "forward_kl", "reverse_kl", "skew_forward_kl", "skew_reverse_kl", "entropy_mixed", "total_variation")


def batch_of(ratios: list[float], **changes) -> TokenBatch:
    """Six tokens of two sequences whose importance ratios are as given; weights and advantages are those of the sequence."""
    doubles = {name: torch.full((6,), value, dtype=torch.float64) for name, value in (("reward_weights", 0.5), ("divergence_weights", 0.7))}
    batch = token_batch(6, 5, dtype=torch.float64, **doubles)
    logprobs = logits_of(batch.student_hidden, batch.student_head).log_softmax(-1).gather(-1, batch.token_ids[:, None]).squeeze(-1)
    old = logprobs.detach() - torch.tensor(ratios, dtype=torch.float64).log()
    advantages = torch.tensor([1.3, -0.8], dtype=torch.float64)[batch.sequence_index]
    return replace(batch, old_logprobs=old, sampler_logprobs=old - 0.3, advantages=advantages, **changes)


def assert_gradient_is_right(batch: TokenBatch, config: ObjectiveConfig) -> None:
    head = batch.student_head

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        moved = replace(batch, student_hidden=hidden, student_head=replace(head, weight=weight, bias=bias))
        return unified_objective(moved, config, COUNTS).loss

    assert head.bias is not None
    leaves = (batch.student_hidden, head.weight, head.bias)
    assert torch.autograd.grad(loss(*leaves), batch.student_hidden)[0].norm() > 1e-3
    assert torch.autograd.gradcheck(loss, leaves, fast_mode=False)


ALL_CASES = [0.5, 1.1, 1.6, 0.4, 0.9, 2.0]
"""Below, within and above the bounds, under either sign of the advantage."""


@pytest.mark.parametrize("estimator", ["full", "bucket", "renormalise"])
@pytest.mark.parametrize("kind", KINDS)
def test_divergences(kind, estimator):
    top_k = {} if estimator == "full" else {"estimator": "top_k", "top_k": 3, "tail": estimator}
    divergence = DivergenceConfig(kind=kind, beta=0.3, skew=0.2, temperature=1.4, teacher_temperature=0.8, **top_k)
    assert_gradient_is_right(batch_of(ALL_CASES), ObjectiveConfig(alpha=1, reward_weight=0, divergence=divergence))


@pytest.mark.parametrize(
    "surrogate",
    [
        SurrogateConfig(),
        SurrogateConfig(clip_low=None, clip_high=None),
        SurrogateConfig("sequence", clip_low=0.1, clip_high=0.5),
        SurrogateConfig("sequence", clip_low=0.9, clip_high=0.01),
        SurrogateConfig(teacher_in_ratio=0.4, clip_low=None, clip_high=None),
        SurrogateConfig(correction=CorrectionConfig("truncate", high=1.2)),
        SurrogateConfig(entropy_weight=0.3),
        SurrogateConfig(reference_kl_weight=0.3),
    ],
    ids=["token", "unclipped", "sequence", "sequence clipped", "teacher in the ratio", "corrected", "entropy", "reference"],
)
def test_surrogates(surrogate):
    """A sequence's ratio passes its tokens' shares of one gradient: their sum is the derivative of the sequence's own surrogate."""
    assert_gradient_is_right(batch_of(ALL_CASES, divergence_weights=torch.zeros(6)), ObjectiveConfig(alpha=0, surrogate=surrogate))


@pytest.mark.parametrize(
    "divergence",
    [DivergenceConfig("reverse_kl", estimator="k2"), DivergenceConfig("forward_kl", estimator="k3"), DivergenceConfig(extrapolation=1.3)],
    ids=["k2", "k3", "extrapolated"],
)
@pytest.mark.parametrize("gate", ["none", "sign_agreement"])
def test_everything_at_once(divergence, gate):
    surrogate = SurrogateConfig(entropy_weight=0.2, reference_kl_weight=0.3, correction=CorrectionConfig("mask", low=0.5, high=2.0))
    imitated = torch.tensor([0.0, 0.0, 0.0, 0.4, 0.4, 0.4], dtype=torch.float64)
    config = ObjectiveConfig(divergence=divergence, surrogate=surrogate, gate=GateConfig(gate))
    assert_gradient_is_right(batch_of(ALL_CASES, cross_entropy_weights=imitated), config)


@pytest.mark.parametrize("discount", [0.0, 0.7, 1.0])
def test_k1_as_advantage_is_a_surrogate_whose_returns_are_held_fixed(discount):
    batch = batch_of(ALL_CASES, reward_weights=torch.zeros(6))
    divergence = DivergenceConfig("reverse_kl", estimator="k1", use="advantage", discount=discount)
    config = ObjectiveConfig(alpha=1, divergence=divergence, surrogate=SurrogateConfig(clip_low=None, clip_high=None))
    assert batch.teacher_hidden is not None and batch.teacher_head is not None

    def logprobs(hidden: Tensor, head) -> Tensor:
        return logits_of(hidden, head).log_softmax(-1).gather(-1, batch.token_ids[:, None]).squeeze(-1)

    own = logprobs(batch.student_hidden, batch.student_head)
    log_ratio = (logprobs(batch.teacher_hidden, batch.teacher_head) - own).detach()
    powers = discount ** torch.arange(3, dtype=torch.float64)
    returns = torch.stack([(powers[: 3 - n % 3] * log_ratio[n : 3 * (n // 3) + 3]).sum() for n in range(6)])
    expected = -(0.7 / COUNTS.divergence * (own - batch.old_logprobs).exp() * returns).sum()
    result = unified_objective(batch, config, COUNTS)
    torch.testing.assert_close(result.loss, expected, rtol=1e-6, atol=1e-8)
    found, wanted = (torch.autograd.grad(loss, batch.student_hidden)[0] for loss in (result.loss, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)
