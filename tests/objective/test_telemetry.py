"""What is logged: sums that add up, and the figures made of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from token_batches import logits_batch, token_batch

from gkd_rl.config.objective import DivergenceConfig, ObjectiveConfig, SurrogateConfig, TelemetryConfig
from gkd_rl.objective import fused_objective, token_divergence, unified_objective
from gkd_rl.objective.head import logits_of
from gkd_rl.objective.telemetry import summarise
from gkd_rl.types import GlobalCounts

COUNTS = GlobalCounts(1, 1, 1)
OBJECTIVES = pytest.mark.parametrize("objective", [unified_objective, fused_objective])
EVERY_TOKEN = TelemetryConfig(interference_stride=1)


def two_tokens(**changes):
    """Students (½, ½) and (0.9, 0.1), teachers (0.2, 0.8) and (0.8, 0.2), both drawing token 0."""
    student = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log().requires_grad_()
    teacher = torch.tensor([[0.2, 0.8], [0.8, 0.2]]).log()
    return logits_batch(student, torch.tensor([0, 0]), teacher, reward_weights=torch.ones(2), **changes)


@OBJECTIVES
def test_sums_by_hand(objective):
    old = torch.tensor([0.25, 0.9]).log()  # ratios 2 and 1
    batch = two_tokens(advantages=torch.tensor([1.0, 1.0]), old_logprobs=old, sampler_logprobs=old)
    sums = objective(batch, ObjectiveConfig(divergence=DivergenceConfig("reverse_kl")), COUNTS).sums
    assert sums["tokens"] == 2
    assert sums["entropy"] == pytest.approx(0.693147 + 0.325083, abs=1e-5)
    assert sums["logprob"] == pytest.approx(torch.tensor([0.5, 0.9]).log().sum().item())
    assert sums["reverse_kl"] == pytest.approx(0.223144 + 0.036690, abs=1e-5)
    assert sums["forward_kl"] == pytest.approx(0.192745 + 0.044403, abs=1e-5)
    assert sums["divergence"] == pytest.approx(sums["reverse_kl"])
    assert sums["teacher_top1_agreement"] == 2  # of the student's two likeliest tokens, one is the teacher's
    assert sums["ratio"] == pytest.approx(3)
    assert (sums["clip_low"], sums["clip_high"]) == (0, 1)
    assert sums["reward_loss"] == pytest.approx(-2.28)
    assert sums["divergence_loss"] == pytest.approx(sums["divergence"])


@OBJECTIVES
def test_top_k_masses(objective):
    batch = two_tokens()
    sums = objective(batch, ObjectiveConfig(divergence=DivergenceConfig(estimator="top_k", top_k=1)), COUNTS).sums
    assert sums["student_top_k_mass"] == pytest.approx(0.5 + 0.9)
    assert sums["teacher_top_k_mass"] == pytest.approx(0.8 + 0.8)


@OBJECTIVES
def test_interference_compares_the_two_terms_gradients_at_the_hidden_states(objective):
    """Token 0: reward and teacher both want token 1's rise or fall; the signs of the advantages decide who opposes whom."""
    config = ObjectiveConfig(telemetry=EVERY_TOKEN, divergence=DivergenceConfig("forward_kl"))
    batch = two_tokens(advantages=torch.tensor([2.0, 1.0]))
    result = objective(batch, config, COUNTS)
    # Reward: −A·(e₀ − p); divergence: p − q.
    reward = torch.tensor([[-1.0, 1.0], [-0.1, 0.1]])
    divergence = torch.tensor([[0.3, -0.3], [0.1, -0.1]])
    assert result.sums["compared_tokens"] == 2
    assert result.sums["reward_grad_sq"] == pytest.approx(reward.square().sum().item(), rel=1e-5)
    assert result.sums["divergence_grad_sq"] == pytest.approx(divergence.square().sum().item(), rel=1e-5)
    assert result.sums["grad_dot"] == pytest.approx((reward * divergence).sum().item(), rel=1e-5)
    assert result.sums["opposed_tokens"] == 2
    figures = summarise(result.sums)
    assert figures["opposed_share"] == 1
    assert figures["grad_cosine"] == pytest.approx(-0.62 / (2.02 * 0.2) ** 0.5, rel=1e-4)
    assert figures["reward_grad_norm"] == pytest.approx((2.02 / 2) ** 0.5, rel=1e-4)
    agreeing = summarise(objective(two_tokens(advantages=torch.tensor([-2.0, -1.0])), config, COUNTS).sums)
    assert agreeing["opposed_share"] == 0 and agreeing["grad_cosine"] > 0.9


@OBJECTIVES
def test_only_tokens_on_which_both_terms_act_are_compared_and_only_every_so_many(objective):
    batch = token_batch(12, reward_weights=(torch.arange(12) < 8).float())
    config = ObjectiveConfig(telemetry=TelemetryConfig(interference_stride=3))
    assert objective(batch, config, COUNTS).sums["compared_tokens"] == 3  # 0, 3, 6 of 0, 3, 6, 9
    off = replace(config, telemetry=TelemetryConfig(interference_stride=0))
    assert "compared_tokens" not in objective(batch, off, COUNTS).sums


@OBJECTIVES
def test_the_kls_are_measured_at_the_divergences_temperatures(objective):
    batch = token_batch(6)
    sums = objective(batch, ObjectiveConfig(divergence=DivergenceConfig(temperature=2.0, teacher_temperature=0.5)), COUNTS).sums
    student, teacher = (
        logits_of(h, head) for h, head in ((batch.student_hidden, batch.student_head), (batch.teacher_hidden, batch.teacher_head))
    )
    expected = token_divergence(student, teacher, kind="forward_kl", temperature=2.0, teacher_temperature=0.5).sum()
    torch.testing.assert_close(sums["forward_kl"], expected.detach())


def test_reference_kl_is_logged_where_it_is_used():
    batch = token_batch(6)
    assert "reference_kl" not in fused_objective(batch, ObjectiveConfig(), COUNTS).sums
    sums = fused_objective(batch, ObjectiveConfig(surrogate=SurrogateConfig(reference_kl_weight=0.1)), COUNTS).sums
    assert sums["reference_kl"] > 0


def test_summarise_makes_means_over_the_right_tokens():
    figures = summarise(
        {
            "tokens": 10, "entropy": 20, "reward_loss": 0.5, "divergence_loss": 0.25, "cross_entropy_loss": 0.0,
            "reward_tokens": 4, "clip_high": 1, "ratio": 4.4, "teacher_tokens": 5, "reverse_kl": 10,
            "cross_entropy_tokens": 0, "cross_entropy": 0,
        }
    )  # fmt: skip
    assert figures == {
        "reward_loss": 0.5, "divergence_loss": 0.25, "cross_entropy_loss": 0.0, "loss": 0.75, "tokens": 10,
        "entropy": 2, "clip_high": 0.25, "ratio": pytest.approx(1.1), "reverse_kl": 2,
    }  # fmt: skip


def test_summarise_of_nothing_is_empty_of_means():
    assert summarise({"tokens": torch.tensor(0.0), "entropy": torch.tensor(0.0)}) == {"loss": 0, "tokens": 0}


def test_gradients_that_vanish_have_no_cosine():
    sums = {"compared_tokens": 3, "reward_grad_sq": 0, "divergence_grad_sq": 2, "grad_dot": 0, "opposed_tokens": 0}
    assert summarise(sums)["grad_cosine"] == 0
