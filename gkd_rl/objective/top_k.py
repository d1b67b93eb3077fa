"""A teacher's top-k in the place of its whole distribution: taken from it, or all that is known of it.

Shapes: N tokens, V vocabulary, K kept tokens; leading dimensions are free.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gkd_rl.config.objective import DivergenceConfig
from gkd_rl.objective.numerics import LOG_FLOOR, TINY, at_least_fp32
from gkd_rl.objective.target import teacher_temperature
from gkd_rl.types import TokenBatch

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


class GivenTopK(NamedTuple):
    """What is known of a teacher that does not give its whole distribution, as the configured divergence needs it."""

    ids: Tensor
    """[N, K] its likeliest tokens; empty for an estimator that looks at the sampled token alone"""
    logprobs: Tensor
    """[N, K] their log-probabilities at the teacher's temperature, up to a constant of the row where that is not 1"""
    best: Tensor
    """[N, K] bool: the likeliest of them"""
    mass: Tensor | None
    """[N] what they hold; None at another temperature than 1, where it is not known"""
    token_logprobs: Tensor | None
    """[N] that of the token itself; None likewise"""

    def rows(self, where: slice) -> GivenTopK:
        """Those of some tokens."""
        return GivenTopK(*(None if value is None else value[where] for value in self))  # pyright: ignore[reportArgumentType]


def given_top_k(batch: TokenBatch, config: DivergenceConfig) -> GivenTopK | None:
    """The teacher's k likeliest tokens among those that the batch brings; None where it brings none.

    At a temperature T other than 1, log q/T is known up to the normaliser over the vocabulary, which renormalising removes.
    """
    if batch.teacher_top_ids is None or batch.teacher_top_logprobs is None or batch.teacher_logprobs is None:
        return None
    available, temperature = batch.teacher_top_ids.shape[-1], teacher_temperature(config)
    kept = at_least_fp32(batch.teacher_top_logprobs).clamp_min(LOG_FLOOR)
    kept = kept.topk(min(config.top_k, available) if config.estimator == "top_k" else min(1, available), dim=-1)
    return GivenTopK(
        ids=batch.teacher_top_ids.gather(-1, kept.indices),
        logprobs=(kept.values / temperature).clamp_min(LOG_FLOOR),
        best=kept.values == kept.values[:, :1],
        mass=kept.values.exp().sum(-1) if temperature == 1 else None,
        token_logprobs=at_least_fp32(batch.teacher_logprobs).clamp_min(LOG_FLOOR) if temperature == 1 else None,
    )


def agreement_with(given: GivenTopK, at_kept: Tensor, highest: Tensor) -> Tensor | None:
    """[N] 1 where a likeliest token of the teacher is a likeliest of the student; None where no token of the teacher is known.

    Args:
        given: the teacher's tokens.
        at_kept: [N, K] the student's logits (or log-probabilities) there.
        highest: [N] the student's largest.
    """
    if not given.ids.shape[-1]:
        return None
    return (at_kept.masked_fill(~given.best, -torch.inf).amax(-1) == highest).to(at_kept.dtype)
