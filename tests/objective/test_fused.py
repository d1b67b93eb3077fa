"""The fused objective: equal to the definition for every configuration, head, type and chunk, and without [N, V]."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_unified import COUNTS, VARIANTS, everything
from token_batches import gradients, token_batch
from torch.utils._python_dispatch import TorchDispatchMode

from gkd_rl.config.objective import DivergenceConfig, ObjectiveConfig, SurrogateConfig, TelemetryConfig
from gkd_rl.objective import fused_objective, products, unified_objective
from gkd_rl.objective.compiled import has_compiler
from gkd_rl.types import Head

K1 = DivergenceConfig(kind="reverse_kl", estimator="k1", use="advantage", discount=0.9)

CONFIGURATIONS = {
    **VARIANTS,
    "k1 with discount": replace(everything(), divergence=K1),
    "k1": replace(everything(), divergence=replace(K1, discount=0.0)),
    "sequence ratio": replace(everything(), surrogate=SurrogateConfig(ratio="sequence")),
    "sequence ratio with teacher": replace(everything(), surrogate=SurrogateConfig(ratio="sequence", teacher_in_ratio=0.5)),
    "no ratio": replace(everything(), surrogate=SurrogateConfig(ratio="none")),
}


def assert_equal_to_the_definition(batch, config, tolerance: float, **options) -> None:
    config = replace(config, telemetry=TelemetryConfig(interference_stride=2))
    expected, wanted = gradients(unified_objective, batch, config, COUNTS)
    result, made = gradients(fused_objective, batch, config, COUNTS, **options)
    torch.testing.assert_close(made, wanted, rtol=tolerance, atol=tolerance)
    for name in ("loss", "token_logprobs", "token_divergence", "token_entropy"):
        torch.testing.assert_close(getattr(result, name), getattr(expected, name), rtol=tolerance, atol=tolerance, check_dtype=False)
    assert result.sums.keys() == expected.sums.keys()
    for name, value in expected.sums.items():
        torch.testing.assert_close(result.sums[name], value, rtol=max(tolerance, 1e-5), atol=max(10 * tolerance, 1e-5), msg=name)


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)], ids=["fp32", "fp64"])
def test_equal_to_the_definition(name, dtype, tolerance):
    assert_equal_to_the_definition(token_batch(dtype=dtype), CONFIGURATIONS[name], tolerance, chunk_tokens=4)


@pytest.mark.parametrize("name", ["gjsd", "top-k bucket", "k1 with discount", "sequence ratio"])
def test_the_size_of_chunks_changes_nothing(name):
    batch = token_batch(23)
    _, whole = gradients(fused_objective, batch, CONFIGURATIONS[name], COUNTS, chunk_tokens=23)
    for chunk in (1, 2, 5, 22, 100):
        _, made = gradients(fused_objective, batch, CONFIGURATIONS[name], COUNTS, chunk_tokens=chunk)
        torch.testing.assert_close(made, whole, rtol=1e-5, atol=1e-6)


def test_terms_that_are_absent_need_nothing():
    batch = token_batch(teacher_hidden=None, teacher_head=None, reference_hidden=None, reference_head=None)
    assert_equal_to_the_definition(batch, ObjectiveConfig(alpha=0), 1e-5, chunk_tokens=4)


@pytest.mark.parametrize(("bias", "scale", "cap"), [(False, 1.0, None), (True, 1.0, None), (False, 0.25, None), (False, 1.0, 3.0)])
def test_every_head(bias, scale, cap):
    batch = token_batch()
    head = Head(batch.student_head.weight, batch.student_head.bias if bias else None, scale, cap)
    teacher = Head(batch.teacher_head.weight, None, 2.0, None)
    assert_equal_to_the_definition(replace(batch, student_head=head, teacher_head=teacher), everything(), 1e-5, chunk_tokens=4)


def test_a_tied_head_gets_both_gradients():
    """Hidden states that come from the head's own weight: the gradient is the sum of both paths."""

    def gradient(objective) -> torch.Tensor:
        weight = torch.randn(9, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
        batch = token_batch()
        batch = replace(batch, student_hidden=weight[batch.token_ids] * 2, student_head=Head(weight))
        return torch.autograd.grad(objective(batch, everything(), COUNTS).loss, weight)[0]

    torch.testing.assert_close(gradient(fused_objective), gradient(unified_objective), rtol=1e-5, atol=1e-5)


def test_a_frozen_head_gets_no_gradient_and_hidden_states_the_same():
    batch = token_batch()
    frozen = replace(batch, student_head=Head(batch.student_head.weight.detach(), scale=0.5))
    _, made = gradients(fused_objective, frozen, everything(), COUNTS)
    _, wanted = gradients(unified_objective, frozen, everything(), COUNTS)
    assert len(made) == 1
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)


