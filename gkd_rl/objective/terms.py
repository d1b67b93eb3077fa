"""The terms of the objective as functions of per-token quantities. Dense and fused share them; only how those quantities and
their gradients come about differs. Shapes: N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.objective.gate import sign_agreement
from gkd_rl.objective.numerics import at_least_fp32
from gkd_rl.objective.sampled import k2, k3, later_log_ratios
from gkd_rl.objective.surrogate import clipped_surrogate, importance_ratio, sampler_weights, sequence_mean
from gkd_rl.types import GlobalCounts, TokenBatch


@dataclass(frozen=True)
class Streams:
    """What the batch says of each token, ready for the terms: weights are divided by the global counts, gaps are masked."""

    reward: Tensor
    """[N] w_r / count"""
    divergence: Tensor
    """[N] w_d / count"""
    cross_entropy: Tensor
    """[N] w_ce / count"""
    advantages: Tensor
    """[N] advantage × sampler correction; 0 where no reward applies"""
    old_logprobs: Tensor
    """[N]"""
    correction: Tensor
    """[N]"""
    sequence_index: Tensor
    """[N]"""
    sequence_log_ratio: Tensor | None = None
    """[N] log of the sequence's importance ratio, where ratios are per sequence"""
    teacher_returns: Tensor | None = None
    """[N] Σ R over later tokens, where the teacher's log-ratios are an advantage with a discount"""

    def rows(self, where: slice) -> Streams:
        """The streams of some tokens."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        part: dict[str, Any] = {name: value if value is None else value[where] for name, value in values.items()}
        return Streams(**part)


@dataclass(frozen=True)
class TokenValues:
    """Quantities of each token that the terms are made of: with gradient in the dense objective, leaves in the fused one."""

    logprob: Tensor
    """[N] log pS(y)"""
    entropy: Tensor
    """[N] H(pS)"""
    divergence: Tensor | None = None
    """[N] configured divergence, full or top-k; None if it comes from the sampled token, or there is no teacher"""
    teacher_logprob: Tensor | None = None
    """[N] log pT(y), no gradient"""
    reference_kl: Tensor | None = None
    """[N] KL(pS‖reference)"""


@dataclass(frozen=True)
class Losses:
    """Contribution of each token to the loss, [N] each."""

    reward: Tensor
    divergence: Tensor
    cross_entropy: Tensor

    def total(self) -> Tensor:
        """The loss, a scalar."""
        return (self.reward + self.divergence + self.cross_entropy).sum()


def streams_of(batch: TokenBatch, config: ObjectiveConfig, counts: GlobalCounts) -> Streams:
    """Divides weights by counts (0 if a term has no tokens) and replaces what does not apply, so that NaN there changes nothing."""
    reward, divergence, cross_entropy = (
        at_least_fp32(weights) / count if count else torch.zeros_like(at_least_fp32(weights))
        for weights, count in (
            (batch.reward_weights, counts.reward),
            (batch.divergence_weights, counts.divergence),
            (batch.cross_entropy_weights, counts.cross_entropy),
        )
    )
    sampled = (reward != 0) | ((divergence != 0) & (config.divergence.use != "loss"))
    old = batch.old_logprobs.masked_fill(~sampled, 0.0)
    sampler = batch.sampler_logprobs.masked_fill(~sampled, 0.0)
    correction = sampler_weights(old, sampler, batch.sequence_index, config.surrogate.correction)
    advantages = batch.advantages.masked_fill(reward == 0, 0.0) * correction
    return Streams(reward, divergence, cross_entropy, advantages, old, correction, batch.sequence_index)


def needs_whole_sequences(config: ObjectiveConfig) -> bool:
    """Whether a token's terms depend on log-probabilities of the other tokens of its sequence."""
    discounted = config.divergence.use != "loss" and config.divergence.discount > 0
    return config.surrogate.ratio == "sequence" or discounted


