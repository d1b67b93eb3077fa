"""Drawing tokens from logits: exact inversion of the cumulative distribution with one uniform number per row and token.

The uniforms of a row depend on the seed, the example and the row's place in its group alone. So a rollout does not change with the
batch it is decoded in, the number of ranks, or a restart.

Shapes: B sequences, C completion positions, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingParams:
    """How completions are sampled; ``temperature=0`` decodes greedily."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def row_uniforms(keys: Sequence[tuple[int, ...]], length: int) -> Tensor:
    """[B, C] float64 in [0, 1): row i depends on ``keys[i]`` only."""
    rows = torch.empty(len(keys), length, dtype=torch.float64)
    generator = torch.Generator()
    for row, key in enumerate(keys):
        digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
        generator.manual_seed(int.from_bytes(digest, "big") >> 1)
        rows[row] = torch.rand(length, generator=generator, dtype=torch.float64)
    return rows


def draw(logits: Tensor, uniforms: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token per row.

    ``logits`` [B, V], ``uniforms`` [B]. Returns tokens [B], their log-probabilities under softmax(logits) [B] fp32, and under the
    distribution really sampled from [B] fp32 (temperature, top-k, top-p; a greedy choice has probability 1).
    """
    logits = logits.float()
    policy = logits.log_softmax(dim=-1)
    if params.temperature == 0:
        tokens = logits.argmax(dim=-1)
        return tokens, _pick(policy, tokens), torch.zeros_like(policy[:, 0])
    truncated = _truncate(logits if params.temperature == 1 else logits / params.temperature, params)
    sampler = policy if truncated is logits else truncated.log_softmax(dim=-1)
    cumulative = sampler.double().exp().cumsum(dim=-1)
    targets = uniforms.to(logits.device)[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, targets, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    return tokens, _pick(policy, tokens), _pick(sampler, tokens)


def _truncate(scaled: Tensor, params: SamplingParams) -> Tensor:
    if 0 < params.top_k < scaled.shape[-1]:
        smallest = scaled.topk(params.top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < smallest, -torch.inf)
    if params.top_p < 1:
        ordered, order = scaled.sort(dim=-1, descending=True)
        mass_before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
        drop = torch.zeros_like(scaled, dtype=torch.bool).scatter(-1, order, mass_before >= params.top_p)
        scaled = scaled.masked_fill(drop, -torch.inf)
    return scaled


def _pick(logprobs: Tensor, tokens: Tensor) -> Tensor:
    return logprobs.gather(-1, tokens[:, None])[:, 0]
