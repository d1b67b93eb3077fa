"""A teacher's top-k in the place of its whole distribution. Shapes: V vocabulary, K kept tokens; leading dimensions are free."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gkd_rl.objective.numerics import LOG_FLOOR, TINY

Tail = Literal["bucket", "renormalise"]


def restrict(log_probs: Tensor, tail: Tail) -> Tensor:
    """Log-probabilities of kept tokens [..., K] as a distribution: renormalised [..., K] or with a tail bucket [..., K+1].

    Both are proper distributions, so their divergence is zero only where teacher and student agree. The bare truncation is not:
    its minimum drains the student's mass from the kept tokens.
    """
    if tail == "renormalise":
        return (log_probs - log_probs.logsumexp(-1, keepdim=True)).clamp_min(LOG_FLOOR)
    rest = (1 - log_probs.exp().sum(-1, keepdim=True)).clamp_min(TINY)
    return torch.cat([log_probs, rest.log()], dim=-1)


def on_top_k(lp: Tensor, lq: Tensor, k: int, tail: Tail) -> tuple[Tensor, Tensor]:
    """Student and teacher log-probabilities [..., V] restricted to the teacher's k likeliest tokens."""
    kept = lq.topk(min(k, lq.shape[-1]), dim=-1)
    return restrict(lp.gather(-1, kept.indices), tail), restrict(kept.values, tail)