def with_sequences(streams: Streams, logprob: Tensor, teacher_logprob: Tensor | None, config: ObjectiveConfig) -> Streams:
    """Adds what depends on whole sequences, from the log-probabilities [N] of all tokens (no gradient)."""
    if config.surrogate.ratio == "sequence":
        log_ratio = logprob - anchor(streams, teacher_logprob, config)
        streams = replace(streams, sequence_log_ratio=sequence_mean(log_ratio, streams.sequence_index))
    if config.divergence.use != "loss" and config.divergence.discount > 0:
        assert teacher_logprob is not None
        returns = later_log_ratios(teacher_logprob - logprob, streams.sequence_index, config.divergence)
        streams = replace(streams, teacher_returns=returns)
    return streams


def anchor(streams: Streams, teacher_logprob: Tensor | None, config: ObjectiveConfig) -> Tensor:
    """Log-denominator [N] of the importance ratio: (1−a)·log pOld + a·log pT (TRRD with a = ``teacher_in_ratio``)."""
    share = config.surrogate.teacher_in_ratio
    if not share:
        return streams.old_logprobs
    assert teacher_logprob is not None
    return (1 - share) * streams.old_logprobs + share * teacher_logprob


def ratio_of(values: TokenValues, streams: Streams, config: ObjectiveConfig) -> Tensor:
    """Importance ratio [N], differentiable in the token's log-probability.

    ``none``: 1 with the gradient of log p; ``sequence``: the sequence's ratio with that times the gradient of the token's log p
    (GSPO-token, arXiv 2507.18071).
    """
    own = values.logprob - values.logprob.detach()
    if config.surrogate.ratio == "none":
        return own.exp()
    if config.surrogate.ratio == "sequence":
        assert streams.sequence_log_ratio is not None
        return importance_ratio(streams.sequence_log_ratio + own)
    return importance_ratio(values.logprob - anchor(streams, values.teacher_logprob, config))


def policy_advantages(values: TokenValues, streams: Streams, config: ObjectiveConfig) -> tuple[Tensor, Tensor]:
    """Weighted advantages [N] from the reward and, where they are used so, from the teacher's detached log-ratios."""
    reward = streams.reward * streams.advantages
    if config.divergence.use == "loss" or values.teacher_logprob is None:
        return reward, torch.zeros_like(reward)
    returns = streams.teacher_returns
    if returns is None:
        returns = values.teacher_logprob - values.logprob.detach()
    return reward, divergence_weights(values, streams, config) * streams.correction * returns


def divergence_weights(values: TokenValues, streams: Streams, config: ObjectiveConfig) -> Tensor:
    """The divergence's weights [N] behind the gate that works on tokens."""
    if config.gate.kind != "sign_agreement" or values.teacher_logprob is None:
        return streams.divergence
    log_ratio = values.teacher_logprob - values.logprob.detach()
    return streams.divergence * sign_agreement(log_ratio, streams.advantages)


def divergence_of_tokens(values: TokenValues, config: ObjectiveConfig) -> Tensor:
    """The divergence [N] before weights: full or top-k as given, or estimated from the sampled token; 0 without a teacher."""
    if values.divergence is not None:
        return values.divergence
    if values.teacher_logprob is None:
        return torch.zeros_like(values.logprob)
    log_ratio = values.teacher_logprob - values.logprob
    return {"k1": -log_ratio.detach(), "k2": k2(log_ratio), "k3": k3(log_ratio)}[config.divergence.estimator]


def losses_of(values: TokenValues, streams: Streams, config: ObjectiveConfig) -> Losses:
    """The terms of the objective, differentiable in the token values that carry a gradient."""
    by_reward, by_teacher = policy_advantages(values, streams, config)
    advantages = by_reward + by_teacher
    policy = -clipped_surrogate(ratio_of(values, streams, config), advantages, config.surrogate)
    # One surrogate over both advantages; what it says of each is split in their proportion, for the record.
    share = torch.where(advantages != 0, by_teacher / torch.where(advantages != 0, advantages, 1.0), 0.0)
    reward = policy * (1 - share) - config.surrogate.entropy_weight * streams.reward * values.entropy
    if values.reference_kl is not None:
        reward = reward + config.surrogate.reference_kl_weight * streams.reward * values.reference_kl
    divergence = policy * share
    if config.divergence.use != "advantage":
        divergence = divergence + divergence_weights(values, streams, config) * divergence_of_tokens(values, config)
    return Losses(reward, divergence, -streams.cross_entropy * values.logprob)
