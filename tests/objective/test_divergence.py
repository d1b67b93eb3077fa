"""Divergences against numbers computed by hand, their limits, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gkd_rl.config.objective import DivergenceConfig
from gkd_rl.errors import UserError
from gkd_rl.objective import token_divergence
from gkd_rl.objective.divergence import pointwise_of
from gkd_rl.objective.top_k import restrict

KINDS = ("gjsd", "forward_kl", "reverse_kl", "skew_forward_kl", "skew_reverse_kl", "entropy_mixed", "total_variation")
SMOOTH = KINDS[:-1]
"""The total variation has a corner where teacher and student agree, and no part of it is negative."""

P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
"""student"""
Q = torch.tensor([0.1, 0.1, 0.8], dtype=torch.float64)
"""teacher"""


def kl(one: Tensor, other: Tensor) -> float:
    return sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(one, other, strict=True))


def of(student: Tensor = P, teacher: Tensor = Q, **options) -> float:
    # A constant is added to the logits: only their differences count.
    return token_divergence(student.log() + 3, teacher.log() - 1, **options).item()


def test_values_computed_by_hand():
    # 0.1 ln 0.2 + 0.1 ln ⅓ + 0.8 ln 4 and 0.5 ln 5 + 0.3 ln 3 + 0.2 ln ¼
    assert of(kind="forward_kl") == pytest.approx(0.8382305, abs=1e-6)
    assert of(kind="reverse_kl") == pytest.approx(0.8570438, abs=1e-6)
    m = 0.3 * Q + 0.7 * P
    assert of(kind="gjsd", beta=0.3) == pytest.approx(0.3 * kl(Q, m) + 0.7 * kl(P, m))
    assert of(kind="gjsd", beta=0.3, rescale=True) == pytest.approx((0.3 * kl(Q, m) + 0.7 * kl(P, m)) / 0.21)
    assert of(kind="skew_forward_kl", skew=0.2) == pytest.approx(kl(Q, 0.2 * Q + 0.8 * P))
    assert of(kind="skew_reverse_kl", skew=0.2) == pytest.approx(kl(P, 0.2 * P + 0.8 * Q))
    assert of(kind="total_variation") == pytest.approx(0.6)
    doubt = -sum(float(q) * math.log(float(q)) for q in Q) / math.log(3)
    assert of(kind="entropy_mixed") == pytest.approx(doubt * kl(Q, P) + (1 - doubt) * kl(P, Q))


@pytest.mark.parametrize("kind", SMOOTH)
def test_value_and_gradient_vanish_only_where_teacher_and_student_agree(kind):
    student = P.log().requires_grad_()
    same = token_divergence(student, P.log() + 2, kind=kind)
    (gradient,) = torch.autograd.grad(same, student)
    assert same.item() == pytest.approx(0, abs=1e-12)
    assert gradient.abs().max() < 1e-12
    assert of(kind=kind) > 0.01


def test_the_end_points_of_beta_are_the_two_kls():
    assert of(kind="gjsd", beta=0.0) == of(kind="forward_kl")
    assert of(kind="gjsd", beta=1.0) == of(kind="reverse_kl")


def test_jsd_over_beta_tends_to_forward_kl_and_over_one_minus_beta_to_reverse_kl():
    small = 1e-6
    assert of(kind="gjsd", beta=small) / small == pytest.approx(kl(Q, P), rel=1e-4)
    assert of(kind="gjsd", beta=1 - small) / small == pytest.approx(kl(P, Q), rel=1e-4)
    assert of(kind="gjsd", beta=small, rescale=True) == pytest.approx(kl(Q, P), rel=1e-4)
    assert of(kind="gjsd", beta=1 - small, rescale=True) == pytest.approx(kl(P, Q), rel=1e-4)


def test_skew_at_zero_is_the_plain_kl():
    assert of(kind="skew_forward_kl", skew=0.0) == pytest.approx(kl(Q, P))
    assert of(kind="skew_reverse_kl", skew=0.0) == pytest.approx(kl(P, Q))


def test_temperature_divides_both_models_logits_unless_the_teachers_is_set_apart():
    p2, q2, q3 = (P.log() / 2).softmax(-1), (Q.log() / 2).softmax(-1), (Q.log() / 3).softmax(-1)
    assert of(kind="reverse_kl", temperature=2.0) == pytest.approx(kl(p2, q2))
    assert of(kind="reverse_kl", temperature=2.0, teacher_temperature=3.0) == pytest.approx(kl(p2, q3))


def test_top_k_with_a_tail_bucket_or_renormalised():
    # The teacher's two likeliest tokens are the third and (first of equals) one of the others.
    teacher = torch.tensor([0.15, 0.05, 0.8], dtype=torch.float64)
    kept_p, kept_q = P[[2, 0]], teacher[[2, 0]]
    bucket = kl(torch.cat([kept_p, 1 - kept_p.sum()[None]]), torch.cat([kept_q, 1 - kept_q.sum()[None]]))
    assert of(P, teacher, kind="reverse_kl", top_k=2) == pytest.approx(bucket)
    renormalised = kl(kept_p / kept_p.sum(), kept_q / kept_q.sum())
    assert of(P, teacher, kind="reverse_kl", top_k=2, tail="renormalise") == pytest.approx(renormalised)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "entropy_mixed"])  # whose weight counts the outcomes
def test_top_k_of_the_whole_vocabulary_is_the_full_divergence(kind):
    assert of(kind=kind, top_k=3) == pytest.approx(of(kind=kind))
    assert of(kind=kind, top_k=3, tail="renormalise") == pytest.approx(of(kind=kind))


def test_bare_truncation_would_drain_the_support_and_the_two_tails_do_not():
    """Over the kept tokens alone the divergence has a gradient where p = q: it would take mass away from them."""

    def gradient_at_agreement(restricted) -> float:
        student = Q.log().requires_grad_()
        lp, lq = (x.log_softmax(-1)[1:] for x in (student, Q.log()))
        (gradient,) = torch.autograd.grad(restricted(lp, lq), student)
        return gradient.abs().max().item()

    def reverse(lp: Tensor, lq: Tensor) -> Tensor:
        return (lp.exp() * (lp - lq)).sum()

    assert gradient_at_agreement(reverse) > 0.05
    assert gradient_at_agreement(lambda lp, lq: reverse(restrict(lp, "bucket"), restrict(lq, "bucket"))) < 1e-12
    assert gradient_at_agreement(lambda lp, lq: reverse(restrict(lp, "renormalise"), restrict(lq, "renormalise"))) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_pull_is_the_gradient_that_autograd_finds(kind):
    generator = torch.Generator().manual_seed(3)
    z, t = torch.randn(2, 6, 8, generator=generator, dtype=torch.float64)
    z.requires_grad_()
    (expected,) = torch.autograd.grad(token_divergence(z, t, kind=kind, beta=0.3, skew=0.25).sum(), z)
    lp, lq = z.detach().log_softmax(-1), t.log_softmax(-1)
    doubt = -(lq.exp() * lq).sum(-1, keepdim=True) / math.log(8)
    _, pull = pointwise_of(DivergenceConfig(kind=kind, beta=0.3, skew=0.25))(lp, lq, lp.exp(), lq.exp(), doubt)
    torch.testing.assert_close(pull - lp.exp() * pull.sum(-1, keepdim=True), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.7}, {"top_k": 3}, {"top_k": 3, "tail": "renormalise", "temperature": 0.6}], ids=str
)
def test_gradients_equal_finite_differences(kind, options):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda z: token_divergence(z, teacher, kind=kind, beta=0.3, skew=0.2, **options), student.requires_grad_()
    )


def test_masked_tokens_may_hold_anything_and_leading_shape_is_free():
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 2, 3, 5, generator=generator)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    broken_student, broken_teacher = student.clone(), teacher.clone()
    broken_student[~mask] = torch.nan
    broken_teacher[~mask] = torch.inf
    broken_student.requires_grad_()
    values = token_divergence(broken_student, broken_teacher, mask=mask)
    torch.testing.assert_close(values, token_divergence(student, teacher) * mask)
    (gradient,) = torch.autograd.grad(values.sum(), broken_student)
    assert gradient.isfinite().all() and not gradient[~mask].any() and gradient[mask].any()
    torch.testing.assert_close(token_divergence(student[0, 0], teacher[0, 0]), values[0, 0])


@pytest.mark.parametrize("kind", SMOOTH)
def test_rounding_makes_no_divergence_negative(kind):
    generator = torch.Generator().manual_seed(0)
    teacher, noise = torch.randn(2, 500, 50, generator=generator)
    student = teacher + 1e-4 * noise
    lp, lq = student.log_softmax(-1), teacher.log_softmax(-1)
    value, _ = pointwise_of(DivergenceConfig(kind=kind))(lp, lq, lp.exp(), lq.exp(), torch.full((500, 1), 0.9))
    assert value.sum(-1).min() < 0, "without care some would be"
    assert token_divergence(student, teacher, kind=kind).min() >= 0


def test_low_precision_logits_are_reduced_in_fp32():
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 4, 300, generator=generator).bfloat16()
    values = token_divergence(student, teacher)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, token_divergence(student.float(), teacher.float()), rtol=0, atol=0)


def test_wrong_parameters_are_refused_with_the_fix():
    with pytest.raises(UserError, match=r"beta is 1.5, outside \[0, 1\]"):
        of(beta=1.5)
    with pytest.raises(UserError, match="temperature is 0"):
        of(temperature=0.0)
    with pytest.raises(ValueError, match="differ in shape"):
        token_divergence(torch.zeros(2, 3), torch.zeros(2, 4))
