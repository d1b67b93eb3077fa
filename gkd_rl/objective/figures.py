"""From block sums of the sweeps to figures of each token. Shapes: n tokens of a chunk, S blocks of the vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.objective.divergence import forward_kl, pointwise_of, reverse_kl, scale_of
from gkd_rl.objective.kernel import Blocks, Partials, Rows, has_dense_divergence

SecondSweep = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(normalisers of student and target, the teacher's doubt), [n, S] each → block sums of value and pull."""


class _Distribution:
    """Normalisers of one distribution from its block sums."""

    def __init__(self, blocks: Blocks) -> None:
        highest = blocks.highest.amax(-1, keepdim=True)
        self.blocks = blocks
        self.above = blocks.highest - highest
        """[n, S] the block's maximum less the row's"""
        share = self.above.exp()
        total = (share * blocks.total).sum(-1, keepdim=True)
        self.scale = share / total
        """[n, S] turns a block's Σ e^x·… into its part of an expectation"""
        self.log_total = total.log()
        """[n, 1] normaliser of the logits less the row's maximum"""
        self.highest = highest.squeeze(-1)
        """[n] the largest logit"""
        self.lse = (highest + self.log_total).squeeze(-1)
        """[n] normaliser of the logits"""

    def mean(self, sums: Tensor, constant: Tensor) -> Tensor:
        """Expectation [n] of a quantity with block sums Σ e^x·quantity [n, S], plus the block's constant [n, S]."""
        return (self.scale * (sums + self.blocks.total * constant)).sum(-1)

    def entropy(self) -> Tensor:
        """[n]"""
        return self.log_total.squeeze(-1) - self.mean(self.blocks.moment, self.above)

    def kl(self, other: _Distribution, gap: Tensor) -> Tensor:
        """KL(self‖other) [n] from block sums of the gap of their logits."""
        return self.mean(gap, self.above - other.above) + (other.log_total - self.log_total).squeeze(-1)


def figures_of(partials: Partials, vocabulary: int, second_sweep: SecondSweep, config: ObjectiveConfig) -> Rows:
    """Figures [n] of each token; runs the second sweep if the divergence needs it."""
    student = _Distribution(partials.student)
    zero = torch.zeros_like(student.lse)
    rows = Rows(*[zero] * len(Rows._fields))._replace(
        lse=student.lse, highest=student.highest, tempered_lse=student.lse, entropy=student.entropy()
    )
    if partials.reference is not None and partials.reference_gap is not None:
        reference = _Distribution(partials.reference)
        kl = student.kl(reference, partials.reference_gap)
        rows = rows._replace(reference_lse=reference.lse, reference_kl=kl.clamp_min(0))
    if partials.tempered is not None:
        student = _Distribution(partials.tempered)
        rows = rows._replace(tempered_lse=student.lse)
    if partials.target is None or partials.forward_gap is None or partials.reverse_gap is None or partials.at_top is None:
        return rows
    target = _Distribution(partials.target)
    forward, reverse = target.kl(student, partials.forward_gap), student.kl(target, partials.reverse_gap)
    same_top = ((partials.at_top == 0) & (target.above == 0) & (student.above == 0)).any(-1)
    rows = rows._replace(
        target_lse=target.lse,
        doubt=target.entropy() / math.log(max(vocabulary, 2)),
        forward_kl=forward.clamp_min(0),
        reverse_kl=reverse.clamp_min(0),
        agreement=same_top.to(forward.dtype),
    )
    if not has_dense_divergence(config):
        return rows
    value, pull = _divergence(rows, forward, reverse, target.above.shape[-1], second_sweep, config)
    return rows._replace(divergence=scale_of(config.divergence) * value.clamp_min(0), pull=pull)


def _divergence(
    rows: Rows, forward: Tensor, reverse: Tensor, blocks: int, second_sweep: SecondSweep, config: ObjectiveConfig
) -> tuple[Tensor, Tensor]:
    """Σ value and Σ pull [n]; the two KLs are known from the first sweep."""
    pointwise = pointwise_of(config.divergence)
    if pointwise is forward_kl:
        return forward, -torch.ones_like(forward)
    if pointwise is reverse_kl:
        return reverse, reverse
    per_block = (row[:, None].expand(-1, blocks).contiguous() for row in (rows.tempered_lse, rows.target_lse, rows.doubt))
    value, pull = second_sweep(*per_block)
    return value.sum(-1), pull.sum(-1)
