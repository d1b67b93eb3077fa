"""A head applied to chunks of hidden states, and the way back. Shapes: N tokens, n tokens of a chunk, V vocabulary, H hidden."""

from __future__ import annotations

import torch
from torch import Tensor

from gkd_rl.objective.numerics import at_least_fp32
from gkd_rl.types import Head


class Projection:
    """Logits cap(scale·(h Wᵀ + b)) of chunks, in fp32 (fp64 stays).

    The scale is applied to the narrow side, the hidden states. Half-precision weights are widened once on a CPU, whose
    half-precision products are slow; on a GPU the product itself accumulates and returns fp32.
    """

    def __init__(self, hidden: Tensor, head: Head) -> None:
        widen = hidden.device.type != "cuda"
        self.hidden = at_least_fp32(hidden.detach()) if widen else hidden.detach()
        self.weight = at_least_fp32(head.weight.detach()) if widen else head.weight.detach().to(hidden.dtype)
        self.bias = None if head.bias is None else at_least_fp32(head.bias.detach()) * head.scale
        self.scale, self.soft_cap = head.scale, head.soft_cap

    @property
    def dtype(self) -> torch.dtype:
        """Type of the logits."""
        return torch.float64 if self.hidden.dtype == torch.float64 else torch.float32

    def scaled(self, where: slice) -> Tensor:
        """scale·h of a chunk [n, H]."""
        hidden = self.hidden[where]
        return hidden if self.scale == 1.0 else hidden * self.scale

    def logits(self, where: slice, out: Tensor) -> Tensor:
        """Writes the logits of a chunk into ``out`` [n, V] and returns it."""
        product(self.scaled(where), self.weight.T, out)
        if self.bias is not None:
            out += self.bias
        return out if self.soft_cap is None else out.div_(self.soft_cap).tanh_().mul_(self.soft_cap)

    def to_hidden(self, gradient: Tensor) -> Tensor:
        """Gradient in the hidden states [n, H] from that in the uncapped logits [n, V]."""
        back = gradient.to(self.weight.dtype) @ self.weight
        return back if self.scale == 1.0 else back * self.scale


def product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """out ← left·right; half-precision factors give an fp32 product."""
    if left.dtype == out.dtype:
        torch.mm(left, right, out=out)
    else:
        torch.mm(left, right, out_dtype=out.dtype, out=out)


def accumulate(out: Tensor, left: Tensor, right: Tensor) -> None:
    """out ← out + left·right with ``out`` in fp32 (fp64)."""
    if left.dtype == out.dtype:
        out.addmm_(left, right)
    else:
        torch.addmm(out, left, right, out_dtype=out.dtype, out=out)
