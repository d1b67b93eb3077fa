"""One token through a Llama-shaped decoder in few operations.

A small model's step on a CPU is mostly the overhead of its many operations: here queries, keys and values come of one product, as do
the two factors of the feed-forward network, weights are packed once per rollout, and one query per head attends by two batched
products. What is computed is Transformers' own forward. Shapes: B sequences, H hidden, D a head's width, Q heads of queries, K heads of
keys and values, T positions of the cache, I width of the feed-forward network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gkd_rl.models.decoding import DecodingState
from gkd_rl.objective.products import pack, packs, quick_product

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Families of Transformers whose layers ``LeanDecoder`` repeats."""


def can_be_lean(module: PreTrainedModel) -> bool:
    """Whether ``module``, the decoder without its head, is one that ``LeanDecoder`` decodes as Transformers does, and faster.

    Only plain linear layers in fp32 on a CPU: an adapter, quantized weights, or weights that ZeRO-3 has sharded are not.
    """
    family = module.config.model_type
    known = family in FAMILIES and type(module).__module__ == f"transformers.models.{family}.modeling_{family}"
    return known and all(_is_plain(layer) for layer in module.layers)  # pyright: ignore[reportGeneralTypeIssues]


def _is_plain(layer: nn.Module) -> bool:
    linears = [part for name, part in layer.named_modules() if name.endswith("_proj")]
    return all(type(part) is nn.Linear and not hasattr(part.weight, "ds_id") and packs(part.weight) for part in linears)


class LeanDecoder:
    """A decoder's layers made ready for many steps of about ``rows`` sequences, with a packed copy of their weights as they are now."""

    def __init__(self, module: Any, rows: int) -> None:
        self.module = module
        self.layers = [_Layer(layer, rows) for layer in module.layers]

    @torch.no_grad()
    def __call__(self, tokens: Tensor, state: DecodingState) -> Tensor:
        """Appends ``tokens`` [B]; returns the states [B, H] that predict the next ones."""
        state.length += 1
        hidden = self.module.embed_tokens(tokens)
        cos, sin = self.module.rotary_emb(hidden, position_ids=state.position)  # [B, 1, D]
        sin = torch.cat([-sin[..., : sin.shape[-1] // 2], sin[..., sin.shape[-1] // 2 :]], dim=-1)
        bias = _bias(state, hidden.dtype)
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden, cos, sin, bias, state.cache.layers[number])
        return self.module.norm(hidden)


class _Layer:
    def __init__(self, layer: Any, rows: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.width, self.scale = attention.head_dim, attention.scaling
        self.to_heads = _joined([attention.q_proj, attention.k_proj, attention.v_proj], rows)
        self.queries, self.keys = (len(part.weight) // self.width for part in (attention.q_proj, attention.k_proj))
        self.out, self.down = (_joined([part], rows) for part in (attention.o_proj, mlp.down_proj))
        self.up = _joined([mlp.gate_proj, mlp.up_proj], rows)
        self.activation = mlp.act_fn
        self.before, self.between = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        self.head_norms: tuple[Tensor, float] | None = None
        if hasattr(attention, "q_norm"):  # of each head alone: one norm with a weight per head [Q + K, D]
            rms = attention.q_norm
            weights = [norm.weight.expand(count, -1) for norm, count in ((rms, self.queries), (attention.k_norm, self.keys))]
            self.head_norms = torch.cat(weights), rms.variance_epsilon

    def __call__(self, hidden: Tensor, cos: Tensor, sin: Tensor, bias: Tensor | None, cache: Any) -> Tensor:
        heads = self.to_heads(self.before(hidden)).unflatten(-1, (-1, self.width))
        turned, values = heads[:, : self.queries + self.keys], heads[:, self.queries + self.keys :]
        if self.head_norms is not None:
            weight, epsilon = self.head_norms
            turned = nn.functional.rms_norm(turned, (self.width,), None, epsilon) * weight
        turned = torch.addcmul(turned * cos, turned.roll(self.width // 2, dims=-1), sin)
        keys, values = cache.update(turned[:, self.queries :, None], values[:, :, None])
        attended = attention_of_one(turned[:, : self.queries, None], keys, values, bias, self.scale)
        hidden = hidden + self.out(attended.flatten(1))
        gate, up = self.up(self.between(hidden)).chunk(2, dim=-1)
        return hidden + self.down(self.activation(gate) * up)


def _norm(norm: Any) -> Callable[[Tensor], Tensor]:
    """weight·x/√(mean x² + ε) over the last dimension."""
    weight, epsilon = norm.weight, norm.variance_epsilon
    return lambda x: nn.functional.rms_norm(x, weight.shape, weight, epsilon)


def _joined(parts: list[nn.Linear], rows: int) -> Callable[[Tensor], Tensor]:
    """x·[W₁; W₂; ...]ᵀ + [b₁; b₂; ...] as one product."""
    weight = pack(torch.cat([part.weight for part in parts]) if len(parts) > 1 else parts[0].weight, rows)
    biases = [part.weight.new_zeros(len(part.weight)) if part.bias is None else part.bias for part in parts]
    bias = torch.cat(biases) if any(part.bias is not None for part in parts) else None
    return lambda x: quick_product(x, weight, bias)


def _bias(state: DecodingState, dtype: torch.dtype) -> Tensor | None:
    """[B, 1, 1, T]: 0 where may be attended, −∞ elsewhere; None where nothing is left out."""
    if not state.padded:
        return None
    mask = state.mask[:, None, None, : state.length]
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def attention_of_one(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """softmax(scale·q·Kᵀ + bias)·V [B, Q, 1, D] of one query per head [B, Q, 1, D]; bias [B, 1, 1, T].

    Keys and values [B, K, T, D] may have fewer heads, each for several of the query's. As batched products: torch's kernel is made for
    many queries, and takes a quarter more time for one.
    """
    rows, heads, _, width = query.shape
    grouped = (query * scale).reshape(rows * keys.shape[1], -1, width)
    scores = torch.bmm(grouped, keys.flatten(0, 1).transpose(1, 2)).view(rows, heads, 1, -1)
    if bias is not None:
        scores += bias
    chances = scores.softmax(-1).view(len(grouped), -1, keys.shape[2])
    return torch.bmm(chances, values.flatten(0, 1)).view(rows, heads, 1, width)
