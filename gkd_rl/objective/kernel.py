"""The arithmetic on one tile of logits: what the terms need of each token, and the gradient in the student's logits.

Both functions are pure tensor code over tiles [n, V] with row-wise reductions, so that a compiler fuses each into one sweep over
the tile. Logits come in fp32. Shapes: n tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.objective.divergence import forward_kl, pointwise_of, reverse_kl, scale_of
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
    """Figures of each token of a chunk, [n] each; those of absent models are 0."""

    lse: Tensor
    """log Σ exp of the student's logits"""
    tempered_lse: Tensor
    """the same at the divergence's temperature"""
    target_lse: Tensor
    """that of ``target_logits``"""
    reference_lse: Tensor
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


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature."""
    return logits if temperature == 1.0 else logits / temperature


def log_probs_of(logits: Tensor, lse: Tensor) -> Tensor:
    """Log-probabilities [n, K] of tempered logits [n, K] given their normaliser [n], clamped like ``numerics.log_probs``."""
    return torch.clamp_min(logits - lse[:, None], LOG_FLOOR)


def row_sum(values: Tensor) -> Tensor:
    """Σ over the vocabulary [n], in two levels: short inner sums compile to plain vector code and round less."""
    blocks = next((b for b in range(-(-values.shape[-1] // LONGEST_SUM), 257) if values.shape[-1] % b == 0), 1)
    return values.unflatten(-1, (blocks, -1)).sum(-1).sum(-1)


class _Side(NamedTuple):
    """A distribution that is not normalised yet."""

    highest: Tensor
    """[n, 1] largest logit"""
    shifted: Tensor
    """[n, V] logits less that, clamped"""
    raised: Tensor
    """[n, V] exponentials"""
    total: Tensor
    """[n] Σ of exponentials"""

    def lse(self) -> Tensor:
        return self.highest.squeeze(-1) + self.total.log()


def _side(logits: Tensor) -> _Side:
    highest = logits.amax(-1, keepdim=True)
    shifted = torch.clamp_min(logits - highest, LOG_FLOOR)
    raised = shifted.exp()
    return _Side(highest, shifted, raised, row_sum(raised))


def _kl(one: _Side, other: _Side) -> Tensor:
    """KL(one‖other) [n] from what is not normalised yet: one sweep over the tile serves normalisers and divergence."""
    gap = row_sum(one.raised * (one.shifted - other.shifted)) / one.total
    return gap - one.total.log() + other.total.log()


def target_logits(tiles: Tiles, config: ObjectiveConfig) -> Tensor:
    """Logits [n, V] of the distribution that the student is compared with (see ``target.py``), up to a constant of the row."""
    assert tiles.teacher is not None
    temperature, weight = teacher_temperature(config.divergence), config.divergence.extrapolation
    if weight == 1.0:
        return tempered(tiles.teacher, temperature)
    assert tiles.reference is not None, "validate_objective asks for a reference"
    teacher, reference = (_side(tempered(tile, temperature)).shifted for tile in (tiles.teacher, tiles.reference))
    return weight * teacher + (1 - weight) * reference


def row_figures(tiles: Tiles, config: ObjectiveConfig) -> Rows:
    """All figures of each token that need its whole row of logits."""
    student = _side(tiles.student)
    zero = torch.zeros_like(student.total)
    rows = Rows(student.lse(), *([zero] * 10))
    rows = rows._replace(
        tempered_lse=rows.lse, entropy=student.total.log() - row_sum(student.raised * student.shifted) / student.total
    )
    if tiles.reference is not None:
        reference = _side(tiles.reference)
        rows = rows._replace(reference_lse=reference.lse(), reference_kl=torch.clamp_min(_kl(student, reference), 0))
    return rows if tiles.teacher is None else _with_teacher(rows, student, tiles, config)


def _with_teacher(rows: Rows, student: _Side, tiles: Tiles, config: ObjectiveConfig) -> Rows:
    temperature = config.divergence.temperature
    if temperature != 1.0:
        student = _side(tempered(tiles.student, temperature))
    target = _side(target_logits(tiles, config))
    at_targets_top = torch.where(target.shifted == 0, student.shifted, -torch.inf).amax(-1)
    forward, reverse = _kl(target, student), _kl(student, target)
    rows = rows._replace(
        tempered_lse=student.lse(),
        target_lse=target.lse(),
        forward_kl=torch.clamp_min(forward, 0),
        reverse_kl=torch.clamp_min(reverse, 0),
        # Without indices: maxima compile to vector code, their places do not.
        agreement=(at_targets_top == 0).to(forward.dtype),
    )
    if not has_dense_divergence(config):
        return rows
    pointwise = pointwise_of(config.divergence)
    if pointwise is forward_kl:
        divergence, pull = forward, -torch.ones_like(forward)
    elif pointwise is reverse_kl:
        divergence, pull = reverse, reverse
    else:
        divergence, pull = _divergence(rows, tiles, config)
    return rows._replace(divergence=scale_of(config.divergence) * torch.clamp_min(divergence, 0), pull=pull)


def _divergence(rows: Rows, tiles: Tiles, config: ObjectiveConfig) -> tuple[Tensor, Tensor]:
    """Σ value and Σ pull [n] in a second sweep, for divergences that need normalised probabilities."""
    value, pull = pointwise_of(config.divergence)(*_normalised(rows, tiles, config))
    return row_sum(value), row_sum(pull)


def _normalised(rows: Rows, tiles: Tiles, config: ObjectiveConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log p, log q, p, q [n, V] at the divergence's temperatures."""
    lp = log_probs_of(tempered(tiles.student, config.divergence.temperature), rows.tempered_lse)
    lq = log_probs_of(target_logits(tiles, config), rows.target_lse)
    return lp, lq, lp.exp(), lq.exp()


