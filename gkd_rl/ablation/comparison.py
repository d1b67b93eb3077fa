"""Settings against each other: differences with their uncertainty, and which of them nothing else dominates."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

RESAMPLES = 10_000

Judged = Mapping[int, Mapping[int, float]]
"""Seed → held-out example → 1 where the answer was right, else 0."""


def read_judged(folder: Path) -> dict[int, float]:
    """Example → whether the run in ``folder`` answered it rightly at its end; empty for one that kept nothing of this."""
    path = folder / "evaluation-after.jsonl"
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["example"]: float(row["right"]) for row in rows}


def differences(one: Judged, other: Judged) -> np.ndarray:
    """[S, E]: right in ``one`` less right in ``other``, for seeds and examples that both have."""
    seeds = sorted(seed for seed in one.keys() & other.keys() if one[seed] and other[seed])
    if not seeds:
        return np.zeros((0, 0))
    examples = sorted(set.intersection(*(set(one[seed]) & set(other[seed]) for seed in seeds)))
    return np.array([[one[seed][key] - other[seed][key] for key in examples] for seed in seeds])


def paired_bootstrap(values: np.ndarray, resamples: int = RESAMPLES) -> tuple[float, float, float]:
    """Mean of ``values`` [S, E] with a 95% interval: quantiles of the mean over seeds and examples drawn anew, each with replacement.

    Both are drawn, since both would be others in a repetition (the pigeonhole bootstrap: Owen, arXiv 0712.1111). A single seed stays as
    it is: the interval then is about the examples alone. NaN for no values.
    """
    if not values.size:
        return math.nan, math.nan, math.nan
    of_seeds, of_examples = _drawn(*values.shape, resamples)
    means = np.einsum("rs,se,re->r", of_seeds, values, of_examples, optimize=True) / values.size
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


@lru_cache(maxsize=2)
def _drawn(seeds: int, examples: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each seed [R, S] and each example [R, E] is drawn in each resample: the same for all comparisons of one size."""
    random = np.random.default_rng(0)
    return tuple(random.multinomial(count, [1 / count] * count, size=resamples) for count in (seeds, examples))  # pyright: ignore


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of points (cost, gain), which no other one dominates: at most their cost, at least their gain, and better in one of them."""
    dominates = lambda a, b: a[0] <= b[0] and a[1] >= b[1] and a != b
    return [not any(dominates(other, point) for other in points) for point in points]
