"""The definition: its gradients by finite differences, its limits, and what must not matter to it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from token_batches import gradients, logits_batch, rows_of, token_batch
from torch import Tensor

from gkd_rl.config.objective import CorrectionConfig, DivergenceConfig, GateConfig, ObjectiveConfig, SurrogateConfig
from gkd_rl.objective import fused_objective, token_divergence, unified_objective
from gkd_rl.objective.head import logits_of
from gkd_rl.types import GlobalCounts, Head, TokenBatch

COUNTS = GlobalCounts(10.0, 7.0, 3.0)
OBJECTIVES = pytest.mark.parametrize("objective", [unified_objective, fused_objective])


def everything(**divergence) -> ObjectiveConfig:
    """All parts of the objective at once."""
    return ObjectiveConfig(
        divergence=DivergenceConfig(**divergence),
        surrogate=SurrogateConfig(entropy_weight=0.2, reference_kl_weight=0.3, correction=CorrectionConfig("truncate", high=1.1)),
    )


VARIANTS = {
    "gjsd": everything(kind="gjsd", beta=0.3, rescale=True),
    "forward": everything(kind="forward_kl", temperature=1.5),
    "reverse": everything(kind="reverse_kl", temperature=0.7, teacher_temperature=1.4),
    "skew forward": everything(kind="skew_forward_kl", skew=0.3),
    "skew reverse": everything(kind="skew_reverse_kl", skew=0.3, extrapolation=1.25),
    "entropy mixed": everything(kind="entropy_mixed"),
    "top-k bucket": everything(kind="reverse_kl", estimator="top_k", top_k=3, temperature=1.3),
    "top-k renormalised": everything(kind="gjsd", estimator="top_k", top_k=3, tail="renormalise", extrapolation=1.25),
    "k2": everything(kind="reverse_kl", estimator="k2"),
    "k3": everything(kind="forward_kl", estimator="k3"),
    "sign gate": replace(everything(), gate=GateConfig("sign_agreement")),
    "teacher in ratio": replace(everything(), surrogate=SurrogateConfig(teacher_in_ratio=0.4)),
    "one bound": replace(everything(), surrogate=SurrogateConfig(clip_low=None, clip_high=0.1)),
}
"""Configurations whose loss is a plain function of the parameters (no detached quantity moves with them)."""


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_of_the_whole_sum_equal_finite_differences(name):
    batch = token_batch(5, 6, dtype=torch.float64, cross_entropy_weights=torch.full((5,), 0.4, dtype=torch.float64))
    # Away from the kinks of clipping, which finite differences would step over.
    batch = replace(batch, old_logprobs=batch.old_logprobs * 0 - torch.tensor([1.0, 3.0, 0.5, 2.0, 4.0], dtype=torch.float64))

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        moved = replace(batch, student_hidden=hidden, student_head=replace(batch.student_head, weight=weight, bias=bias))
        return unified_objective(moved, VARIANTS[name], COUNTS).loss

    leaves = (batch.student_hidden, batch.student_head.weight, batch.student_head.bias)
    assert torch.autograd.gradcheck(loss, leaves)


@OBJECTIVES
def test_alpha_one_is_pure_distillation(objective):
    batch = token_batch(reward_weights=torch.zeros(11), divergence_weights=torch.ones(11))
    result, made = gradients(objective, batch, ObjectiveConfig(alpha=1), GlobalCounts(0, 11, 0))
    student, teacher = (
        logits_of(h, head) for h, head in ((batch.student_hidden, batch.student_head), (batch.teacher_hidden, batch.teacher_head))
    )
    plain = token_divergence(student, teacher, kind="gjsd", beta=0.5).mean()
    torch.testing.assert_close(result.loss, plain)
    torch.testing.assert_close(made[0], torch.autograd.grad(plain, batch.student_hidden)[0])


@OBJECTIVES
def test_alpha_zero_is_plain_policy_gradient_and_needs_no_teacher(objective):
    batch = token_batch(reward_weights=torch.ones(11), divergence_weights=torch.zeros(11), teacher_hidden=None, teacher_head=None)
    result, made = gradients(objective, batch, ObjectiveConfig(alpha=0), GlobalCounts(11, 0, 0))
    logprobs = logits_of(batch.student_hidden, batch.student_head).log_softmax(-1).gather(-1, batch.token_ids[:, None]).squeeze(-1)
    ratio = (logprobs - batch.old_logprobs).exp()
    plain = -torch.min(ratio * batch.advantages, ratio.clamp(0.8, 1.28) * batch.advantages).mean()
    torch.testing.assert_close(result.loss, plain)
    torch.testing.assert_close(made[0], torch.autograd.grad(plain, batch.student_hidden)[0])


@OBJECTIVES
def test_cross_entropy_is_that_of_torch(objective):
    student = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ids = torch.tensor([0, 1, 2, 3])
    batch = logits_batch(student, ids, divergence_weights=torch.zeros(4), cross_entropy_weights=torch.tensor([1.0, 1.0, 1.0, 0.0]))
    result, (made,) = gradients(objective, batch, ObjectiveConfig(cross_entropy_weight=1), GlobalCounts(0, 0, 3))
    plain = torch.nn.functional.cross_entropy(student[:3], ids[:3])
    torch.testing.assert_close(result.loss, plain)
    torch.testing.assert_close(made, torch.autograd.grad(plain, student)[0])


@OBJECTIVES
def test_each_term_has_its_own_denominator_and_a_count_of_zero_leaves_it_out(objective):
    batch = token_batch(cross_entropy_weights=torch.ones(11))
    config = ObjectiveConfig()

    def loss(*counts: float) -> float:
        return objective(batch, config, GlobalCounts(*counts)).loss.item()

    parts = [loss(1, 0, 0), loss(0, 1, 0), loss(0, 0, 1)]
    assert all(abs(part) > 0.1 for part in parts)
    assert loss(4, 5, 8) == pytest.approx(parts[0] / 4 + parts[1] / 5 + parts[2] / 8, rel=1e-5)
    assert loss(0, 0, 0) == 0


@OBJECTIVES
def test_what_does_not_apply_may_be_nan_and_changes_nothing(objective):
    off = torch.arange(11) < 3  # whole first sequence
    batch = token_batch(reward_weights=torch.where(off, 0.0, 0.5))
    nan = replace(batch, **{n: getattr(batch, n).masked_fill(off, torch.nan) for n in ("advantages", "old_logprobs", "sampler_logprobs")})
    config = everything()
    expected, made = gradients(objective, batch, config, COUNTS)
    result, got = gradients(objective, nan, config, COUNTS)
    torch.testing.assert_close(got, made)
    assert {name: value.item() for name, value in result.sums.items()} == {name: value.item() for name, value in expected.sums.items()}


@OBJECTIVES
def test_the_order_of_tokens_means_nothing(objective):
    batch = token_batch()
    order = torch.randperm(11, generator=torch.Generator().manual_seed(5))
    config = replace(everything(), surrogate=SurrogateConfig(ratio="sequence"))
    result, (by_hidden, *by_head) = gradients(objective, batch, config, COUNTS)
    shuffled, shuffled_gradients = gradients(objective, rows_of(batch, order), config, COUNTS)
    torch.testing.assert_close(shuffled.loss, result.loss)
    torch.testing.assert_close(shuffled_gradients, [by_hidden[order], *by_head], rtol=1e-5, atol=1e-6)


@OBJECTIVES
def test_cutting_the_batch_between_sequences_changes_nothing(objective):
    """Losses, gradients and sums of the parts add up to those of the whole, since nothing but global counts divides."""
    batch, config = token_batch(), replace(everything(), surrogate=SurrogateConfig(ratio="sequence"))
    whole, made = gradients(objective, batch, config, COUNTS)
    parts = [gradients(objective, rows_of(batch, torch.arange(*ends)), config, COUNTS) for ends in ((0, 3), (3, 9), (9, 11), (11, 11))]
    torch.testing.assert_close(sum(part.loss for part, _ in parts), whole.loss)
    by_hidden, *by_head = zip(*(part for _, part in parts), strict=True)
    torch.testing.assert_close([torch.cat(by_hidden), *(sum(head) for head in by_head)], made, rtol=1e-5, atol=1e-6)
    additive = [name for name in whole.sums if name not in _COMPARED]  # which tokens are compared depends on the cut
    for name in additive:
        torch.testing.assert_close(sum(part.sums[name] for part, _ in parts), whole.sums[name], rtol=1e-5, atol=1e-5)


_COMPARED = ("compared_tokens", "reward_grad_sq", "divergence_grad_sq", "grad_dot", "opposed_tokens")


@OBJECTIVES
def test_an_empty_micro_batch_keeps_its_graph_alive(objective):
    batch = rows_of(token_batch(), torch.arange(0))
    hidden = torch.zeros(0, 4, requires_grad=True)
    batch = replace(batch, student_hidden=hidden)
    result, made = gradients(objective, batch, everything(), COUNTS)
    assert result.loss.item() == 0
    assert made[0].shape == (0, 4) and not made[1].any() and not made[2].any()


@OBJECTIVES
@pytest.mark.parametrize("name", list(VARIANTS))
def test_changing_the_teacher_changes_the_gradient(objective, name):
    batch = token_batch(reward_weights=torch.ones(11))
    other = replace(batch, teacher_hidden=batch.teacher_hidden.flip(0))
    _, made = gradients(objective, batch, VARIANTS[name], COUNTS)
    _, changed = gradients(objective, other, VARIANTS[name], COUNTS)
    assert (made[0] - changed[0]).abs().max() > 1e-3


@OBJECTIVES
def test_nothing_in_the_batch_changes(objective):
    batch = token_batch()
    before = {name: value.clone() for name, value in vars(batch).items() if isinstance(value, Tensor)}
    heads = [x.clone() for head in (batch.student_head, batch.teacher_head) for x in (head.weight,)]
    gradients(objective, batch, everything(), COUNTS)
    for name, value in before.items():
        assert torch.equal(getattr(batch, name), value), name
    assert torch.equal(batch.student_head.weight, heads[0]) and torch.equal(batch.teacher_head.weight, heads[1])


def test_the_heads_scale_and_cap_are_those_of_the_definition():
    hidden, weight, bias = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, -5.0]]), torch.tensor([1.0, 2.0])
    assert logits_of(hidden, Head(weight, bias, scale=0.5)).tolist() == [[6, -4]]
    capped = logits_of(hidden, Head(weight, bias, scale=0.5, soft_cap=2.0))
    torch.testing.assert_close(capped, 2 * torch.tanh(torch.tensor([[3.0, -2.0]])))


def test_teacher_gets_no_gradient():
    teacher = torch.randn(3, 4, requires_grad=True)
    batch: TokenBatch = logits_batch(torch.randn(3, 4, requires_grad=True), torch.zeros(3, dtype=torch.int64), teacher)
    unified_objective(batch, ObjectiveConfig(), GlobalCounts(1, 3, 1)).loss.backward()
    assert teacher.grad is None
