"""Importance ratios, clipping and the sampler's correction, against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from token_batches import logits_batch

from gkd_rl.config.objective import CorrectionConfig, DivergenceConfig, ObjectiveConfig, SurrogateConfig
from gkd_rl.objective import unified_objective
from gkd_rl.objective.sampled import discounted_sum, k2, k3, later_log_ratios
from gkd_rl.objective.surrogate import clipped_surrogate, sampler_weights
from gkd_rl.types import GlobalCounts

COUNTS = GlobalCounts(1, 1, 1)


def test_the_surrogate_is_clipped_only_where_clipping_lowers_it():
    ratio = torch.tensor([0.5, 0.5, 1.0, 2.0, 2.0], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])
    values = clipped_surrogate(ratio, advantages, SurrogateConfig(clip_low=0.2, clip_high=0.3))
    assert values.tolist() == pytest.approx([0.5, -0.8, 1.0, 1.3, -2.0])
    (slope,) = torch.autograd.grad(values.sum(), ratio)
    assert slope.tolist() == pytest.approx([1, 0, 1, 0, -1])


def test_no_bound_clips_nothing():
    ratio, advantages = torch.tensor([0.01, 50.0]), torch.tensor([-1.0, 1.0])
    unbounded = SurrogateConfig(clip_low=None, clip_high=None)
    assert clipped_surrogate(ratio, advantages, unbounded).tolist() == pytest.approx([-0.01, 50])


def moved_batch(ratio: list[float], advantages: list[float], sequences: list[int]):
    """Tokens whose present log-probability is log 0.5 and whose importance ratios are as given."""
    student = torch.zeros(len(ratio), 2, dtype=torch.float64, requires_grad=True)
    old = torch.tensor([math.log(0.5 / r) for r in ratio], dtype=torch.float64)
    return logits_batch(
        student,
        torch.zeros(len(ratio), dtype=torch.int64),
        reward_weights=torch.ones(len(ratio)),
        divergence_weights=torch.zeros(len(ratio)),
        advantages=torch.tensor(advantages, dtype=torch.float64),
        old_logprobs=old,
        sampler_logprobs=old,
        sequence_index=torch.tensor(sequences),
    )


def loss_and_slopes(batch, **surrogate) -> tuple[float, list[float]]:
    """The loss and its derivatives in the log-probability of each token: with p = ½, ∂logp/∂z = (½, −½)."""
    config = ObjectiveConfig(alpha=0, surrogate=SurrogateConfig(**surrogate))
    loss = unified_objective(batch, config, COUNTS).loss
    (gradient,) = torch.autograd.grad(loss, batch.student_hidden)
    return loss.item(), (2 * gradient[:, 0]).tolist()


def test_token_ratios_weigh_each_tokens_gradient():
    loss, slopes = loss_and_slopes(moved_batch([0.9, 2.0, 0.5], [2.0, 1.0, -1.0], [0, 0, 1]), clip_low=0.2, clip_high=0.3)
    assert loss == pytest.approx(-(1.8 + 1.3 - 0.8))
    assert slopes == pytest.approx([-1.8, 0, 0])


def test_sequence_ratios_are_geometric_means_over_the_sequence():
    batch = moved_batch([0.8, 1.25 * 1.21, 1.1], [2.0, 2.0, -1.0], [0, 0, 1])
    loss, slopes = loss_and_slopes(batch, ratio="sequence", clip_low=0.2, clip_high=0.2)
    assert loss == pytest.approx(-(2 * 2 * 1.1 - 1.1))
    assert slopes == pytest.approx([-2.2, -2.2, 1.1])
    loss, slopes = loss_and_slopes(batch, ratio="sequence", clip_low=0.2, clip_high=0.05)
    assert loss == pytest.approx(-(2 * 2 * 1.05 - 1.1))
    assert slopes == pytest.approx([0, 0, 1.1])


def test_without_a_ratio_the_gradient_is_reinforces():
    loss, slopes = loss_and_slopes(moved_batch([0.1, 9.0], [2.0, -3.0], [0, 0]), ratio="none")
    assert slopes == pytest.approx([-2, 3])
    assert loss == pytest.approx(1)


def test_the_teacher_in_the_ratio_moves_the_anchor():
    batch = moved_batch([0.8, 1.2], [1.0, 1.0], [0, 1])
    teacher = torch.tensor([[0.25, 0.75], [0.4, 0.6]], dtype=torch.float64).log()
    batch = logits_batch(
        batch.student_hidden,
        batch.token_ids,
        teacher,
        **{name: getattr(batch, name) for name in ("reward_weights", "divergence_weights", "advantages", "old_logprobs", "sequence_index")},
    )
    # ρ = ½ / (pOld^½ · pT^½)
    expected = [0.5 / math.sqrt(0.5 / 0.8 * 0.25), 0.5 / math.sqrt(0.5 / 1.2 * 0.4)]
    _, slopes = loss_and_slopes(batch, teacher_in_ratio=0.5, clip_low=None, clip_high=None)
    assert slopes == pytest.approx([-r for r in expected])


def test_sampler_weights_are_truncated_or_masked_per_token_or_sequence():
    policy, index = torch.zeros(4), torch.tensor([0, 0, 1, 1])
    sampler = -torch.tensor([3.0, 0.5, 1.2, 0.2]).log()  # weights 3, ½, 1.2, 0.2

    def of(kind: str, level: str) -> list[float]:
        return sampler_weights(policy, sampler, index, CorrectionConfig(kind=kind, level=level, low=0.4, high=2.0)).tolist()

    assert of("none", "token") == [1, 1, 1, 1]
    assert of("truncate", "token") == pytest.approx([2, 0.5, 1.2, 0.2])
    assert of("mask", "token") == pytest.approx([0, 0.5, 1.2, 0])
    assert of("truncate", "sequence") == pytest.approx([1.5, 1.5, 0.24, 0.24])
    assert of("mask", "sequence") == pytest.approx([1.5, 1.5, 0, 0])


def test_the_correction_multiplies_the_advantage():
    batch = moved_batch([1.0, 1.0], [1.0, 1.0], [0, 1])
    batch = logits_batch(
        batch.student_hidden,
        batch.token_ids,
        reward_weights=batch.reward_weights,
        divergence_weights=torch.zeros(2),
        advantages=batch.advantages,
        sampler_logprobs=batch.old_logprobs - torch.tensor([5.0, 0.5], dtype=torch.float64).log(),
    )
    _, slopes = loss_and_slopes(batch, correction=CorrectionConfig(kind="truncate", high=3.0))
    assert slopes == pytest.approx([-3, -0.5])


def test_sampled_estimates_by_hand():
    log_ratio = torch.tensor([0.0, math.log(2), -math.log(2)])
    assert k2(log_ratio).tolist() == pytest.approx([0, 0.240227, 0.240227], abs=1e-6)
    assert k3(log_ratio).tolist() == pytest.approx([0, 1 - math.log(2), -0.5 + math.log(2)])


@pytest.mark.parametrize(
    ("use", "discount", "average", "expected"),
    [
        ("advantage", 1.0, False, [7, 6, 4, 24, 16]),
        ("advantage", 1.0, True, [7 / 3, 3, 4, 12, 16]),
        ("both", 1.0, False, [6, 4, 0, 16, 0]),
        ("both", 1.0, True, [3, 4, 0, 16, 0]),
        ("both", 0.5, False, [2, 2, 0, 8, 0]),
        ("both", 0.5, True, [8 / 3, 4, 0, 16, 0]),
    ],
)
def test_later_log_ratios_are_summed_or_averaged_with_or_without_the_tokens_own(use, discount, average, expected):
    ratios, index = torch.tensor([1.0, 2, 4, 8, 16]), torch.tensor([0, 0, 0, 1, 1])
    config = DivergenceConfig("reverse_kl", use=use, discount=discount, average=average)
    torch.testing.assert_close(later_log_ratios(ratios, index, config), torch.tensor(expected, dtype=torch.float32))
    assert later_log_ratios(torch.zeros(0), torch.zeros(0, dtype=torch.int64), config).tolist() == []


def test_discounted_sums_stay_within_their_sequence():
    values, index = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), torch.tensor([0, 0, 0, 1, 1])
    assert discounted_sum(values, index, 0.5).tolist() == [3, 4, 4, 16, 16]
    assert discounted_sum(values, index, 1.0).tolist() == [7, 6, 4, 24, 16]
    assert discounted_sum(values, index, 0.0).tolist() == values.tolist()
    assert discounted_sum(torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5).tolist() == []


def test_one_surrogate_carries_both_advantages():
    """Additive k1 (KDRL): Â + w·R is clipped as one, although each part alone would be clipped differently."""
    student = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.5 * math.e**-3, 1 - 0.5 * math.e**-3]], dtype=torch.float64).log()  # R = −3
    config = ObjectiveConfig(
        divergence=DivergenceConfig(kind="reverse_kl", estimator="k1", use="advantage"),
        surrogate=SurrogateConfig(clip_low=0.2, clip_high=0.2),
    )
    old = torch.full((1,), math.log(0.25), dtype=torch.float64)  # ρ = 2

    def slope(weight: float) -> float:
        batch = logits_batch(
            student,
            torch.zeros(1, dtype=torch.int64),
            teacher,
            reward_weights=torch.ones(1),
            advantages=torch.ones(1),
            divergence_weights=torch.full((1,), weight),
            old_logprobs=old,
            sampler_logprobs=old,
        )
        (gradient,) = torch.autograd.grad(unified_objective(batch, config, COUNTS).loss, student)
        return 2 * gradient[0, 0].item()

    assert slope(0.1) == pytest.approx(0)  # 1 − 0.3 > 0 and ρ is above the bound: clipped
    assert slope(1.0) == pytest.approx(4)  # 1 − 3 = −2 < 0: not clipped, −ρ·(−2)
