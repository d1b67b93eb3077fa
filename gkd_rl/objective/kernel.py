"""The arithmetic on one tile of logits: what the terms need of each token, and the gradient in the student's logits.

Both functions are pure tensor code over tiles [n, V] with row-wise reductions, so that a compiler fuses each into one sweep over
the tile. Logits come in fp32. Shapes: n tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.objective.divergence import pointwise_of, scale_of
from gkd_rl.objective.numerics import LOG_FLOOR
from gkd_rl.objective.target import teacher_temperature


LONGEST_SUM = 4096
"""The compiler adds vectors of longer sums through a slow, more exact helper; two levels need none."""


class Tiles(NamedTuple):
    """Logits [n, V] of one chunk; None where no term needs the model."""

    student: Tensor
    teacher: Tensor | None
    reference: Tensor | None


class Rows(NamedTuple):
    """Figures of each token of a chunk, [n] each."""

    lse: Tensor
    """log Σ exp of the student's logits"""
    tempered_lse: Tensor
    """the same at the divergence's temperature"""
    teacher_lse: Tensor
    reference_lse: Tensor
    target_lse: Tensor
    """normaliser of the extrapolated target"""
    entropy: Tensor
    reference_kl: Tensor
    divergence: Tensor
    """full-vocabulary divergence, rescaled"""
    pull: Tensor
    """Σ pull of the divergence (see ``divergence.py``)"""
    forward_kl: Tensor
    reverse_kl: Tensor
    agreement: Tensor


class Slopes(NamedTuple):
    """Derivative of the loss in each token's quantities, [n] each."""

    logprob: Tensor
    entropy: Tensor
    divergence: Tensor
    reference_kl: Tensor


def has_dense_divergence(config: ObjectiveConfig) -> bool:
    """Whether the divergence is taken over the whole vocabulary."""
    return config.divergence.estimator == "full"


def _log_probs(logits: Tensor, temperature: float, lse: Tensor) -> Tensor:
    scaled = logits if temperature == 1.0 else logits / temperature
    return torch.clamp_min(scaled - lse[:, None], LOG_FLOOR)


