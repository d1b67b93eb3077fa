"""The fused objective is the dense one over a grid: every divergence, gate, surrogate and head, on tokens of which some have one
term, some another and some several.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from token_batches import gradients, token_batch
from torch import Tensor

from gkd_rl.config.objective import CorrectionConfig, DivergenceConfig, GateConfig, ObjectiveConfig, SurrogateConfig, TelemetryConfig
from gkd_rl.objective import fused_objective, unified_objective
from gkd_rl.types import GlobalCounts, ObjectiveResult, TokenBatch

COUNTS = GlobalCounts(7.0, 5.0, 3.0)

DIVERGENCES = {
    "gjsd": DivergenceConfig(beta=0.3),
    "gjsd rescaled": DivergenceConfig(beta=0.9, rescale=True),
    "gjsd at 0": DivergenceConfig(beta=0.0, rescale=True),
    "gjsd at 1": DivergenceConfig(beta=1.0),
    "forward_kl": DivergenceConfig("forward_kl"),
    "reverse_kl": DivergenceConfig("reverse_kl"),
    "skew_forward_kl": DivergenceConfig("skew_forward_kl", skew=0.2),
    "skew_reverse_kl": DivergenceConfig("skew_reverse_kl", skew=0.2),
    "total_variation": DivergenceConfig("total_variation"),
    "entropy_mixed": DivergenceConfig("entropy_mixed"),
    "temperatures": DivergenceConfig(temperature=1.7, teacher_temperature=0.6),
    "temperature of forward_kl": DivergenceConfig("forward_kl", temperature=0.7),
    "bucket": DivergenceConfig(beta=0.3, estimator="top_k", top_k=3, temperature=1.3),
    "bucket beside one": DivergenceConfig("reverse_kl", estimator="top_k", top_k=1),
    "renormalised": DivergenceConfig("forward_kl", estimator="top_k", top_k=3, tail="renormalise", temperature=0.7),
    "renormalised entropy_mixed": DivergenceConfig("entropy_mixed", estimator="top_k", top_k=5, tail="renormalise"),
    "top-k beyond the vocabulary": DivergenceConfig(estimator="top_k", top_k=64),
    "k1": DivergenceConfig("reverse_kl", estimator="k1", use="advantage"),
    "k1 discounted": DivergenceConfig("reverse_kl", estimator="k1", use="advantage", discount=0.8),
    "k1 summed": DivergenceConfig("reverse_kl", estimator="k1", use="advantage", discount=1.0, teacher_temperature=2.0),
    "k1 averaged": DivergenceConfig("reverse_kl", estimator="k1", use="advantage", discount=0.8, average=True),
    "step and later": DivergenceConfig("reverse_kl", use="both", discount=0.8),
    "step and later, averaged": DivergenceConfig("reverse_kl", use="both", discount=1.0, average=True, teacher_temperature=0.7),
    "k2": DivergenceConfig("reverse_kl", estimator="k2"),
    "k3": DivergenceConfig("forward_kl", estimator="k3"),
    "extrapolated": DivergenceConfig("reverse_kl", extrapolation=1.25),
    "extrapolated gjsd at temperatures": DivergenceConfig(extrapolation=1.4, temperature=1.5, teacher_temperature=0.8),
    "extrapolated top-k": DivergenceConfig("forward_kl", extrapolation=0.7, estimator="top_k", top_k=3),
    "extrapolated k2": DivergenceConfig("reverse_kl", extrapolation=1.25, estimator="k2"),
}

SURROGATES = {
    "token": SurrogateConfig(),
    "sequence": SurrogateConfig(ratio="sequence", clip_low=0.5, clip_high=0.5),
    "none": SurrogateConfig(ratio="none"),
    "unclipped": SurrogateConfig(clip_low=None, clip_high=None),
    "one side": SurrogateConfig(clip_low=None, clip_high=0.1),
    "teacher in the ratio": SurrogateConfig(teacher_in_ratio=0.3),
    "teacher in the sequence's ratio": SurrogateConfig(ratio="sequence", teacher_in_ratio=0.3, clip_high=2.0),
    "truncated": SurrogateConfig(correction=CorrectionConfig("truncate", high=1.1)),
    "masked sequences": SurrogateConfig(correction=CorrectionConfig("mask", "sequence", low=0.8, high=1.2)),
    "entropy": SurrogateConfig(entropy_weight=0.3),
    "reference": SurrogateConfig(reference_kl_weight=0.4),
    "all": SurrogateConfig(entropy_weight=0.3, reference_kl_weight=0.4, correction=CorrectionConfig("truncate", "sequence", high=1.5)),
}

HEADS = {
    "plain": {"scale": 1.0, "soft_cap": None, "bias": None},
    "bias": {"scale": 1.0, "soft_cap": None},
    "scale": {"scale": 0.6, "soft_cap": None},
    "soft cap": {"scale": 1.0, "bias": None},
    "all": {},
}


def mixed_batch(tokens: int = 11, **changes) -> TokenBatch:
    """A batch in which some tokens have one term, some another, some several."""
    row = torch.arange(tokens)
    weights = {
        "reward_weights": torch.where(row % 4 == 3, 0.0, 0.5 + 0.1 * row),
        "divergence_weights": torch.where(row % 5 == 4, 0.0, 1.3 - 0.1 * row),
        "cross_entropy_weights": torch.where(row % 3 == 2, 0.9, 0.0),
    }
    return token_batch(tokens, **{**weights, **changes})


def config_of(divergence: str = "gjsd", surrogate: str = "token", gate: str = "none") -> ObjectiveConfig:
    return ObjectiveConfig(
        divergence=DIVERGENCES[divergence], surrogate=SURROGATES[surrogate], gate=GateConfig(gate), telemetry=TelemetryConfig(2)
    )


def assert_same(ours: tuple[ObjectiveResult, list[Tensor]], theirs: tuple[ObjectiveResult, list[Tensor]], tolerance: float = 1e-5) -> None:
    """Equal losses, gradients, sums and per-token values."""
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(ours[1], theirs[1], **close)
    for name in ("loss", "token_logprobs", "token_divergence", "token_entropy"):
        torch.testing.assert_close(getattr(ours[0], name), getattr(theirs[0], name), **close, msg=lambda said, name=name: f"{name}: {said}")
    assert ours[0].sums.keys() == theirs[0].sums.keys()
    for name, value in theirs[0].sums.items():
        torch.testing.assert_close(ours[0].sums[name], value, **close, msg=lambda said, name=name: f"{name}: {said}")


def assert_fused_is_unified(batch: TokenBatch, config: ObjectiveConfig, **options) -> list[Tensor]:
    ours = gradients(fused_objective, batch, config, COUNTS, **options)
    assert_same(ours, gradients(unified_objective, batch, config, COUNTS))
    return ours[1]


@pytest.mark.parametrize("gate", ["none", "sign_agreement"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_every_divergence_and_gate(divergence, gate):
    found = assert_fused_is_unified(mixed_batch(), config_of(divergence, "all", gate), chunk_tokens=4)
    assert all(gradient.abs().max() > 1e-3 for gradient in found)


@pytest.mark.parametrize("divergence", ["gjsd", "k1 discounted"])
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_every_surrogate(surrogate, divergence):
    assert_fused_is_unified(mixed_batch(), config_of(divergence, surrogate), chunk_tokens=4)


@pytest.mark.parametrize("divergence", ["gjsd", "bucket", "temperatures", "k2"])
@pytest.mark.parametrize("head", HEADS)
def test_every_head(head, divergence):
    batch = mixed_batch()
    batch = replace(batch, student_head=replace(batch.student_head, **HEADS[head]))
    assert_fused_is_unified(batch, config_of(divergence, "all"), chunk_tokens=4)


@pytest.mark.parametrize("tokens", [0, 1, 2, 5])
@pytest.mark.parametrize("divergence", ["gjsd", "bucket", "k1 discounted"])
def test_few_tokens_and_none(tokens, divergence):
    found = assert_fused_is_unified(mixed_batch(tokens), config_of(divergence, "all"), chunk_tokens=2)
    assert bool(tokens) == any(gradient.any() for gradient in found)


@pytest.mark.parametrize("surrogate", ["all", "sequence"])
@pytest.mark.parametrize("divergence", ["gjsd", "bucket", "k1 discounted", "extrapolated"])
def test_the_chunk_size_changes_nothing(divergence, surrogate):
    batch, config = mixed_batch(), config_of(divergence, surrogate)
    whole = gradients(fused_objective, batch, config, COUNTS, chunk_tokens=11)
    for size in (1, 3, 10, 64, None):
        assert_same(gradients(fused_objective, batch, config, COUNTS, chunk_tokens=size), whole, 1e-6)


@pytest.mark.parametrize("objective", [unified_objective, fused_objective])
def test_without_gradients_the_values_are_the_same(objective):
    batch, config = mixed_batch(), config_of("gjsd", "all")
    with torch.no_grad():
        plain = objective(batch, config, COUNTS)
    whole = objective(batch, config, COUNTS)
    assert not plain.loss.requires_grad
    torch.testing.assert_close(plain.loss, whole.loss.detach())
    torch.testing.assert_close(plain.token_divergence, whole.token_divergence)


def test_a_frozen_body_leaves_the_heads_gradient():
    batch = mixed_batch()
    found = assert_fused_is_unified(
        replace(batch, student_hidden=batch.student_hidden.detach()), replace(config_of("gjsd", "all"), telemetry=TelemetryConfig(0))
    )
    assert len(found) == 2