def logit_gradient(tiles: Tiles, rows: Rows, slopes: Slopes, config: ObjectiveConfig, soft_cap: float | None) -> Tensor:
    """Σ over the terms of slope × ∂(token quantity)/∂logits [n, V] before the cap, but for what single tokens add (``add_at``).

    With p = softmax(z): ∂log p_y/∂z = e_y − p; ∂H/∂z = −p(log p + H); ∂KL(p‖r)/∂z = p(log p − log r − KL); ∂D/∂z = (pull − pT·Σ pull)/T.
    For a top-k divergence ``slopes.divergence`` holds the sum of its slopes in the kept log-probabilities.
    """
    lp = log_probs_of(tiles.student, rows.lse)
    factor = -slopes.logprob[:, None]
    if config.surrogate.entropy_weight:
        factor = factor - slopes.entropy[:, None] * (lp + rows.entropy[:, None])
    if config.surrogate.reference_kl_weight:
        assert tiles.reference is not None
        log_ratio = lp - log_probs_of(tiles.reference, rows.reference_lse)
        factor = factor + slopes.reference_kl[:, None] * (log_ratio - rows.reference_kl[:, None])
    gradient = lp.exp() * factor
    if tiles.teacher is not None:
        gradient = gradient + _divergence_gradient(tiles, rows, slopes.divergence[:, None], config)
    return gradient if soft_cap is None else gradient * cap_slope(tiles.student, soft_cap)


def _divergence_gradient(tiles: Tiles, rows: Rows, slope: Tensor, config: ObjectiveConfig) -> Tensor | float:
    temperature = config.divergence.temperature
    if has_dense_divergence(config):
        lp, lq, p, q = _normalised(rows, tiles, config)
        _, pull = pointwise_of(config.divergence)(lp, lq, p, q)
        return slope * (scale_of(config.divergence) / temperature) * (pull - p * rows.pull[:, None])
    if config.divergence.estimator == "top_k":
        return -slope / temperature * log_probs_of(tempered(tiles.student, temperature), rows.tempered_lse).exp()
    return 0.0


def cap_slope(logits: Tensor, soft_cap: float) -> Tensor:
    """Derivative of cap·tanh(x/cap) as a function of its value: 1 − (z/cap)²."""
    return 1 - (logits / soft_cap).square()


def add_at(gradient: Tensor, student: Tensor, token_ids: Tensor, slope: Tensor, soft_cap: float | None) -> None:
    """Adds to the gradient [n, V] what the log-probabilities of tokens [n, K] with slopes [n, K] put on those tokens, in place.

    ``student`` [n, K] holds their logits.
    """
    gradient.scatter_add_(-1, token_ids, slope if soft_cap is None else slope * cap_slope(student, soft_cap))
