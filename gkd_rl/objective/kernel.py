"""The arithmetic on one tile of logits: what the terms need of each token, and the gradient in the student's logits.

Three sweeps read the tiles [n, V]: ``first_sweep`` (normalisers, entropy, both KLs), ``second_sweep`` (other divergences, which need
normalised probabilities) and ``logit_gradient``. Each is pure tensor code that a compiler turns into one loop. Every reduction runs
over short blocks of the vocabulary and leaves the rest to ``figures.py``: block and loop then fit together, nothing of the tile's
size is stored, and a block is still in the cache when it is read again.

Shapes: n tokens of a chunk, V vocabulary, S blocks of it, K single tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.objective.divergence import pointwise_of, scale_of
from gkd_rl.objective.numerics import LOG_FLOOR
from gkd_rl.objective.target import teacher_temperature

LONGEST_BLOCK = 4096
"""The compiler forms longer sums through a slow, more exact helper; sums in two levels need none."""


class Tiles(NamedTuple):
    """Logits [n, V] of one chunk; None where no term needs the model."""

    student: Tensor
    teacher: Tensor | None
    reference: Tensor | None


class Blocks(NamedTuple):
    """One distribution, summed up per block [n, S]; x are the logits less the block's maximum."""

    highest: Tensor
    """maximum"""
    total: Tensor
    """Σ e^x"""
    moment: Tensor
    """Σ e^x·x"""


class Partials(NamedTuple):
    """What the first sweep leaves of a chunk, [n, S] each; None where no term needs it."""

    student: Blocks
    tempered: Blocks | None
    """the student at the divergence's temperature, where that is not 1"""
    target: Blocks | None
    reference: Blocks | None
    reverse_gap: Tensor | None
    """Σ e^x·(x − x′), x the (tempered) student's and x′ the target's"""
    forward_gap: Tensor | None
    """Σ e^x′·(x′ − x)"""
    at_top: Tensor | None
    """the student's largest x where the target's is 0"""
    reference_gap: Tensor | None
    """Σ e^x·(x − x″), x″ the reference's"""


class Rows(NamedTuple):
    """Figures of each token of a chunk, [n] each; those of absent models are 0."""

    lse: Tensor
    """log Σ exp of the student's logits"""
    highest: Tensor
    """the largest of them"""
    tempered_lse: Tensor
    """the same at the divergence's temperature"""
    target_lse: Tensor
    """that of ``target_logits``"""
    reference_lse: Tensor
    doubt: Tensor
    """H(q)/log V of the target"""
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
    """for a top-k divergence, the sum of the derivatives in the kept log-probabilities"""
    reference_kl: Tensor


def has_dense_divergence(config: ObjectiveConfig) -> bool:
    """Whether the divergence is taken over the whole vocabulary."""
    return config.divergence.estimator == "full"


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature."""
    return logits if temperature == 1.0 else logits / temperature


def log_probs_of(logits: Tensor, lse: Tensor) -> Tensor:
    """Log-probabilities of tempered logits given their normalisers, clamped like ``numerics.log_probs``."""
    return torch.clamp_min(logits - lse, LOG_FLOOR)


def target_logits(tiles: Tiles, config: ObjectiveConfig) -> Tensor:
    """Logits of the distribution that the student is compared with (see ``target.py``), up to a constant of the row."""
    assert tiles.teacher is not None
    temperature, weight = teacher_temperature(config.divergence), config.divergence.extrapolation
    if weight == 1.0:
        return tempered(tiles.teacher, temperature)
    assert tiles.reference is not None, "validate_objective asks for a reference"
    teacher, reference = (tempered(tile, temperature) for tile in (tiles.teacher, tiles.reference))
    return weight * teacher.clamp_min(LOG_FLOOR) + (1 - weight) * reference.clamp_min(LOG_FLOOR)


def _in_blocks(tiles: Tiles) -> Tiles:
    """Tiles [n, V] as [n, S, V/S]; a vocabulary without a suitable divisor is one block."""
    width = tiles.student.shape[-1]
    blocks = next((b for b in range(-(-width // LONGEST_BLOCK), 257) if width % b == 0), 1)
    student, *others = (None if tile is None else tile.unflatten(-1, (blocks, -1)) for tile in tiles)
    assert student is not None
    return Tiles(student, *others)


def _summed(logits: Tensor) -> tuple[Blocks, Tensor, Tensor]:
    """Block sums [n, S] of logits [n, S, V/S], the logits less their block's maximum, and the exponentials of those."""
    highest = logits.amax(-1, keepdim=True).clamp_min(-1e30)
    shifted = torch.clamp_min(logits - highest, LOG_FLOOR)
    raised = shifted.exp()
    return Blocks(highest.squeeze(-1), raised.sum(-1), (raised * shifted).sum(-1)), shifted, raised


