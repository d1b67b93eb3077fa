"""What is measured beside the loss: sums over tokens, which add up over micro-batches and ranks, and the means made of them.

Shapes: N tokens, M tokens on which the terms' gradients are compared, H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.objective.surrogate import clip_bounds
from gkd_rl.objective.terms import Losses, Streams, TokenValues, divergence_of_tokens, ratio_of


@dataclass(frozen=True)
class TeacherView:
    """How student and teacher compare at each token, at the divergence's temperatures. No gradient."""

    forward_kl: Tensor | None
    """[N] KL(q‖p); None where the teacher gives only some tokens"""
    reverse_kl: Tensor | None
    """[N] KL(p‖q); None likewise"""
    top1_agreement: Tensor | None
    """[N] 1 where both have the same likeliest token; None where the teacher gives only the sampled one"""
    student_top_k_mass: Tensor | None = None
    """[N] student's probability of the teacher's k likeliest tokens; None unless the divergence is on the top-k"""
    teacher_top_k_mass: Tensor | None = None
    """[N]"""
    spans: Tensor | None = None
    """[N] 1 where a span of text begins; like all that follows, of a teacher with another tokenizer alone"""
    aligned_tokens: Tensor | None = None
    """[N] 1 in spans whose text both sides have"""
    one_to_one_tokens: Tensor | None = None
    """[N] 1 where the span is one token of either side"""
    student_matched_mass: Tensor | None = None
    """[N] student's probability of all outcomes but the rest, where a span begins"""
    teacher_matched_mass: Tensor | None = None
    """[N]"""


@torch.no_grad()
def sums_of(losses: Losses, values: TokenValues, streams: Streams, view: TeacherView | None, config: ObjectiveConfig) -> dict[str, Tensor]:
    """Sums over the micro-batch's tokens, fp32 scalars; ``summarise`` says what each mean is."""
    reward_on, imitated = streams.reward != 0, streams.cross_entropy != 0
    sums = {
        "tokens": torch.ones_like(values.logprob).sum(),
        "reward_loss": losses.reward.sum(),
        "divergence_loss": losses.divergence.sum(),
        "cross_entropy_loss": losses.cross_entropy.sum(),
        "entropy": values.entropy.sum(),
        "logprob": values.logprob.sum(),
        "cross_entropy": -(values.logprob * imitated).sum(),
        "cross_entropy_tokens": imitated.sum(),
        **_policy_sums(values, streams, reward_on, config),
    }
    if values.reference_kl is not None:
        sums["reference_kl"] = values.reference_kl.sum()
    if view is not None:
        seen: dict[str, Tensor | None] = {_LOGGED_AS.get(item.name, item.name): getattr(view, item.name) for item in fields(view)}
        sums |= {"teacher_tokens": sums["tokens"], "divergence": divergence_of_tokens(values, config).sum()}
        sums |= {name: value.sum() for name, value in seen.items() if value is not None}
    return {name: value.detach().float() for name, value in sums.items()}


def _policy_sums(values: TokenValues, streams: Streams, on: Tensor, config: ObjectiveConfig) -> dict[str, Tensor]:
    ratio = ratio_of(values, streams, config)
    low, high = clip_bounds(config.surrogate)
    moved = (streams.old_logprobs - values.logprob).clamp(-20, 20)
    return {
        "reward_tokens": on.sum(),
        "ratio": (ratio * on).sum(),
        "clip_low": ((ratio < low) & (streams.advantages < 0) & on).sum(),
        "clip_high": ((ratio > high) & (streams.advantages > 0) & on).sum(),
        "policy_kl": (((-moved).exp() - 1 + moved) * on).sum(),
        "sampler_correction": (streams.correction * on).sum(),
    }


def compared_tokens(streams: Streams, stride: int) -> Tensor:
    """[M] numbers of the tokens on which the two terms' gradients are compared: every ``stride``-th, where both act alone."""
    every = torch.arange(0, len(streams.reward), max(stride, 1), device=streams.reward.device)
    both = (streams.reward != 0) & (streams.divergence != 0) & (streams.cross_entropy == 0)
    return every[both[every]] if stride else every[:0]


def interference(reward_grad: Tensor, divergence_grad: Tensor) -> dict[str, Tensor]:
    """Sums over the compared tokens of the two terms' gradients at the hidden states [M, H]: squares, products, oppositions."""
    dots = (reward_grad * divergence_grad).sum(-1)
    return {
        "compared_tokens": torch.full((), float(len(dots)), device=dots.device),
        "reward_grad_sq": reward_grad.square().sum(),
        "divergence_grad_sq": divergence_grad.square().sum(),
        "grad_dot": dots.sum(),
        "opposed_tokens": (dots < 0).sum().float(),
    }


_LOGGED_AS = {"top1_agreement": "teacher_top1_agreement"}

_MEANS = {
    "tokens": ("entropy", "logprob", "reference_kl"),
    "reward_tokens": ("ratio", "clip_low", "clip_high", "policy_kl", "sampler_correction"),
    "cross_entropy_tokens": ("cross_entropy",),
    "teacher_tokens": (
        *("divergence", "forward_kl", "reverse_kl", "teacher_top1_agreement"),
        *("student_top_k_mass", "teacher_top_k_mass", "aligned_tokens", "one_to_one_tokens"),
    ),
    "spans": ("student_matched_mass", "teacher_matched_mass"),
    "compared_tokens": ("opposed_tokens",),
}
"""Denominator → sums that are reported as means over it."""


def summarise(sums: Mapping[str, float | Tensor]) -> dict[str, float]:
    """Figures to log from sums added up over micro-batches and ranks.

    Losses stay sums (they are divided by global counts already); the quantities of ``_MEANS`` become means over their tokens, and
    ``opposed_tokens`` the share ``opposed_share``; ``reward_grad_norm`` and ``divergence_grad_norm`` are root mean squares over the
    compared tokens of the terms' gradients at the hidden states, ``grad_cosine`` the cosine between the two over all those tokens.
    """
    plain = {name: float(value) for name, value in sums.items()}
    figures = {name: value for name, value in plain.items() if name.endswith("_loss")}
    figures["loss"] = sum(figures.values())
    figures["tokens"] = plain.get("tokens", 0.0)
    for denominator, names in _MEANS.items():
        if plain.get(denominator):
            figures |= {name: plain[name] / plain[denominator] for name in names if name in plain}
    if "opposed_tokens" in figures:
        figures["opposed_share"] = figures.pop("opposed_tokens")
        figures |= _gradient_figures(plain)
    return figures


def _gradient_figures(sums: Mapping[str, float]) -> dict[str, float]:
    reward, divergence = math.sqrt(sums["reward_grad_sq"]), math.sqrt(sums["divergence_grad_sq"])
    root = math.sqrt(sums["compared_tokens"])
    return {
        "reward_grad_norm": reward / root,
        "divergence_grad_norm": divergence / root,
        "grad_cosine": sums["grad_dot"] / (reward * divergence) if reward * divergence > 0 else 0.0,
    }
