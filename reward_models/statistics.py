"""The few statistics that a report of graded answers needs."""

from math import comb, sqrt

_Z_95 = 1.959963984540054


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """Return the 95% Wilson score interval of a share; it stays within 0 and 1 and is honest for small counts.

    Raises:
        ValueError: `total` is not positive.
    """
    if total < 1:
        raise ValueError("an interval needs at least one row")
    share, z2 = right / total, _Z_95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z_95 / (1 + z2 / total) * sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return (0.0 if right == 0 else centre - half, 1.0 if right == total else centre + half)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Return `1 - C(n-c, k) / C(n, k)`: the unbiased chance that one of k samples is right (Chen et al. 2021, eq. 1).

    Raises:
        ValueError: k is not between 1 and the number of samples.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, not {samples}")
    return 1 - comb(samples - right, k) / comb(samples, k)