def first_sweep(tiles: Tiles, config: ObjectiveConfig) -> Partials:
    """Block sums of all distributions and of the gaps between them."""
    tiles = _in_blocks(tiles)
    student, x, e = _summed(tiles.student)
    reference = reference_gap = tempered_student = None
    if tiles.reference is not None:
        reference, y, _ = _summed(tiles.reference)
        reference_gap = (e * (x - y)).sum(-1)
    if config.divergence.temperature != 1.0 and (tiles.teacher is not None or config.divergence.estimator == "top_k"):
        tempered_student, x, e = _summed(tempered(tiles.student, config.divergence.temperature))
    if tiles.teacher is None:
        return Partials(student, tempered_student, None, reference, None, None, None, reference_gap)
    target, y, f = _summed(target_logits(tiles, config))
    at_top = torch.where(y == 0, x, -torch.inf).amax(-1)
    gap = x - y
    return Partials(student, tempered_student, target, reference, (e * gap).sum(-1), -(f * gap).sum(-1), at_top, reference_gap)


def second_sweep(tiles: Tiles, lse: Tensor, target_lse: Tensor, doubt: Tensor, config: ObjectiveConfig) -> tuple[Tensor, Tensor]:
    """Block sums [n, S] of value and pull of the divergence; the arguments [n, S] repeat a row's figure for each of its blocks."""
    tiles = _in_blocks(tiles)
    lp = log_probs_of(tempered(tiles.student, config.divergence.temperature), lse[..., None])
    lq = log_probs_of(target_logits(tiles, config), target_lse[..., None])
    value, pull = pointwise_of(config.divergence)(lp, lq, lp.exp(), lq.exp(), doubt[..., None])
    return value.sum(-1), pull.sum(-1)


def logit_gradient(tiles: Tiles, rows: Rows, slopes: Slopes, config: ObjectiveConfig, soft_cap: float | None) -> Tensor:
    """Σ over the terms of slope × ∂(token quantity)/∂logits [n, V] before the cap, but for what single tokens add (``add_at``).

    With p = softmax(z): ∂log p_y/∂z = e_y − p; ∂H/∂z = −p(log p + H); ∂KL(p‖r)/∂z = p(log p − log r − KL); ∂D/∂z = (pull − pT·Σ pull)/T.
    """
    rows, slopes = Rows(*(row[:, None] for row in rows)), Slopes(*(slope[:, None] for slope in slopes))
    lp = log_probs_of(tiles.student, rows.lse)
    factor = -slopes.logprob
    if config.surrogate.entropy_weight:
        factor = factor - slopes.entropy * (lp + rows.entropy)
    if config.surrogate.reference_kl_weight:
        assert tiles.reference is not None
        factor = factor + slopes.reference_kl * (lp - log_probs_of(tiles.reference, rows.reference_lse) - rows.reference_kl)
    gradient = lp.exp() * factor
    if tiles.teacher is not None or config.divergence.estimator == "top_k":
        gradient = gradient + _divergence_gradient(tiles, rows, slopes.divergence, config)
    return gradient if soft_cap is None else gradient * cap_slope(tiles.student, soft_cap)


def _divergence_gradient(tiles: Tiles, rows: Rows, slope: Tensor, config: ObjectiveConfig) -> Tensor | float:
    temperature = config.divergence.temperature
    lp = log_probs_of(tempered(tiles.student, temperature), rows.tempered_lse)
    if has_dense_divergence(config):
        lq, p = log_probs_of(target_logits(tiles, config), rows.target_lse), lp.exp()
        _, pull = pointwise_of(config.divergence)(lp, lq, p, lq.exp(), rows.doubt)
        return slope * (scale_of(config.divergence) / temperature) * (pull - p * rows.pull)
    return -slope / temperature * lp.exp() if config.divergence.estimator == "top_k" else 0.0


def cap_slope(logits: Tensor, soft_cap: float) -> Tensor:
    """Derivative of cap·tanh(x/cap) as a function of its value: 1 − (z/cap)²."""
    return 1 - (logits / soft_cap).square()


def add_at(gradient: Tensor, student: Tensor, token_ids: Tensor, slope: Tensor, soft_cap: float | None) -> None:
    """Adds to the gradient [n, V] what the log-probabilities of tokens [n, K] with slopes [n, K] put on those tokens, in place.

    ``student`` [n, K] holds their logits.
    """
    gradient.scatter_add_(-1, token_ids, slope if soft_cap is None else slope * cap_slope(student, soft_cap))
