"""Drawing tokens from logits: exact inversion of the cumulative distribution with one uniform number per row and token.

The uniforms of a row depend on the seed, the example and the row's place in its group alone. So a rollout does not change with the
batch it is decoded in, the number of ranks, or a restart. One number per row is all that is drawn: no noise of the vocabulary's size.

Shapes: B sequences, C completion positions, V vocabulary, S blocks of it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LONGEST_HEAD = 1024
"""Top-p first looks among so many of the likeliest tokens; sorting a whole vocabulary costs more than a small model's step."""

LEAST_MASS = 1e-20
"""Less than this beside the banned tokens is not told apart well in fp32 as a share of all."""


@dataclass(frozen=True)
class SamplingParams:
    """How completions are sampled; ``temperature=0`` decodes greedily."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    """Only the k likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Only the likeliest tokens that make up this mass."""
    min_p: float = 0.0
    """Only tokens at least this share as likely as the likeliest."""
    min_new_tokens: int = 0
    """No end token before so many tokens."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; the token that completes one is its last."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end an answer beside the model's own."""
    calculator: bool = False
    """Results of ``<<expression=`` are computed and inserted (``gkd_rl.rollout.calculator``)."""


def row_uniforms(keys: Sequence[tuple[int, ...]], length: int) -> Tensor:
    """[B, C] float64 in [0, 1): row i depends on ``keys[i]`` only."""
    rows = torch.empty(len(keys), length, dtype=torch.float64)
    generator = torch.Generator()
    for row, key in enumerate(keys):
        generator.manual_seed(row_seed(key))
        rows[row] = torch.rand(length, generator=generator, dtype=torch.float64)
    return rows


def row_seed(key: tuple[int, ...]) -> int:
    """63 bits that depend on ``key`` (seed, example, place in its group) only."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1


def draw(
    logits: Tensor, uniforms: Tensor, params: SamplingParams, banned: Tensor | None = None, consume: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token per row.

    ``logits`` [B, V], ``uniforms`` [B]; ``banned`` token ids are never drawn. Returns tokens [B], their log-probabilities under
    softmax(logits) [B] fp32, and under the distribution really sampled from [B] fp32 (temperature, top-k, top-p, min-p, banned tokens; a
    greedy choice has probability 1). With ``consume``, fp32 logits are written over: fresh memory costs as much as the arithmetic.
    """
    logits, uniforms = logits.float(), uniforms.to(logits.device)
    plain = params.temperature == 1 and not 0 < params.top_k < logits.shape[-1] and params.top_p >= 1 and params.min_p == 0
    if plain and (drawn := _draw_untruncated(logits, uniforms, banned, consume)) is not None:
        return drawn
    allowed = logits if banned is None else logits.index_fill(-1, banned, -torch.inf)
    policy = logits.log_softmax(-1)
    if params.temperature == 0:
        tokens = allowed.argmax(dim=-1)
        return tokens, _pick(policy, tokens), torch.zeros_like(policy[:, 0])
    tokens, sampler, _ = _invert(_truncate(allowed / params.temperature, params).softmax(-1), uniforms)
    return tokens, _pick(policy, tokens), sampler.float()


def _draw_untruncated(logits: Tensor, uniforms: Tensor, banned: Tensor | None, consume: bool) -> tuple[Tensor, Tensor, Tensor] | None:
    """``draw`` from softmax(logits) less the banned tokens, in one pass; None where hardly anything is left beside the banned ones.

    The softmax is of all tokens: what is banned is only a few columns of it, so that nothing of the vocabulary's size is
    summed, filled or copied for them.
    """
    chances = torch.softmax(logits, -1, out=logits if consume and banned is None else None)
    held = chances.new_zeros(len(chances), dtype=torch.float64)
    if banned is not None:
        held = chances[:, banned].double().sum(-1)
        chances.index_fill_(-1, banned, 0.0)
    tokens, sampler, total = _invert(chances, uniforms)
    if banned is not None and bool((total < LEAST_MASS).any()):
        return None
    return tokens, (sampler + total.log() - (total + held).log()).float(), sampler.float()


def _invert(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The token of each row at which weights [B, V], none negative, summed up in the order of ids pass the row's share [B] of their sum.

    In two levels: the block of the vocabulary, then the token within it, so that only S + V/S sums are taken in float64. Returns tokens
    [B], log(weight / sum) of them [B] and the sums [B], the last two in float64.
    """
    blocks = _in_blocks(weights)
    sums = blocks.sum(-1).double().cumsum(-1)
    total = sums[:, -1:]
    block = _first_above(sums, uniforms[:, None] * total)
    before = torch.where(block > 0, sums.gather(-1, (block - 1).clamp_min(0)), 0.0)
    inside = blocks.gather(1, block[..., None].expand(-1, -1, blocks.shape[-1]))[:, 0].double().cumsum(-1)
    tokens = block * blocks.shape[-1] + _first_above(inside, uniforms[:, None] * total - before)
    tokens = tokens.clamp(max=weights.shape[-1] - 1)
    logprobs = weights.gather(-1, tokens).double().log() - total.log()
    return tokens[:, 0], logprobs[:, 0], total[:, 0]


def _in_blocks(weights: Tensor) -> Tensor:
    """[B, S, V/S] with S near √V; padded with zeros where V has no suitable divisor."""
    vocabulary = weights.shape[-1]
    root = math.isqrt(vocabulary)
    width = next((w for w in range(root, 2 * root) if vocabulary % w == 0), root)
    missing = -vocabulary % width
    return (torch.nn.functional.pad(weights, (0, missing)) if missing else weights).unflatten(-1, (-1, width))


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """[B, 1] first place where rising sums [B, n] exceed the target [B, 1]. Rounding may put a target outside; weight 0 is never hit."""
    within = torch.minimum(target.clamp_min(0), cumulative[:, -1:] * (1 - 1e-14))
    return torch.searchsorted(cumulative, within, right=True).clamp(max=cumulative.shape[-1] - 1)  # NaN is found past the end


def _truncate(scaled: Tensor, params: SamplingParams) -> Tensor:
    """Logits with −inf for what may not be drawn: top-k first, then top-p of the rest, then min-p."""
    if 0 < params.top_k < scaled.shape[-1]:
        smallest = scaled.topk(params.top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < smallest, -torch.inf)
    if params.top_p < 1:
        scaled = _top_p(scaled, params.top_p)
    if params.min_p > 0:
        scaled = scaled.masked_fill(scaled < scaled.amax(-1, keepdim=True) + math.log(params.min_p), -torch.inf)
    return scaled


def _top_p(scaled: Tensor, top_p: float) -> Tensor:
    """Keeps the likeliest tokens up to and with the one at which their mass reaches ``top_p``."""
    lse = scaled.logsumexp(-1, keepdim=True)
    count = min(LONGEST_HEAD, scaled.shape[-1])
    ordered = scaled.topk(count, dim=-1)
    if count < scaled.shape[-1] and bool(((ordered.values - lse).exp().sum(-1) < top_p).any()):
        ordered = scaled.sort(dim=-1, descending=True, stable=True)
    chances = (ordered.values - lse).exp()
    keep = chances.cumsum(-1) - chances < top_p
    return torch.full_like(scaled, -torch.inf).scatter(-1, ordered.indices, ordered.values.masked_fill(~keep, -torch.inf))


def _pick(values: Tensor, tokens: Tensor) -> Tensor:
    return values.gather(-1, tokens[:, None])[:, 0]