def test_without_gradients_the_values_are_the_same():
    batch = token_batch()
    with torch.no_grad():
        result = fused_objective(batch, everything(), COUNTS, chunk_tokens=4)
    expected = unified_objective(batch, everything(), COUNTS)
    assert not result.loss.requires_grad
    torch.testing.assert_close(result.loss, expected.loss.detach())
    torch.testing.assert_close(result.token_divergence, expected.token_divergence)


def test_the_loss_scales_its_gradients():
    batch = token_batch()
    _, made = gradients(fused_objective, batch, everything(), COUNTS)
    loss = 3 * fused_objective(batch, everything(), COUNTS).loss
    torch.testing.assert_close(torch.autograd.grad(loss, batch.student_hidden)[0], 3 * made[0])


def test_bf16_inputs_are_reduced_in_fp32_and_get_bf16_gradients():
    batch = token_batch(dtype=torch.bfloat16)
    batch = replace(batch, **{n: getattr(batch, n).float() for n in ("advantages", "old_logprobs", "sampler_logprobs", "reward_weights")})
    result, made = gradients(fused_objective, batch, everything(), COUNTS, chunk_tokens=4)
    expected, wanted = gradients(unified_objective, batch, everything(), COUNTS)
    assert result.loss.dtype == torch.float32 and all(g.dtype == torch.bfloat16 for g in made)
    torch.testing.assert_close(result.loss, expected.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made, wanted, rtol=2e-2, atol=2e-3)


def test_extreme_logits_and_excluded_tokens_stay_finite():
    batch = token_batch(6, 5)
    bias = torch.tensor([1e4, -1e4, 0.0, -torch.inf, 50.0])
    student = Head(batch.student_head.weight, torch.tensor([-1e4, 1e4, 0.0, 1.0, -50.0]).requires_grad_())
    batch = replace(batch, student_head=student, teacher_head=Head(batch.teacher_head.weight, bias))
    for name in ("gjsd", "forward", "reverse", "skew forward", "skew reverse", "entropy mixed", "top-k bucket"):
        config = replace(VARIANTS[name], divergence=replace(VARIANTS[name].divergence, extrapolation=1.0))
        result, made = gradients(fused_objective, batch, config, COUNTS)
        assert result.loss.isfinite() and all(g.isfinite().all() for g in made), name
        expected, wanted = gradients(unified_objective, batch, config, COUNTS)
        torch.testing.assert_close(result.loss, expected.loss, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)


def test_a_token_that_the_student_excludes_and_the_teacher_does_not_counts_alike_in_both():
    batch = token_batch(6, 5)
    student = Head(batch.student_head.weight, torch.tensor([0.3, -torch.inf, 0.0, 1.0, -0.5]).requires_grad_())
    batch = replace(batch, student_head=student, token_ids=batch.token_ids.masked_fill(batch.token_ids == 1, 0))
    for name in ("forward", "gjsd", "skew forward", "entropy mixed"):
        config = replace(VARIANTS[name], divergence=replace(VARIANTS[name].divergence, extrapolation=1.0))
        result, made = gradients(fused_objective, batch, config, COUNTS)
        expected, wanted = gradients(unified_objective, batch, config, COUNTS)
        torch.testing.assert_close(result.loss, expected.loss, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("name", ["gjsd", "top-k bucket", "sequence ratio"])
def test_no_tensor_of_tokens_by_vocabulary_ever_exists(name):
    batch = token_batch(64, 50)
    with LargestTensor() as seen:
        gradients(fused_objective, batch, CONFIGURATIONS[name], COUNTS, chunk_tokens=8)
    assert seen.elements < 64 * 50 / 4
    with LargestTensor() as seen:
        gradients(unified_objective, batch, CONFIGURATIONS[name], COUNTS)
    assert seen.elements >= 64 * 50


@pytest.mark.skipif(not has_compiler(torch.device("cpu")), reason="no C++ compiler")
@pytest.mark.parametrize("name", ["gjsd", "top-k bucket"])
def test_compiled_kernels_give_equal_results(name):
    """Chunks of three lengths, one of a single token, pass through the same compiled kernels."""
    assert_equal_to_the_definition(token_batch(15, 40), CONFIGURATIONS[name], 1e-5, chunk_tokens=7, compile=True)


def test_products_through_onednn_equal_those_of_torch(monkeypatch):
    """Sizes beyond the threshold from which another library multiplies, none of them round; two chunks, several pieces of the head."""
    monkeypatch.setattr(products, "BLOCK_BYTES", 50_000)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    tokens, vocabulary, width = 37, 1021, 67
    batch = replace(
        token_batch(tokens, vocabulary),
        student_hidden=normal(tokens, width).requires_grad_(),
        student_head=Head((normal(vocabulary, width) / 8).requires_grad_()),
        teacher_hidden=normal(tokens, 71),
        teacher_head=Head(normal(vocabulary, 71) / 8),
    )
    assert 18 * vocabulary * width > products.LEAST_WORK
    assert_equal_to_the_definition(batch, ObjectiveConfig(), 1e-5, chunk_tokens=19, compile=False)
