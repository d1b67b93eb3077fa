"""The divergence to a teacher with another tokenizer: against the enumerated outcomes, its limits, and what must not matter to it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from span_batches import LENGTHS, enumerated, kept_only, span_batch
from test_unified import COUNTS, OBJECTIVES, everything
from token_batches import gradients, token_batch

from gkd_rl.config.objective import DivergenceConfig, ObjectiveConfig, SurrogateConfig, TelemetryConfig
from gkd_rl.objective import fused_objective, unified_objective
from gkd_rl.objective.compiled import has_compiler
from gkd_rl.objective.divergence import divergence_of
from gkd_rl.objective.head import logits_of
from gkd_rl.objective.spans import later_sums
from gkd_rl.types import GlobalCounts, MatchedHead, SpanScores, TokenBatch

KINDS = ["gjsd", "forward_kl", "reverse_kl", "skew_forward_kl", "skew_reverse_kl", "entropy_mixed", "total_variation"]
ALONE = GlobalCounts(0.0, 7.0, 0.0)


def distillation(**divergence) -> ObjectiveConfig:
    return ObjectiveConfig(alpha=1.0, divergence=DivergenceConfig(**divergence))


@OBJECTIVES
@pytest.mark.parametrize("k", [None, 3, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_those_of_the_enumerated_outcomes(objective, kind: str, k: int | None):
    batch = span_batch(torch.float64)
    config = distillation(kind=kind, beta=0.3, temperature=1.3, teacher_temperature=0.8, estimator="top_k" if k else "full", top_k=k or 64)
    result, made = gradients(objective, batch, config, ALONE, **({"chunk_tokens": 4} if objective is fused_objective else {}))
    leaves = [batch.student_hidden, batch.student_head.weight, batch.student_head.bias]
    total, logits = 0.0, logits_of(batch.student_hidden, batch.student_head)
    for place, p, q in enumerated(batch, logits, k, 1.3, 0.8):
        value = divergence_of(p.log(), q.log(), config.divergence)
        torch.testing.assert_close(result.token_divergence[place], value.detach(), rtol=1e-9, atol=1e-9)
        total = total + batch.divergence_weights[place] * value / ALONE.divergence
    torch.testing.assert_close(result.loss, total, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(made, list(torch.autograd.grad(total, leaves)), rtol=1e-9, atol=1e-9)  # pyright: ignore
    assert not result.token_divergence[~batch.teacher_spans.starts].any()  # pyright: ignore


def same_tokenizer(batch: TokenBatch, pairs: list[int] | None = None) -> TokenBatch:
    """The batch's teacher as one that happens to have the student's tokens: every span is one token."""
    assert batch.teacher_hidden is not None and batch.teacher_head is not None
    every = torch.ones_like(batch.token_ids, dtype=torch.bool)
    ids = torch.arange(len(batch.student_head.weight)) if pairs is None else torch.tensor(pairs)
    head = MatchedHead(batch.teacher_head, ids, ids)
    scores = SpanScores(batch.teacher_hidden, batch.token_ids, torch.zeros(len(every)), every, every, every, head)
    return replace(batch, teacher_hidden=None, teacher_head=None, teacher_spans=scores)


@OBJECTIVES
@pytest.mark.parametrize("kind", KINDS)
def test_with_one_tokenizer_it_is_the_divergence_over_the_whole_vocabulary(objective, kind: str):
    whole = token_batch(13, 40)
    config = everything(kind=kind, temperature=1.2)
    expected, wanted = gradients(unified_objective, whole, config, COUNTS)
    result, made = gradients(objective, same_tokenizer(whole), config, COUNTS)
    torch.testing.assert_close(result.loss, expected.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.token_divergence, expected.token_divergence, rtol=1e-5, atol=1e-5)
    assert result.sums["spans"] == result.sums["one_to_one_tokens"] == result.sums["aligned_tokens"] == 13
    torch.testing.assert_close(result.sums["teacher_matched_mass"], torch.tensor(13.0))


@OBJECTIVES
def test_tokens_that_all_are_kept_are_the_whole_vocabulary(objective):
    """The same from the scores that are left of it, with k as large as the vocabulary."""
    whole = token_batch(13, 40)
    expected, wanted = gradients(unified_objective, whole, everything(kind="reverse_kl"), COUNTS)
    for k in (40, 64):
        result, made = gradients(objective, kept_only(same_tokenizer(whole), k), everything(kind="reverse_kl", estimator="top_k"), COUNTS)
        torch.testing.assert_close(result.loss, expected.loss, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)


CONFIGURATIONS = {
    "all shared tokens": everything(kind="gjsd", beta=0.3, temperature=1.4),
    "two of them": everything(kind="reverse_kl", estimator="top_k", top_k=2),
    "entropy mixed": everything(kind="entropy_mixed", temperature=0.7, teacher_temperature=1.2),
    "ratio of sequences": replace(everything(kind="forward_kl"), surrogate=SurrogateConfig(ratio="sequence")),
}
"""With the reward's term and its regularisers beside"""


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_fused_and_dense_agree_in_double_whatever_the_chunk(name: str):
    batch = span_batch(torch.float64)
    config = replace(CONFIGURATIONS[name], telemetry=TelemetryConfig(interference_stride=2))
    expected, wanted = gradients(unified_objective, batch, config, COUNTS)
    for chunk in (1, 5, 18):
        result, made = gradients(fused_objective, batch, config, COUNTS, chunk_tokens=chunk)
        torch.testing.assert_close(made, wanted, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(result.loss, expected.loss, rtol=1e-10, atol=1e-10)
        assert result.sums.keys() == expected.sums.keys()
        for sum_name, value in result.sums.items():
            torch.testing.assert_close(value, expected.sums[sum_name], rtol=1e-5, atol=1e-5, msg=sum_name)


@OBJECTIVES
@pytest.mark.parametrize("available", [2, 4, 6, 9])
def test_kept_tokens_give_what_the_whole_distribution_gives(objective, available: int):
    batch, config = span_batch(), CONFIGURATIONS["two of them"]
    expected, wanted = gradients(unified_objective, batch, config, COUNTS)
    result, made = gradients(objective, kept_only(batch, available), config, COUNTS)
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.loss, expected.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.sums["teacher_matched_mass"], expected.sums["teacher_matched_mass"])


