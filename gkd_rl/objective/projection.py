"""A head applied to chunks of hidden states, and the way back. Shapes: N tokens, n tokens of a chunk, V vocabulary, H hidden."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gkd_rl.objective.numerics import at_least_fp32
from gkd_rl.objective.products import add_product_, times_transposed
from gkd_rl.types import Head


class Projection:
    """Logits cap(scale·(h Wᵀ + b)) of chunks, in fp32 (fp64 stays).

    The scale is applied to the narrow side, the hidden states. Half-precision weights are widened once on a CPU, whose
    half-precision products are slow; on a GPU the product itself accumulates and returns fp32.
    """

    def __init__(self, hidden: Tensor, head: Head) -> None:
        hidden, weight = hidden.detach(), head.weight.detach()
        on_gpu = hidden.device.type == "cuda"
        self.hidden = hidden if on_gpu else at_least_fp32(hidden)
        self.weight = weight.to(self.hidden.dtype)
        self.bias = None if head.bias is None else at_least_fp32(head.bias.detach()) * head.scale
        self.scale, self.soft_cap = head.scale, head.soft_cap
        self.dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32

    def _scaled(self, where: slice | Tensor) -> Tensor:
        hidden = self.hidden[where]
        return hidden if self.scale == 1.0 else hidden * self.scale

    @property
    def vocabulary(self) -> int:
        """V"""
        return len(self.weight)

    def logits(self, where: slice | Tensor) -> Tensor:
        """Logits of a chunk, or of tokens by number, [n, V]."""
        logits = times_transposed(self._scaled(where), self.weight, self.dtype)
        if self.bias is not None:
            logits += self.bias
        return logits if self.soft_cap is None else logits.div_(self.soft_cap).tanh_().mul_(self.soft_cap)

    def to_hidden(self, gradient: Tensor) -> Tensor:
        """Gradient in the hidden states [n, H] from that in the uncapped logits [n, V]."""
        back = times_transposed(gradient.to(self.weight.dtype), self.weight.T, self.dtype)
        return back if self.scale == 1.0 else back * self.scale

    def add_to_weight_(self, out: Tensor, gradient: Tensor, where: slice) -> None:
        """out ← out + the chunk's part of the weight's gradient [V, H]."""
        add_product_(out, gradient.to(self.weight.dtype), self._scaled(where))

    def add_to_bias_(self, out: Tensor, gradient: Tensor) -> None:
        """out ← out + the chunk's part of the bias's gradient [V]."""
        out += gradient.sum(0) * self.scale


class Mixture:
    """Logits of Σ_m w_m·softmax(z_m) of chunks: log of the mixture, or a single teacher's own logits where its weight is 1."""

    def __init__(self, parts: Sequence[Projection], weights: Tensor) -> None:
        self.parts = parts
        self.weights = weights.to(parts[0].dtype)
        """[N, M]"""
        assert all(part.vocabulary == self.vocabulary for part in parts), "heads are cut to one vocabulary"

    @property
    def vocabulary(self) -> int:
        """V"""
        return self.parts[0].vocabulary

    def logits(self, where: slice) -> Tensor:
        """Logits of a chunk [n, V]."""
        weights = self.weights[where]
        tile = weights.new_full((len(weights), self.vocabulary), -torch.inf)
        for number, part in enumerate(self.parts):
            rows = weights[:, number].nonzero()[:, 0]
            if not len(rows):
                continue
            logits, share = part.logits(rows + where.start), weights[rows, number, None]
            if bool((share == 1).all()):
                tile[rows] = logits
            else:
                tile[rows] = torch.logaddexp(tile[rows], logits.log_softmax(-1) + share.log())
        return tile
