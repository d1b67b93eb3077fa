"""The policy gradient's surrogate: importance ratios, their clipping, and the sampler's correction. Shapes: N tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from gkd_rl.config.objective import CorrectionConfig, SurrogateConfig

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to ± this before the exponential: a stale token cannot overflow the sum."""


def sequence_sum(values: Tensor, index: Tensor) -> Tensor:
    """Each token's value replaced by the sum over its sequence: [N] values, [N] int64 sequence numbers → [N]."""
    rows = int(index.max()) + 1 if len(index) else 0
    return values.new_zeros(rows).index_add(0, index, values)[index]


def sequence_mean(values: Tensor, index: Tensor) -> Tensor:
    """Each token's value replaced by the mean over its sequence: [N], [N] → [N]."""
    return sequence_sum(values, index) / sequence_sum(torch.ones_like(values), index)


def clip_bounds(config: SurrogateConfig) -> tuple[float, float]:
    """Smallest and largest importance ratio that is not clipped."""
    low = -torch.inf if config.clip_low is None else 1 - config.clip_low
    high = torch.inf if config.clip_high is None else 1 + config.clip_high
    return low, high


def importance_ratio(log_ratio: Tensor) -> Tensor:
    """exp of a clamped log-ratio."""
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def clipped_surrogate(ratio: Tensor, advantages: Tensor, config: SurrogateConfig) -> Tensor:
    """min(ρA, clip(ρ, 1−ε_low, 1+ε_high)·A) [N], to be maximised (PPO, arXiv 1707.06347, eq. 7; two bounds: DAPO, 2503.14476)."""
    return torch.minimum(ratio * advantages, ratio.clamp(*clip_bounds(config)) * advantages)


def sampler_weights(policy: Tensor, sampler: Tensor, index: Tensor, config: CorrectionConfig) -> Tensor:
    """Importance weight [N] of the policy at sampling over the distribution really sampled from, truncated or masked.

    Token level: exp(policy − sampler); sequence level: the product over the sequence. ``truncate`` takes min(w, high) (TIS);
    ``mask`` sets weights outside [low, high] to 0 (IcePop).
    """
    if config.kind == "none":
        return torch.ones_like(policy)
    gap = policy - sampler
    weight = importance_ratio(sequence_sum(gap, index) if config.level == "sequence" else gap)
    if config.kind == "truncate":
        return weight.clamp_max(config.high)
    return torch.where((weight >= config.low) & (weight <= config.high), weight, torch.zeros_like(weight))
