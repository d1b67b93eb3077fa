"""What is said of rewards and preferences together, by hand."""

import math
import random

import pytest

from reward_models.preferences import preference_report
from reward_models.statistics import wilson_interval


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_accuracy_is_by_pairs_and_by_which_answer_is_longer():
    report = preference_report([2.0, 1.0, 0.0, 3.0], [1.0, 1.0, 2.0, 0.0], [5, 5, 9, 7], [9, 9, 5, 7])
    assert (report.accuracy.right, report.accuracy.count, report.accuracy.share) == (2, 4, 0.5)
    assert (report.accuracy.low, report.accuracy.high) == wilson_interval(2, 4)
    assert (report.chosen_shorter.right, report.chosen_shorter.count) == (1, 2)
    assert (report.chosen_longer.right, report.chosen_longer.count, report.chosen_longer.share) == (0, 1, 0.0)
    assert report.log_loss == pytest.approx(-sum(math.log(_sigmoid(x)) for x in (1, 0, -2, 3)) / 4)


def test_calibration_compares_how_sure_the_model_is_with_how_often_it_is_right():
    report = preference_report([1.0, 1.0, -1.0, 5.0], [0.0, 0.0, 0.0, 0.0], [1] * 4, [1] * 4)
    sure, surer = _sigmoid(1), _sigmoid(5)
    assert [(one.count, one.confidence, one.accuracy) for one in report.calibration] == [
        (3, pytest.approx(sure), pytest.approx(2 / 3)),
        (1, pytest.approx(surer), 1.0),
    ]
    assert report.calibration_error == pytest.approx(3 / 4 * abs(2 / 3 - sure) + 1 / 4 * (1 - surer))


def test_rewards_drawn_as_the_model_says_are_calibrated():
    draw = random.Random(0)
    differences = [draw.uniform(-4, 4) for _ in range(20_000)]
    signed = [abs(x) if draw.random() < _sigmoid(abs(x)) else -abs(x) for x in differences]
    report = preference_report(signed, [0.0] * len(signed), [1] * len(signed), [2] * len(signed))
    assert report.calibration_error < 0.02 and len(report.calibration) == 10
    doubled = preference_report([2 * x for x in signed], [0.0] * len(signed), [1] * len(signed), [2] * len(signed))
    assert doubled.calibration_error > 0.05


def test_length_and_reward_are_correlated_over_all_answers():
    assert preference_report([1.0, 2.0], [3.0, 4.0], [10, 20], [30, 40]).length_correlation == pytest.approx(1.0)
    assert preference_report([4.0, 3.0], [2.0, 1.0], [10, 20], [30, 40]).length_correlation == pytest.approx(-1.0)
    assert preference_report([1.0], [2.0], [7], [7]).length_correlation is None
    assert preference_report([1.0], [2.0], [7], [7]).chosen_longer.share is None


def test_huge_differences_overflow_nothing_and_no_pairs_are_refused():
    report = preference_report([1e6, -1e6], [-1e6, 1e6], [1, 1], [1, 1])
    assert report.log_loss == pytest.approx(1e6) and report.calibration_error == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at least one pair"):
        preference_report([], [], [], [])
