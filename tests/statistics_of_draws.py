"""Whether counts follow probabilities."""

from __future__ import annotations

import math

from torch import Tensor


def chi_square_of(counts: Tensor, probabilities: Tensor) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom; what has probability 0 must not have been drawn."""
    assert not counts[probabilities == 0].any()
    possible = probabilities > 0
    expected = counts.sum() * probabilities[possible] / probabilities[possible].sum()
    return float(((counts[possible] - expected).square() / expected).sum()), int(possible.sum()) - 1


def chi_square_limit(freedom: int) -> float:
    """The 99.9% quantile, by Wilson and Hilferty's approximation."""
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + 3.09 * math.sqrt(spread)) ** 3
