"""Divergences between a teacher q and a student p over a vocabulary, with their derivatives in the student's logits.

Shapes: V outcomes in the last dimension; leading dimensions are free. A divergence is one function from log-probabilities to a pair

* ``value`` [..., V]: its sum over V is the divergence D;
* ``pull`` [..., V]: p·∂D/∂p up to a multiple of p, from which ∂D/∂z = pull − p·Σ pull for the student's logits z.

The dense objective differentiates the value and never looks at the pull; the fused one uses the pull. A test compares them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from gkd_rl.config.objective import DivergenceConfig
from gkd_rl.objective.numerics import TINY, log_probs, not_below_zero
from gkd_rl.objective.top_k import Tail, on_top_k
from gkd_rl.objective.validate import check_divergence

Pointwise = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(log p, log q, p, q), all [..., V], and the teacher's doubt H(q)/log V [..., 1] → (value, pull)."""


def forward_kl(lp: Tensor, lq: Tensor, p: Tensor, q: Tensor, doubt: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q‖p) = Σ q (log q − log p)."""
    return q * (lq - lp), -q


def reverse_kl(lp: Tensor, lq: Tensor, p: Tensor, q: Tensor, doubt: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p‖q) = Σ p (log p − log q)."""
    value = p * (lp - lq)
    return value, value


def gjsd(beta: float) -> Pointwise:
    """Generalised JSD, β·KL(q‖m) + (1−β)·KL(p‖m) with m = βq + (1−β)p, 0 < β < 1 (GKD, arXiv 2306.13649, eq. 1)."""

    def pointwise(lp: Tensor, lq: Tensor, p: Tensor, q: Tensor, doubt: Tensor) -> tuple[Tensor, Tensor]:
        log_m = torch.log(torch.clamp_min(beta * q + (1 - beta) * p, TINY))
        pull = (1 - beta) * p * (lp - log_m)
        return beta * q * (lq - log_m) + pull, pull

    return pointwise


def skew_forward_kl(skew: float) -> Pointwise:
    """KL(q ‖ a·q + (1−a)·p) with a = skew (DistiLLM, arXiv 2402.03898)."""

    def pointwise(lp: Tensor, lq: Tensor, p: Tensor, q: Tensor, doubt: Tensor) -> tuple[Tensor, Tensor]:
        m = torch.clamp_min(skew * q + (1 - skew) * p, TINY)
        return q * (lq - torch.log(m)), -(1 - skew) * q * (p / m)

    return pointwise


def skew_reverse_kl(skew: float) -> Pointwise:
    """KL(p ‖ a·p + (1−a)·q) with a = skew (DistiLLM, arXiv 2402.03898)."""

    def pointwise(lp: Tensor, lq: Tensor, p: Tensor, q: Tensor, doubt: Tensor) -> tuple[Tensor, Tensor]:
        m = torch.clamp_min(skew * p + (1 - skew) * q, TINY)
        value = p * (lp - torch.log(m))
        return value, value - skew * p * (p / m)

    return pointwise


def entropy_mixed(lp: Tensor, lq: Tensor, p: Tensor, q: Tensor, doubt: Tensor) -> tuple[Tensor, Tensor]:
    """w·KL(q‖p) + (1−w)·KL(p‖q) with w = H(q)/log V: covers an undecided teacher's modes, follows a sure one."""
    forward, forward_pull = forward_kl(lp, lq, p, q, doubt)
    reverse, reverse_pull = reverse_kl(lp, lq, p, q, doubt)
    return doubt * forward + (1 - doubt) * reverse, doubt * forward_pull + (1 - doubt) * reverse_pull


def total_variation(lp: Tensor, lq: Tensor, p: Tensor, q: Tensor, doubt: Tensor) -> tuple[Tensor, Tensor]:
    """½ Σ |p − q| (f-distill, arXiv 2307.15190, section 2)."""
    gap = p - q
    return gap.abs() / 2, p * gap.sign() / 2


KINDS: dict[str, Callable[[DivergenceConfig], Pointwise]] = {
    "gjsd": lambda config: {0.0: forward_kl, 1.0: reverse_kl}.get(config.beta) or gjsd(config.beta),
    "forward_kl": lambda config: forward_kl,
    "reverse_kl": lambda config: reverse_kl,
    "skew_forward_kl": lambda config: skew_forward_kl(config.skew),
    "skew_reverse_kl": lambda config: skew_reverse_kl(config.skew),
    "entropy_mixed": lambda config: entropy_mixed,
    "total_variation": lambda config: total_variation,
}
"""The divergences that ``DivergenceConfig.kind`` can name."""


