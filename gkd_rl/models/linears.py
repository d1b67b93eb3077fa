"""Linear layers through the quickest matrix product of the device, forward and backward.

On CPUs for which torch's BLAS has no good kernels (AMD's, with AVX-512) oneDNN takes less than half the time; ``products.py`` holds the
choice. Weights stay where they are; only while answers are sampled is there a packed copy of them. Shapes: N rows, K inputs, M outputs.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gkd_rl.objective.products import multiplies_quicker, pack, packs, quick_product


def quicken(module: nn.Module) -> None:
    """Have every ``nn.Linear`` of ``module`` take the quick route where there is one; subclasses may mean something else and are left."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.forward = types.MethodType(_forward, layer)


@contextmanager
def packed(module: nn.Module, rows: int, spared: nn.Module | None = None) -> Iterator[None]:
    """Within, products of about ``rows`` rows without gradient take a packed copy of the weights (``products.pack``), which has to be
    made anew when weights change. ``spared``: a layer that is left out. Where packing gains nothing, nothing is copied."""
    layers = [layer for layer in module.modules() if type(layer) is nn.Linear and layer is not spared and _is_packed(layer)]
    for layer in layers:
        layer.__dict__[_PACKED] = pack(layer.weight, rows)
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop(_PACKED, None)  # a sampler in another thread may have been here


_PACKED = "_packed_weight"


def _is_packed(layer: nn.Linear) -> bool:
    quickened = "forward" in layer.__dict__
    return quickened and not hasattr(layer.weight, "ds_id") and packs(layer.weight)


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return _product(x, layer.weight, layer.bias)
    rows = x.reshape(-1, x.shape[-1])
    ready = layer.__dict__.get(_PACKED)
    if ready is not None and not torch.is_grad_enabled():
        return quick_product(rows, ready, layer.bias).unflatten(0, x.shape[:-1])
    # ZeRO-3 has a linear function of its own, which expects its weights to come and go.
    if hasattr(layer.weight, "ds_id") or torch.is_autocast_enabled() or not multiplies_quicker(rows, layer.weight):
        return nn.functional.linear(x, layer.weight, layer.bias)
    if torch.is_grad_enabled():
        out = _Linear.apply(rows, layer.weight, layer.bias)
        assert isinstance(out, Tensor)
    else:
        out = quick_product(rows, layer.weight, layer.bias)
    return out.unflatten(0, x.shape[:-1])


@torch.library.custom_op("gkd_rl::linear", mutates_args=())
def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x·Wᵀ + b as one node of a compiled graph, whose own compiler would take torch's BLAS; no gradient flows through it."""
    rows = x.reshape(-1, x.shape[-1])
    if not multiplies_quicker(rows, weight):
        return nn.functional.linear(x, weight, bias)
    return quick_product(rows, weight, bias).unflatten(0, x.shape[:-1])


@_product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


class _Linear(torch.autograd.Function):
    """x·Wᵀ + b [N, M] of x [N, K], W [M, K] and b [M]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        return quick_product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        by_weight = None
        if needs_weight:  # the narrower factor comes first: oneDNN then rearranges less
            narrow = x.shape[1] <= gradient.shape[1]
            by_weight = quick_product(x.T, gradient.T).T if narrow else quick_product(gradient.T, x.T)
        return (
            quick_product(gradient, weight.T) if needs_x else None,
            by_weight,
            gradient.sum(0) if needs_bias else None,
        )