def row_sum(values: Tensor) -> Tensor:
    """Σ over the vocabulary [n], in two levels: short inner sums compile to plain vector code and round less."""
    blocks = next((b for b in range(-(-values.shape[-1] // LONGEST_SUM), 257) if values.shape[-1] % b == 0), 1)
    return values.unflatten(-1, (blocks, -1)).sum(-1).sum(-1)


def _lse(logits: Tensor, temperature: float) -> Tensor:
    scaled = logits if temperature == 1.0 else logits / temperature
    highest = scaled.amax(-1)
    return highest + row_sum(torch.exp(scaled - highest[:, None])).log()


def same_top1(student: Tensor, teacher: Tensor) -> Tensor:
    """1 where a likeliest token of the teacher is one of the student's [n], without indices: maxima compile to vector code."""
    at_teachers = torch.where(teacher == teacher.amax(-1, keepdim=True), student, -torch.inf).amax(-1)
    return (at_teachers == student.amax(-1)).to(student.dtype)


def _mixed(tiles: Tiles, teacher_lse: Tensor, reference_lse: Tensor, config: ObjectiveConfig) -> Tensor:
    """λ·log pT + (1−λ)·log pRef before normalisation (see ``target.py``)."""
    assert tiles.teacher is not None and tiles.reference is not None
    temperature, weight = teacher_temperature(config.divergence), config.divergence.extrapolation
    teacher = _log_probs(tiles.teacher, temperature, teacher_lse)
    return weight * teacher + (1 - weight) * _log_probs(tiles.reference, temperature, reference_lse)


def target_of(tiles: Tiles, teacher_lse: Tensor, reference_lse: Tensor, target_lse: Tensor, config: ObjectiveConfig) -> Tensor:
    """log q [n, V] from its normalisers (see ``target.py``)."""
    assert tiles.teacher is not None
    if config.divergence.extrapolation == 1.0:
        return _log_probs(tiles.teacher, teacher_temperature(config.divergence), teacher_lse)
    return torch.clamp_min(_mixed(tiles, teacher_lse, reference_lse, config) - target_lse[:, None], LOG_FLOOR)


def row_figures(tiles: Tiles, config: ObjectiveConfig) -> Rows:
    """All figures of each token that need the whole row of logits; those of absent models are 0."""
    student, teacher, reference = tiles
    temperature = config.divergence.temperature
    lse = _lse(student, 1.0)
    zero = torch.zeros_like(lse)
    lp = _log_probs(student, 1.0, lse)
    entropy = -row_sum(lp.exp() * lp)
    reference_kl = reference_lse = target_lse = zero
    if reference is not None:
        reference_kl = row_sum(lp.exp() * (lp - _log_probs(reference, 1.0, _lse(reference, 1.0))))
        reference_lse = _lse(reference, teacher_temperature(config.divergence))
    if teacher is None:
        return Rows(lse, lse, zero, zero, zero, entropy, reference_kl, zero, zero, zero, zero, zero)
    teacher_lse = _lse(teacher, teacher_temperature(config.divergence))
    if config.divergence.extrapolation != 1.0:
        target_lse = _lse(_mixed(tiles, teacher_lse, reference_lse, config), 1.0)
    tempered_lse = lse if temperature == 1.0 else _lse(student, temperature)
    lp = _log_probs(student, temperature, tempered_lse)
    lq = target_of(tiles, teacher_lse, reference_lse, target_lse, config)
    p, q = lp.exp(), lq.exp()
    divergence = pull = zero
    if has_dense_divergence(config):
        value, pulls = pointwise_of(config.divergence)(lp, lq, p, q)
        divergence, pull = scale_of(config.divergence) * torch.clamp_min(row_sum(value), 0), row_sum(pulls)
    gap = lp - lq
    forward, reverse = -row_sum(q * gap), row_sum(p * gap)
    return Rows(
        *(lse, tempered_lse, teacher_lse, reference_lse, target_lse, entropy, reference_kl, divergence, pull, forward, reverse),
        agreement=same_top1(student, teacher if config.divergence.extrapolation == 1.0 else lq),
    )


def logit_gradient(tiles: Tiles, rows: Rows, slopes: Slopes, config: ObjectiveConfig, soft_cap: float | None) -> Tensor:
    """Σ over the terms of slope × ∂(token quantity)/∂logits [n, V] before the cap, but for what single tokens add (``add_at``).

    With p = softmax(z): ∂log p_y/∂z = e_y − p; ∂H/∂z = −p(log p + H); ∂KL(p‖r)/∂z = p(log p − log r − KL); ∂D/∂z = (pull − pT·Σ pull)/T.
    For a top-k divergence ``slopes.divergence`` holds the sum of its slopes in the kept log-probabilities.
    """
    student, teacher, reference = tiles
    lp = _log_probs(student, 1.0, rows.lse)
    p = lp.exp()
    factor = -slopes.logprob[:, None]
    if config.surrogate.entropy_weight:
        factor = factor - slopes.entropy[:, None] * (lp + rows.entropy[:, None])
    if config.surrogate.reference_kl_weight:
        assert reference is not None
        log_reference = _log_probs(reference, 1.0, _lse(reference, 1.0))
        factor = factor + slopes.reference_kl[:, None] * (lp - log_reference - rows.reference_kl[:, None])
    gradient = p * factor
    temperature, slope = config.divergence.temperature, slopes.divergence[:, None]
    if teacher is not None and config.divergence.estimator in ("full", "top_k"):
        if temperature != 1.0:
            lp = _log_probs(student, temperature, rows.tempered_lse)
            p = lp.exp()
        if has_dense_divergence(config):
            lq = target_of(tiles, rows.teacher_lse, rows.reference_lse, rows.target_lse, config)
            _, pull = pointwise_of(config.divergence)(lp, lq, p, lq.exp())
            gradient = gradient + slope * (scale_of(config.divergence) / temperature) * (pull - p * rows.pull[:, None])
        else:
            gradient = gradient - slope / temperature * p
    return gradient if soft_cap is None else gradient * cap_slope(student, soft_cap)


def cap_slope(logits: Tensor, soft_cap: float) -> Tensor:
    """Derivative of cap·tanh(x/cap) as a function of its value: 1 − (z/cap)²."""
    return 1 - (logits / soft_cap).square()


def add_at(gradient: Tensor, student: Tensor, token_ids: Tensor, slope: Tensor, soft_cap: float | None) -> None:
    """Adds to the gradient [n, V] what the log-probabilities of tokens [n, K] with slopes [n, K] put on those tokens, in place.

    ``student`` [n, K] holds their logits.
    """
    gradient.scatter_add_(-1, token_ids, slope if soft_cap is None else slope * cap_slope(student, soft_cap))
