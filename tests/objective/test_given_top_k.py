"""A teacher of whom only the top-k is known: the same loss and gradient as of its whole distribution, wherever that is possible."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_unified import COUNTS, OBJECTIVES, everything
from token_batches import gradients, token_batch

from gkd_rl.config.objective import GateConfig, ObjectiveConfig, SurrogateConfig, TelemetryConfig
from gkd_rl.objective import fused_objective, unified_objective
from gkd_rl.objective.compiled import has_compiler
from gkd_rl.objective.head import logits_of
from gkd_rl.types import TokenBatch

ONLY_HIDDEN = {"forward_kl", "reverse_kl"}
"""Sums that need the teacher's whole distribution."""


def only_top_k(batch: TokenBatch, k: int) -> TokenBatch:
    """The batch with what a server would give in the place of the teacher's hidden states: k likeliest tokens, in no order."""
    assert batch.teacher_hidden is not None and batch.teacher_head is not None
    lq = logits_of(batch.teacher_hidden, batch.teacher_head).log_softmax(-1)
    top = lq.topk(k)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(5))
    return replace(
        batch,
        teacher_hidden=None,
        teacher_head=None,
        teacher_top_ids=top.indices[:, order],
        teacher_top_logprobs=top.values[:, order],
        teacher_logprobs=lq.gather(-1, batch.token_ids[:, None]).squeeze(-1),
    )


def top_k(**divergence) -> ObjectiveConfig:
    return everything(**{"estimator": "top_k", "top_k": 3, **divergence})


CONFIGURATIONS = {
    "bucket": top_k(kind="reverse_kl"),
    "bucket, warmer student": top_k(kind="gjsd", temperature=1.3, teacher_temperature=1.0),
    "renormalised": top_k(kind="gjsd", beta=0.3, tail="renormalise"),
    "renormalised at a temperature": top_k(kind="forward_kl", tail="renormalise", temperature=1.7),
    "renormalised at the teacher's own temperature": top_k(kind="skew_forward_kl", tail="renormalise", teacher_temperature=0.5),
    "entropy mixed": top_k(kind="entropy_mixed", tail="renormalise"),
    "k1": everything(kind="reverse_kl", estimator="k1", use="advantage"),
    "k1 with discount": everything(kind="reverse_kl", estimator="k1", use="advantage", discount=0.9),
    "k2": everything(kind="reverse_kl", estimator="k2"),
    "k3": everything(kind="forward_kl", estimator="k3"),
    "sign gate": replace(top_k(), gate=GateConfig("sign_agreement")),
    "teacher in ratio": replace(top_k(), surrogate=SurrogateConfig(teacher_in_ratio=0.4)),
    "sequence ratio with teacher": replace(top_k(), surrogate=SurrogateConfig(ratio="sequence", teacher_in_ratio=0.5)),
}


@OBJECTIVES
@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("available", [3, 6])
def test_the_result_is_that_of_the_whole_distribution(objective, name, available):
    config = replace(CONFIGURATIONS[name], telemetry=TelemetryConfig(interference_stride=2))
    whole = token_batch()
    expected, wanted = gradients(unified_objective, whole, config, COUNTS)
    result, made = gradients(objective, only_top_k(whole, available), config, COUNTS)
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.loss, expected.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.token_divergence, expected.token_divergence, rtol=1e-5, atol=1e-5)
    warmer = (config.divergence.teacher_temperature or config.divergence.temperature) != 1
    left_out = ONLY_HIDDEN | ({"teacher_top_k_mass"} if warmer else set())
    assert result.sums.keys() == expected.sums.keys() - left_out
    for sum_name, value in result.sums.items():
        torch.testing.assert_close(value, expected.sums[sum_name], rtol=1e-5, atol=1e-4, msg=sum_name)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_fused_and_dense_agree_in_double_whatever_the_chunk(name):
    batch = only_top_k(token_batch(23, dtype=torch.float64), 4)
    expected, wanted = gradients(unified_objective, batch, CONFIGURATIONS[name], COUNTS)
    for chunk in (1, 5, 23):
        result, made = gradients(fused_objective, batch, CONFIGURATIONS[name], COUNTS, chunk_tokens=chunk)
        torch.testing.assert_close(made, wanted, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(result.loss, expected.loss, rtol=1e-11, atol=1e-11)


@OBJECTIVES
def test_the_sampled_token_alone_serves_the_sampled_estimators(objective):
    whole, config = token_batch(), CONFIGURATIONS["k2"]
    result, made = gradients(objective, only_top_k(whole, 0), config, COUNTS)
    _, wanted = gradients(unified_objective, whole, config, COUNTS)
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)
    assert "teacher_top1_agreement" not in result.sums


@OBJECTIVES
def test_tokens_that_the_teacher_excludes_stay_finite(objective):
    batch = only_top_k(token_batch(6, 5), 4)
    assert batch.teacher_top_logprobs is not None
    batch = replace(
        batch, teacher_top_logprobs=batch.teacher_top_logprobs.masked_fill(torch.tensor([True, False, False, False]), -torch.inf)
    )
    for tail in ("bucket", "renormalise"):
        result, made = gradients(objective, batch, top_k(kind="forward_kl", tail=tail, top_k=4), COUNTS)
        assert result.loss.isfinite() and all(g.isfinite().all() for g in made)


@pytest.mark.skipif(not has_compiler(torch.device("cpu")), reason="no C++ compiler")
def test_compiled_kernels_give_equal_results():
    batch, config = only_top_k(token_batch(15, 40), 8), CONFIGURATIONS["bucket, warmer student"]
    _, wanted = gradients(unified_objective, batch, config, COUNTS)
    _, made = gradients(fused_objective, batch, config, COUNTS, chunk_tokens=7, compile=True)
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)
