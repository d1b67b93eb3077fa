"""Where each term counts: factors on the rows' weights. Shapes: B rows, N tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from gkd_rl.config.objective import GateConfig
from gkd_rl.types import Gates


def row_gates(rewards: Tensor, group: Tensor, config: GateConfig) -> Gates:
    """Each row's factors on reward and divergence, c = 1 where the reward reaches ``right_at``.

    Args:
        rewards: [B] fp32; NaN (no reward applies, dataset rows) counts as not right.
        group: [B] int64, groups whole.
        config: ``wrong``: divergence × (1−c); ``unsolved_group``: divergence only where no row of the group is right;
            ``right_reward_wrong_divergence``: reward × c, divergence × (1−c) (SRPO). ``sign_agreement`` works on tokens inside
            the objective (``sign_agreement`` below) and leaves rows as they are.
    """
    right = (rewards >= config.right_at).float()
    everything = torch.ones_like(right)
    if config.kind == "wrong":
        return Gates(everything, 1 - right)
    if config.kind == "unsolved_group":
        _, index = group.unique(return_inverse=True)
        solved = torch.zeros_like(right).index_add(0, index, right)[index]
        return Gates(everything, (solved == 0).float())
    if config.kind == "right_reward_wrong_divergence":
        return Gates(right, 1 - right)
    return Gates(everything, everything)


def sign_agreement(teacher_log_ratio: Tensor, advantages: Tensor) -> Tensor:
    """1 where log pT − log pS of the sampled token has the advantage's sign, else 0: [N], [N] → [N]."""
    return (teacher_log_ratio * advantages > 0).to(advantages.dtype)
