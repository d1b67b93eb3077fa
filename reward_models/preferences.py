"""How well rewards agree with preferences: accuracy on pairs, calibration, and what length has to do with it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import exp, fsum, log1p, sqrt
from typing import Any

from reward_models.statistics import wilson_interval

BINS = 10


@dataclass(frozen=True)
class Share:
    """So many right of so many, with the 95% Wilson interval; None where there are none."""

    right: int
    count: int
    share: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class CalibrationBin:
    """Pairs on which the model is about equally sure: mean σ(|difference|), and the share that it ranks right."""

    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class PreferenceReport:
    """What the rewards of the chosen and the rejected answers of pairs say together."""

    accuracy: Share
    """share of pairs whose chosen answer has the higher reward; equal rewards are wrong"""
    log_loss: float
    """mean of −log σ(r_chosen − r_rejected) (Bradley and Terry)"""
    calibration: list[CalibrationBin]
    """ten bins of equal width from ½ to 1, those without pairs left out"""
    calibration_error: float
    """expected calibration error Σ_b n_b/n · |accuracy_b − confidence_b| (Guo et al. 2017)"""
    length_correlation: float | None
    """Pearson's correlation of reward and length over all answers; None where either never changes"""
    chosen_shorter: Share
    chosen_longer: Share
    """accuracy where the chosen answer is the shorter, or the longer one: a model that rewards length is right on one kind alone"""

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)


def preference_report(
    chosen: Sequence[float], rejected: Sequence[float], chosen_lengths: Sequence[int], rejected_lengths: Sequence[int]
) -> PreferenceReport:
    """Return the report of pairs, one entry of each argument per pair.

    Raises:
        ValueError: there are no pairs, or the arguments have different lengths.
    """
    if not chosen:
        raise ValueError("a report needs at least one pair")
    rows = list(zip(chosen, rejected, chosen_lengths, rejected_lengths, strict=True))
    differences = [one - other for one, other, _, _ in rows]
    bins = _calibration(differences)
    return PreferenceReport(
        accuracy=_share([difference > 0 for difference in differences]),
        log_loss=fsum(-_log_sigmoid(difference) for difference in differences) / len(rows),
        calibration=bins,
        calibration_error=fsum(one.count * abs(one.accuracy - one.confidence) for one in bins) / len(rows),
        length_correlation=_correlation([*chosen, *rejected], [*chosen_lengths, *rejected_lengths]),
        chosen_shorter=_share([one > other for one, other, long, short in rows if long < short]),
        chosen_longer=_share([one > other for one, other, long, short in rows if long > short]),
    )


def _share(right: Sequence[bool]) -> Share:
    if not right:
        return Share(0, 0, None, None, None)
    return Share(sum(right), len(right), sum(right) / len(right), *wilson_interval(sum(right), len(right)))


def _calibration(differences: Sequence[float]) -> list[CalibrationBin]:
    members: dict[int, list[tuple[float, bool]]] = {}
    for difference in differences:
        confidence = exp(_log_sigmoid(abs(difference)))
        members.setdefault(min(int((confidence - 0.5) * 2 * BINS), BINS - 1), []).append((confidence, difference > 0))
    return [
        CalibrationBin(len(pairs), fsum(sure for sure, _ in pairs) / len(pairs), sum(right for _, right in pairs) / len(pairs))
        for _, pairs in sorted(members.items())
    ]


def _log_sigmoid(value: float) -> float:
    """log σ(x) without overflow."""
    return -log1p(exp(-value)) if value >= 0 else value - log1p(exp(value))


def _correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    mean, other_mean = fsum(one) / len(one), fsum(other) / len(other)
    spread = fsum((a - mean) ** 2 for a in one) * fsum((b - other_mean) ** 2 for b in other)
    if spread <= 0:
        return None
    return fsum((a - mean) * (b - other_mean) for a, b in zip(one, other, strict=True)) / sqrt(spread)
