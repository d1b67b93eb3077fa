"""Tokens drawn from the teacher: unbiased for the forward KL, which the likeliest tokens are not."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from test_given_top_k import only_top_k
from test_unified import COUNTS, OBJECTIVES, everything
from token_batches import gradients, logits_batch, token_batch

from gkd_rl.config.objective import DivergenceConfig, ObjectiveConfig
from gkd_rl.objective import fused_objective, unified_objective
from gkd_rl.types import GlobalCounts

DRAWS = everything(kind="forward_kl", estimator="draws")


@OBJECTIVES
def test_the_expected_value_and_gradient_are_those_of_the_forward_kl(objective):
    """All pairs of draws over a vocabulary of 4, each with its probability."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(1, 4, generator=generator).log_softmax(-1)
    student = torch.randn(1, 4, generator=generator, requires_grad=True)
    config, counts = ObjectiveConfig(alpha=1, divergence=DivergenceConfig(kind="forward_kl", estimator="draws")), GlobalCounts(0, 1, 0)
    value, gradient = 0.0, torch.zeros(1, 4)
    for pair in itertools.product(range(4), repeat=2):
        ids = torch.tensor([pair])
        batch = logits_batch(
            student,
            torch.tensor([0]),
            teacher_top_ids=ids,
            teacher_top_logprobs=teacher.gather(-1, ids),
            teacher_logprobs=teacher[:, 0],
        )
        result, (made,) = gradients(objective, batch, config, counts)
        probability = teacher[0, list(pair)].sum().exp()
        value, gradient = value + probability * result.loss.detach(), gradient + probability * made
    exact = (teacher.exp() * (teacher - student.log_softmax(-1))).sum()
    torch.testing.assert_close(value, exact.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(exact, student)[0])


def test_fused_and_dense_agree_with_tokens_drawn_twice():
    batch = only_top_k(token_batch(13, dtype=torch.float64), 4)
    assert batch.teacher_top_ids is not None and batch.teacher_top_logprobs is not None
    places = torch.randint(4, (13, 7), generator=torch.Generator().manual_seed(2))
    batch = replace(
        batch,
        teacher_top_ids=batch.teacher_top_ids.gather(-1, places),
        teacher_top_logprobs=batch.teacher_top_logprobs.gather(-1, places),
    )
    expected, wanted = gradients(unified_objective, batch, DRAWS, COUNTS)
    for chunk in (1, 5, 13):
        result, made = gradients(fused_objective, batch, DRAWS, COUNTS, chunk_tokens=chunk)
        torch.testing.assert_close(made, wanted, rtol=1e-11, atol=1e-11)
        assert result.sums.keys() == expected.sums.keys()
        assert not {"teacher_top1_agreement", "teacher_top_k_mass", "forward_kl"} & result.sums.keys()
