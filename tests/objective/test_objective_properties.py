"""What holds of the whole objective for any shape, dtype, chunk and logits, however extreme."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from token_batches import gradients, logits_batch, rows_of, token_batch

from gkd_rl.config.objective import DivergenceConfig, ObjectiveConfig, SurrogateConfig, TelemetryConfig
from gkd_rl.objective import fused_objective, unified_objective
from gkd_rl.types import GlobalCounts, TokenBatch

COUNTS = GlobalCounts(4.0, 3.0, 2.0)
FEW = settings(max_examples=40, deadline=None, derandomize=True)

EXTREMES = (0.0, 2.0, -2.0, 40.0, -40.0, 1e4, -1e4, -math.inf)

DIVERGENCES = st.sampled_from(
    [
        *(
            DivergenceConfig(kind)
            for kind in ("forward_kl", "reverse_kl", "skew_forward_kl", "skew_reverse_kl", "entropy_mixed", "total_variation")
        ),
        *(DivergenceConfig(beta=beta) for beta in (0.0, 0.1, 0.5, 1.0)),
        DivergenceConfig(temperature=0.5, teacher_temperature=3.0),
        DivergenceConfig(estimator="top_k", top_k=2),
        DivergenceConfig("reverse_kl", estimator="top_k", top_k=2, tail="renormalise"),
        DivergenceConfig("forward_kl", estimator="k3"),
        DivergenceConfig("reverse_kl", estimator="k2"),
        DivergenceConfig("reverse_kl", estimator="k1", use="advantage", discount=1.0),
    ]
)


@st.composite
def extreme_batches(draw) -> TokenBatch:
    """Identity heads over extreme logits; the tokens drawn are possible ones of the student, as sampled tokens are."""
    tokens, vocabulary = draw(st.integers(1, 5)), draw(st.integers(2, 7))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    sides = []
    for _ in range(2):
        size = tokens * vocabulary
        values = draw(st.lists(st.sampled_from(EXTREMES) | st.floats(-30, 30, width=16), min_size=size, max_size=size))
        logits = torch.tensor(values, dtype=torch.float64).reshape(tokens, vocabulary)
        logits[:, draw(st.integers(0, vocabulary - 1))] = draw(st.sampled_from([0.0, 5.0, 1e4]))
        sides.append(logits.clamp_min(-1e30).to(dtype))  # identity heads multiply by 0, and 0·∞ is no number
    student, teacher = sides
    weights = {
        "reward_weights": torch.ones(tokens, dtype=dtype),
        "advantages": torch.tensor([1.0, -2.0, 0.5, 0.0, -1.0], dtype=dtype)[:tokens],
    }
    ids = student.argmax(-1)
    return logits_batch(student.requires_grad_(), ids, teacher, sequence_index=torch.arange(tokens) // 2, **weights)


@FEW
@given(extreme_batches(), DIVERGENCES, st.sampled_from([1, 2, None]))
def test_extreme_logits_give_finite_losses_and_gradients_and_no_negative_divergence(batch, divergence, chunk):
    config = ObjectiveConfig(divergence=divergence, surrogate=SurrogateConfig(entropy_weight=0.1), telemetry=TelemetryConfig(1))
    for objective, options in ((unified_objective, {}), (fused_objective, {"chunk_tokens": chunk})):
        result, (found,) = gradients(objective, batch, config, COUNTS, **options)
        assert result.loss.isfinite() and found.isfinite().all()
        assert all(value.isfinite() for value in result.sums.values())
        assert (result.token_entropy >= -1e-5).all() and (result.token_logprobs <= 1e-6).all()
        assert divergence.estimator == "k1" or (result.token_divergence >= 0).all()


@FEW
@given(extreme_batches(), DIVERGENCES, st.sampled_from([1, 2, None]))
def test_extreme_logits_or_not_fused_is_dense(batch, divergence, chunk):
    config = ObjectiveConfig(divergence=divergence, surrogate=SurrogateConfig(entropy_weight=0.1))
    expected, (wanted,) = gradients(unified_objective, batch, config, COUNTS)
    result, (found,) = gradients(fused_objective, batch, config, COUNTS, chunk_tokens=chunk)
    # Around 1e4 fp32 numbers are 1e-3 apart: that is how far log-probabilities may be off, and so everything, relative to its size.
    size = max(1.0, expected.token_divergence.abs().max().item(), wanted.abs().max().item())
    torch.testing.assert_close(result.loss, expected.loss, rtol=2e-3, atol=2e-3 * size)
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3 * size)


@FEW
@given(st.integers(0, 9), st.integers(2, 12), st.integers(1, 11), DIVERGENCES, st.sampled_from([torch.float32, torch.float64]))
def test_any_shape_and_chunk_gives_the_dense_objective(tokens, vocabulary, chunk, divergence, dtype):
    batch = token_batch(tokens, vocabulary, dtype=dtype, seed=tokens)
    config = ObjectiveConfig(divergence=divergence)
    expected, wanted = gradients(unified_objective, batch, config, COUNTS)
    result, found = gradients(fused_objective, batch, config, COUNTS, chunk_tokens=chunk)
    torch.testing.assert_close(result.loss, expected.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@FEW
@given(st.integers(1, 9), DIVERGENCES, st.sampled_from(["token", "sequence"]), st.integers(0, 3))
def test_the_order_of_sequences_and_a_cut_between_them_change_no_sum(sequences, divergence, ratio, cut):
    batch = token_batch(3 * sequences, 6, seed=sequences)
    config = ObjectiveConfig(divergence=divergence, surrogate=SurrogateConfig(ratio=ratio))
    order = torch.randperm(sequences, generator=torch.Generator().manual_seed(cut))
    rows = (3 * order[:, None] + torch.arange(3)).flatten()
    whole = fused_objective(batch, config, COUNTS).loss
    parts = [
        fused_objective(rows_of(batch, part), config, COUNTS).loss
        for part in rows.split([3 * min(cut, sequences), 3 * max(sequences - cut, 0)])
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=1e-5)


@FEW
@given(st.integers(1, 9), st.sampled_from(["gjsd", "forward_kl", "reverse_kl"]))
def test_bf16_is_what_fp32_gives_for_the_rounded_numbers(tokens, kind):
    batch = token_batch(tokens, 30, seed=tokens)
    config = ObjectiveConfig(alpha=1, divergence=DivergenceConfig(kind))
    rounded = batch.student_hidden.detach().bfloat16()
    low = fused_objective(replace(batch, student_hidden=rounded), config, COUNTS)
    high = unified_objective(replace(batch, student_hidden=rounded.float()), config, COUNTS)
    assert low.token_divergence.dtype == torch.float32
    torch.testing.assert_close(low.token_divergence, high.token_divergence, rtol=1e-4, atol=1e-5)
