"""From rewards of whole groups to advantages. Shapes: B rows."""

from __future__ import annotations

import torch
from torch import Tensor

from gkd_rl.config.objective import AdvantageConfig

STD_FLOOR = 1e-4
"""Added to the group's standard deviation (as TRL does)."""


def advantages(rewards: Tensor, group: Tensor, config: AdvantageConfig) -> Tensor:
    """Advantage of each row; rows whose reward is NaN get 0 and are left out of every baseline.

    Args:
        rewards: [B] fp32, NaN where no reward applies.
        group: [B] int64; rows of one prompt share a number, and groups are whole.
        config: ``rloo`` r − mean of the others (arXiv 2402.14740); ``grpo`` (r − mean) / (std + 1e-4), std with n−1 (arXiv
            2402.03300); ``dr_grpo`` r − mean (arXiv 2503.20783); ``batch`` r − mean of all rows.
    """
    applies = ~rewards.isnan()
    known = torch.where(applies, rewards, 0.0)
    if config.kind == "batch":
        group = torch.zeros_like(group)
    _, index = group.unique(return_inverse=True)
    sums = known.new_zeros(int(index.max()) + 1 if len(index) else 0)
    size = sums.index_add(0, index, applies.to(known.dtype))[index].clamp_min(1)
    centred = torch.where(applies, known - sums.index_add(0, index, known)[index] / size, 0.0)
    if config.kind == "rloo":
        # r − (Σ − r)/(n − 1) = (r − mean)·n/(n − 1)
        return centred * size / (size - 1).clamp_min(1)
    if config.kind == "grpo":
        variance = sums.index_add(0, index, centred.square())[index] / (size - 1).clamp_min(1)
        return centred / (variance.sqrt() + STD_FLOOR)
    return centred