def test_figures_of_spans_by_hand():
    """11 spans of 18 tokens; spans 3 and 4, of 1 + 2 tokens, are not aligned; of the others 6 have one token."""
    batch = span_batch(torch.float64)
    sums = unified_objective(batch, distillation(), ALONE).sums
    assert (sums["spans"], sums["aligned_tokens"], sums["one_to_one_tokens"]) == (11, 15, 6)
    logits = logits_of(batch.student_hidden.detach(), batch.student_head)
    masses = [(1 - p[-1], 1 - q[-1]) for _, p, q in enumerated(batch, logits, None)]
    for name, values in zip(("student_matched_mass", "teacher_matched_mass"), zip(*masses, strict=True), strict=True):
        torch.testing.assert_close(sums[name], torch.stack(values).sum().detach().float())


def test_the_fused_pass_agrees_in_single_precision_at_its_own_chunks():
    batch, config = span_batch(), CONFIGURATIONS["all shared tokens"]
    expected, wanted = gradients(unified_objective, batch, config, COUNTS)
    result, made = gradients(fused_objective, batch, config, COUNTS)
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.loss, expected.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not has_compiler(torch.device("cpu")), reason="no C++ compiler")
def test_compiled_kernels_give_equal_results():
    batch, config = span_batch(), CONFIGURATIONS["all shared tokens"]
    _, wanted = gradients(unified_objective, batch, config, COUNTS)
    _, made = gradients(fused_objective, batch, config, COUNTS, chunk_tokens=7, compile=True)
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)


@OBJECTIVES
def test_no_tokens_are_no_loss(objective):
    batch = span_batch()
    empty = {name: value[:0] for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    scores = {name: value[:0] for name, value in vars(batch.teacher_spans).items() if isinstance(value, torch.Tensor)}
    none = replace(batch, **empty, teacher_spans=replace(batch.teacher_spans, **scores))  # pyright: ignore
    assert objective(none, distillation(), ALONE).loss == 0


@OBJECTIVES
@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_of_nothing_stay_finite(objective, kind: str):
    """The teacher excludes some tokens, and what is not shared has all of the student's mass, or none."""
    batch = span_batch()
    scores = batch.teacher_spans
    assert isinstance(scores, SpanScores)
    head = replace(scores.matched.head, bias=torch.tensor([0.0, -torch.inf, 0, 0, -torch.inf, 0, 0]))
    bias = torch.tensor([0.0, 300.0, 0, 0, -300.0, 0, 0, 0, 0]).requires_grad_()
    hard = replace(
        batch,
        student_head=replace(batch.student_head, bias=bias, soft_cap=None),
        teacher_spans=replace(scores, matched=replace(scores.matched, head=head)),
    )
    result, made = gradients(objective, hard, distillation(kind=kind), ALONE)
    assert result.loss.isfinite() and all(gradient.isfinite().all() for gradient in made)


def test_a_student_that_says_what_the_teacher_says_is_at_rest():
    """Equal on every outcome of every span: no divergence, no gradient."""
    whole = token_batch(13, 40)
    assert whole.teacher_hidden is not None and whole.teacher_head is not None
    copied = replace(
        whole,
        student_hidden=whole.teacher_hidden.clone().requires_grad_(),
        student_head=whole.teacher_head,
        teacher_hidden=whole.teacher_hidden,
    )
    result, made = gradients(fused_objective, same_tokenizer(copied, [3, 7, 11]), distillation(kind="gjsd"), ALONE)
    assert result.token_divergence.max() < 1e-6 and made[0].abs().max() < 1e-6


def test_a_spans_later_tokens_are_summed_at_its_first():
    starts = torch.tensor([length - 1 == left for length in LENGTHS for left in reversed(range(length))])
    sums = later_sums(torch.arange(18.0), starts)
    assert sums[starts].tolist() == [0, 2 + 3, 0, 0, 7, 0, 10 + 11 + 12, 0, 0, 16, 0]
    assert not sums[~starts].any()