def pointwise_of(config: DivergenceConfig) -> Pointwise:
    """The configured divergence as a pointwise function, without the factor of ``rescale``."""
    return KINDS[config.kind](config)


def scale_of(config: DivergenceConfig) -> float:
    """1/(β(1−β)) where ``rescale`` asks for it; the end points are KLs already and keep 1."""
    if config.rescale and config.kind == "gjsd" and 0 < config.beta < 1:
        return 1 / (config.beta * (1 - config.beta))
    return 1.0


def divergence_of(lp: Tensor, lq: Tensor, config: DivergenceConfig, outcomes: Tensor | None = None) -> Tensor:
    """The configured divergence [...] of log-probabilities [..., V], differentiable in ``lp``.

    ``outcomes`` [..., 1]: how many of the V are any; the others are ``LOG_FLOOR`` on both sides.
    """
    q = lq.exp()
    most = math.log(max(q.shape[-1], 2)) if outcomes is None else outcomes.clamp_min(2).to(q.dtype).log()
    doubt = -(q * lq).sum(-1, keepdim=True) / most
    value, _ = pointwise_of(config)(lp, lq, lp.exp(), q, doubt)
    return scale_of(config) * not_below_zero(value.sum(-1))


def token_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    kind: Literal["gjsd", "forward_kl", "reverse_kl", "skew_forward_kl", "skew_reverse_kl", "entropy_mixed", "total_variation"] = "gjsd",
    beta: float = 0.5,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
    skew: float = 0.1,
    rescale: bool = False,
    top_k: int | None = None,
    tail: Tail = "bucket",
    mask: Tensor | None = None,
) -> Tensor:
    """Divergence of each token, differentiable in the student's logits, reduced in fp32.

    Args:
        student_logits: [..., V], any float dtype; −inf entries are outcomes of probability 0.
        teacher_logits: [..., V], the same shape; no gradient flows into them.
        kind: ``gjsd`` β·KL(q‖m) + (1−β)·KL(p‖m), m = βq + (1−β)p, with KL(q‖p) at β=0 and KL(p‖q) at β=1 (q teacher, p student);
            ``forward_kl`` KL(q‖p); ``reverse_kl`` KL(p‖q); ``skew_forward_kl`` KL(q‖aq+(1−a)p); ``skew_reverse_kl``
            KL(p‖ap+(1−a)q); ``entropy_mixed`` w·KL(q‖p) + (1−w)·KL(p‖q), w = H(q)/log V; ``total_variation`` ½ Σ |p − q|.
        beta: β of ``gjsd``.
        temperature: divides the student's logits, and the teacher's unless ``teacher_temperature`` is given.
        teacher_temperature: divides the teacher's logits.
        skew: a of the skew divergences.
        rescale: divide ``gjsd`` by β(1−β).
        top_k: compare only the teacher's k likeliest tokens, with
        tail: the rest in one ``bucket``, or both distributions ``renormalise``-d over the k.
        mask: [...] bool; where False the value is 0 and logits may hold anything.

    Returns:
        [...] fp32 (fp64 for fp64 logits), ≥ 0.

    Raises:
        ValueError: the shapes differ, or a parameter is out of its range.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student and teacher logits differ in shape: {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}; cut both "
            "to the tokenizer's vocabulary first."
        )
    config = DivergenceConfig(
        kind=kind, beta=beta, temperature=temperature, teacher_temperature=teacher_temperature, skew=skew, rescale=rescale
    )
    check_divergence(config)
    if mask is not None:
        student_logits = student_logits.masked_fill(~mask[..., None], 0.0)
        teacher_logits = teacher_logits.masked_fill(~mask[..., None], 0.0)
    lp = log_probs(student_logits, temperature)
    lq = log_probs(teacher_logits.detach(), temperature if teacher_temperature is None else teacher_temperature)
    if top_k is not None:
        lp, lq = on_top_k(lp, lq, top_k, tail)
    values = divergence_of(lp, lq, config)
    return values if mask is None else values * mask
