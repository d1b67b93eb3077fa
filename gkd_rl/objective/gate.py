"""Where each term counts: factors on the rows' weights. Shapes: B rows, N tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gkd_rl.config.objective import GateConfig
from gkd_rl.types import Gates


def everywhere(right: Tensor, group: Tensor) -> Gates:
    """Both terms on all rows."""
    return Gates(torch.ones_like(right), torch.ones_like(right))


def wrong(right: Tensor, group: Tensor) -> Gates:
    """Divergence × (1 − c)."""
    return Gates(torch.ones_like(right), 1 - right)


def unsolved_group(right: Tensor, group: Tensor) -> Gates:
    """Divergence only where no row of the group is right."""
    _, index = group.unique(return_inverse=True)
    solved = torch.zeros_like(right).index_add(0, index, right)[index]
    return Gates(torch.ones_like(right), (solved == 0).to(right.dtype))


def right_reward_wrong_divergence(right: Tensor, group: Tensor) -> Gates:
    """Reward × c and divergence × (1 − c) (SRPO)."""
    return Gates(right, 1 - right)


KINDS: dict[str, Callable[[Tensor, Tensor], Gates]] = {
    "none": everywhere,
    "wrong": wrong,
    "unsolved_group": unsolved_group,
    "right_reward_wrong_divergence": right_reward_wrong_divergence,
    "sign_agreement": everywhere,  # acts on tokens, inside the objective
}
"""The gates that ``GateConfig.kind`` can name: (c [B], group [B]) → factors."""


def row_gates(rewards: Tensor, group: Tensor, config: GateConfig) -> Gates:
    """Each row's factors on reward and divergence, from c = 1 where its reward reaches ``right_at``.

    Args:
        rewards: [B] fp32; NaN (no reward applies, dataset rows) counts as not right.
        group: [B] int64, groups whole.
        config: which gate.
    """
    return KINDS[config.kind]((rewards >= config.right_at).float(), group)


def sign_agreement(teacher_log_ratio: Tensor, advantages: Tensor) -> Tensor:
    """1 where log pT − log pS of the sampled token has the advantage's sign, else 0: [N], [N] → [N]."""
    return (teacher_log_ratio * advantages > 0).to(advantages.dtype)
