"""Log-probabilities that stay finite. Shapes: V vocabulary; leading dimensions are free."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LOG_FLOOR = -1e5
"""Log-probabilities are clamped here, so that an excluded outcome (logit −inf) costs a finite amount and 0·log 0 is 0."""

TINY = 1e-37
"""Smallest mixture probability whose logarithm is taken: a normal number in fp32."""


class _Floor(torch.autograd.Function):
    """max(x, LOG_FLOOR) with the gradient of x: what an excluded outcome does to the others is the limit of small probabilities."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.clamp_min(LOG_FLOOR)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


def at_least_fp32(x: Tensor) -> Tensor:
    """``x`` in fp32, or unchanged if it is fp64 (finite-difference tests)."""
    return x if x.dtype == torch.float64 else x.float()


def log_probs(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) [..., V] in fp32 (fp64 stays), clamped below at ``LOG_FLOOR``."""
    logits = at_least_fp32(logits)
    if temperature != 1.0:
        logits = logits / temperature
    return _Floor.apply(logits.log_softmax(-1))  # pyright: ignore[reportReturnType]


def not_below_zero(x: Tensor) -> Tensor:
    """max(x, 0) in value with the gradient of x: removes rounding below zero from a quantity that cannot be negative."""
    return x + (x.clamp_min(0) - x).detach()
