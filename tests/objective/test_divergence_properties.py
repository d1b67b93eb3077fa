"""What holds of every divergence for any shape, dtype and logits, however extreme."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gkd_rl.objective import token_divergence

KINDS = ("gjsd", "forward_kl", "reverse_kl", "skew_forward_kl", "skew_reverse_kl", "entropy_mixed", "total_variation")

EXTREMES = (0.0, 1.0, -1.0, 30.0, -30.0, 1e4, -1e4, -math.inf)


@st.composite
def pairs(draw) -> tuple[Tensor, Tensor]:
    """Student and teacher logits of one shape; each row has at least one finite entry."""
    shape = (*draw(st.lists(st.integers(1, 3), max_size=2)), draw(st.integers(2, 9)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    sides = []
    for _ in range(2):
        size = math.prod(shape)
        values = draw(st.lists(st.sampled_from(EXTREMES) | st.floats(-50, 50, width=16), min_size=size, max_size=size))
        logits = torch.tensor(values, dtype=torch.float64).reshape(shape)
        logits[..., draw(st.integers(0, shape[-1] - 1))] = draw(st.sampled_from([0.0, 5.0, 1e4]))
        sides.append(logits.to(dtype))
    return sides[0], sides[1]


@settings(max_examples=150, deadline=None)
@given(pairs(), st.sampled_from(KINDS), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), st.sampled_from([None, 1, 3]))
def test_finite_not_negative_and_with_a_finite_gradient(pair, kind, beta, top_k):
    student, teacher = pair[0].requires_grad_(), pair[1]
    values = token_divergence(student, teacher, kind=kind, beta=beta, top_k=top_k)
    assert values.shape == student.shape[:-1] and values.isfinite().all() and (values >= 0).all()
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert gradient.isfinite().all()


@settings(max_examples=60, deadline=None)
@given(pairs(), st.floats(0.05, 0.95))
def test_jsd_never_exceeds_the_entropy_of_its_weights(pair, beta):
    bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert (token_divergence(*pair, kind="gjsd", beta=beta) <= bound + 1e-4).all()


@settings(max_examples=60, deadline=None)
@given(pairs(), st.sampled_from(KINDS), st.randoms(use_true_random=False))
def test_the_order_of_the_vocabulary_and_constants_added_to_logits_change_nothing(pair, kind, random):
    student, teacher = (x.double() for x in pair)
    order = list(range(student.shape[-1]))
    random.shuffle(order)
    expected = token_divergence(student, teacher, kind=kind)
    torch.testing.assert_close(
        token_divergence(student[..., order] + 2, teacher[..., order] - 3, kind=kind), expected, rtol=1e-6, atol=1e-6
    )


@settings(max_examples=60, deadline=None)
@given(pairs(), st.sampled_from(KINDS))
def test_a_step_against_the_gradient_comes_nearer_to_the_teacher(pair, kind):
    student, teacher = (x.double().clamp(-20, 20) for x in pair)
    student.requires_grad_()
    before = token_divergence(student, teacher, kind=kind)
    (gradient,) = torch.autograd.grad(before.sum(), student)
    after = token_divergence(student.detach() - 1e-3 * gradient, teacher, kind=kind)
    assert (after <= before + 1e-9).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_one_hot_teacher_pulls_the_student_to_its_token(kind):
    student = torch.zeros(4, requires_grad=True)
    teacher = torch.tensor([-torch.inf, 0.0, -torch.inf, -torch.inf])
    (gradient,) = torch.autograd.grad(token_divergence(student, teacher, kind=kind), student)
    assert gradient[1] < 0 and (gradient[[0, 2, 3]] > 0).all()
