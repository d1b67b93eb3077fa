"""Several teachers: what teaches is the mixture of their probabilities, in the definition and in the fused pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_unified import COUNTS, OBJECTIVES, VARIANTS
from token_batches import gradients, token_batch

from gkd_rl.objective import fused_objective, unified_objective
from gkd_rl.objective.head import logits_of
from gkd_rl.types import Head, TokenBatch

ROUTED = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
WEIGHTS = {
    "mixed": torch.tensor([0.2, 0.3, 0.5]).expand(11, 3),
    "routed": ROUTED[torch.arange(11) % 3],
    "routed in blocks": ROUTED[torch.arange(11) // 4],
    "one of them silent": torch.tensor([0.4, 0.0, 0.6]).expand(11, 3),
    "both": torch.cat([ROUTED[torch.arange(6) % 3], torch.tensor([0.2, 0.3, 0.5]).expand(5, 3)]),
}


def several(weights: torch.Tensor, dtype: torch.dtype = torch.float32) -> tuple[TokenBatch, TokenBatch]:
    """A batch of three teachers of different widths, and the same with their mixture, made here, as the one teacher's logits."""
    batch = token_batch(dtype=dtype)
    generator = torch.Generator().manual_seed(9)
    parts = []
    for number, width in enumerate((5, 3, 7)):
        hidden, weight = (torch.randn(size, width, generator=generator, dtype=dtype) for size in (11, 9))
        parts.append((hidden * (weights[:, number, None] > 0), Head(weight, soft_cap=6.0 if number else None)))
    probabilities = sum(w[:, None] * logits_of(*part).softmax(-1) for w, part in zip(weights.to(dtype).T, parts, strict=True))
    assert isinstance(probabilities, torch.Tensor)
    one = replace(batch, teacher_hidden=probabilities.log(), teacher_head=Head(torch.eye(9, dtype=dtype)))
    return replace(batch, teacher_hidden=None, teacher_head=None, teacher_parts=tuple(parts), teacher_weights=weights.to(dtype)), one


@OBJECTIVES
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", ["gjsd", "reverse", "top-k renormalised", "k2", "sign gate", "entropy mixed"])
def test_the_mixture_teaches_as_one_teacher_of_that_distribution_would(objective, name, weights):
    batch, one = several(WEIGHTS[weights])
    expected, wanted = gradients(unified_objective, one, VARIANTS[name], COUNTS)
    result, made = gradients(objective, batch, VARIANTS[name], COUNTS)
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)
    assert result.sums.keys() == expected.sums.keys()
    for key, value in expected.sums.items():
        torch.testing.assert_close(result.sums[key], value, rtol=1e-4, atol=1e-4, msg=key)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_fused_and_dense_agree_in_double_whatever_the_chunk(weights):
    batch, _ = several(WEIGHTS[weights], torch.float64)
    _, wanted = gradients(unified_objective, batch, VARIANTS["gjsd"], COUNTS)
    for chunk in (1, 4, 11):
        _, made = gradients(fused_objective, batch, VARIANTS["gjsd"], COUNTS, chunk_tokens=chunk)
        torch.testing.assert_close(made, wanted, rtol=1e-11, atol=1e-11)


@OBJECTIVES
def test_a_teacher_without_weight_may_hold_anything(objective):
    batch, _ = several(WEIGHTS["one of them silent"])
    parts = list(batch.teacher_parts)
    parts[1] = (torch.full_like(parts[1][0], 1e4), parts[1][1])
    _, wanted = gradients(objective, batch, VARIANTS["gjsd"], COUNTS)
    _, made = gradients(objective, replace(batch, teacher_parts=tuple(parts)), VARIANTS["gjsd"], COUNTS)
    torch.testing.assert_close(made, wanted)
