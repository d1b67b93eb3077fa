"""Means over runs, with intervals. (Shares of examples: ``reward_models.statistics``.)"""

from __future__ import annotations

import math

_T975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}
"""97.5% quantiles of Student's t by degrees of freedom."""


def mean_interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and a 95% interval by Student's t, for values of few runs; the interval is NaN for a single one."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return mean, math.nan, math.nan
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1))
    half = _T975.get(count - 1, 1.96) * deviation / math.sqrt(count)
    return mean, mean - half, mean + half
