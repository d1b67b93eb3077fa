"""Output projections: logits from hidden states. Shapes: N tokens, H hidden, V vocabulary."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gkd_rl.objective.numerics import at_least_fp32
from gkd_rl.objective.products import pack, packs, quick_product, times_transposed
from gkd_rl.types import Head


def in_fp32(head: Head) -> Head:
    """The head with fp32 weights (fp64 stays), to be made once where many small products use it."""
    return replace(head, weight=at_least_fp32(head.weight))


def packed_head(head: Head, rows: int) -> Head:
    """The head made ready for many products of about ``rows`` rows without gradient: in fp32, and packed where that is quicker."""
    head = in_fp32(head)
    return replace(head, packed=pack(head.weight, rows)) if packs(head.weight) else head


def logits_of(hidden: Tensor, head: Head) -> Tensor:
    """cap(scale·(hidden Wᵀ + b)) [N, V] in fp32 (fp64 stays)."""
    hidden, weight = at_least_fp32(hidden), at_least_fp32(head.weight)
    if torch.is_grad_enabled() or hidden.ndim != 2:
        logits = hidden @ weight.T
    elif head.packed is not None:
        logits = quick_product(hidden, head.packed)
    else:
        logits = times_transposed(hidden, weight, hidden.dtype)
    if head.bias is not None:
        logits = logits + head.bias
    if head.scale != 1:
        logits = logits * head.scale
    return logits if head.soft_cap is None else head.soft_cap * torch.tanh(logits / head.soft_cap)
