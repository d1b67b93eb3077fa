"""Ranges of a grid, differences between settings, and the frontier: hand-made cases and enumeration."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from gkd_rl.ablation.comparison import differences, paired_bootstrap, pareto, read_judged
from gkd_rl.ablation.grid import values_of
from gkd_rl.ablation.results import best_label
from gkd_rl.errors import UserError


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ([0, 0.5], [0, 0.5]),
        ("forward_kl", ["forward_kl"]),
        ({"linear": [0, 1], "points": 5}, [0, 0.25, 0.5, 0.75, 1]),
        ({"log": [0.01, 1], "points": 5}, [0.01, 0.03162, 0.1, 0.3162, 1]),
        ({"log": [1, 1e-4], "points": 3}, [1, 0.01, 1e-4]),
        ({"linear": [2, -2], "points": 2}, [2, -2]),
    ],
)
def test_ranges_have_both_ends_and_even_steps(given, values) -> None:
    assert values_of("objective.alpha", given) == values


@pytest.mark.parametrize(
    "given",
    [
        *({"log": [0.1, 1]}, {"log": [0.1, 1], "points": 1}, {"log": [0, 1], "points": 3}, {"log": [1], "points": 3}, {"points": 3}),
        *({"log": [0.1, 1], "linear": [0, 1], "points": 3}, {"linear": ["a", 1], "points": 3}, {"linear": [0, 1], "points": 2.5}),
    ],
)
def test_other_ranges_are_refused_by_the_name_of_their_key(given) -> None:
    with pytest.raises(UserError, match=r"range of objective\.alpha"):
        values_of("objective.alpha", given)


def test_only_what_both_have_is_compared() -> None:
    one = {0: {1: 1.0, 2: 0.0, 3: 1.0}, 1: {1: 1.0, 2: 1.0}, 2: {1: 1.0}}
    other = {0: {1: 0.0, 2: 0.0}, 1: {1: 1.0, 2: 0.0, 3: 0.0}, 3: {1: 0.0}}
    assert differences(one, other).tolist() == [[1, 0], [0, 1]]
    assert differences(one, {}).size == 0 and differences({0: {}}, {0: {1: 1.0}}).size == 0
    assert all(map(math.isnan, paired_bootstrap(differences(one, {}))))


@pytest.mark.parametrize("values", [[[1, 0, 0]], [[1, 1, 0, -1]], [[1, 0], [0, -1]], [[1], [0], [0]], [[1, 0, 1], [0, 0, 1]]])
def test_the_interval_is_that_of_all_draws(values) -> None:
    """Every way to draw seeds and examples with replacement, all equally likely."""
    matrix = np.array(values, dtype=float)
    seeds, examples = (list(itertools.product(range(n), repeat=n)) for n in matrix.shape)
    means = [matrix[np.ix_(some, others)].mean() for some in seeds for others in examples]
    mean, low, high = paired_bootstrap(matrix, 40_000)
    assert mean == pytest.approx(np.mean(means))
    for found, share in ((low, 0.025), (high, 0.975)):  # sampling may take the neighbour where a step is just there
        near = np.quantile(means, [max(0, share - 0.005), min(1, share + 0.005)], method="inverted_cdf")
        assert near[0] - 1e-9 <= found <= near[1] + 1e-9


def test_a_difference_that_is_always_the_same_is_certain_and_signs_follow_the_order() -> None:
    assert paired_bootstrap(np.full((3, 20), 0.5)) == (0.5, 0.5, 0.5)
    values = np.random.default_rng(1).integers(-1, 2, size=(3, 50)).astype(float)
    mean, low, high = paired_bootstrap(values)
    assert paired_bootstrap(-values) == pytest.approx((-mean, -high, -low))
    assert low < mean < high


def test_pairing_is_narrower_than_two_samples_apart() -> None:
    """Examples differ in how hard they are; the difference of two settings on each of them does not."""
    hard = np.arange(40) % 2
    one, other = {0: dict(enumerate(hard.astype(float)))}, {0: dict(enumerate(np.where(np.arange(40) < 38, hard, 0.0)))}
    _, low, high = paired_bootstrap(differences(one, other))
    _, apart_low, apart_high = paired_bootstrap(hard[None].astype(float))
    assert high - low < (apart_high - apart_low) / 2


def test_more_seeds_count() -> None:
    same = np.tile([[1.0], [0.0], [0.0], [0.0]], (1, 200))  # each seed says one thing on all examples
    _, low, high = paired_bootstrap(same)
    assert low == 0 and high == 0.75


@pytest.mark.parametrize(
    ("points", "best"),
    [
        ([(1, 1)], [True]),
        ([(1, 1), (1, 1)], [True, True]),
        ([(1, 1), (2, 2), (3, 2), (2, 1), (0.5, 0.5)], [True, True, False, False, True]),
        ([(1, 2), (1, 1)], [True, False]),
    ],
)
def test_what_nothing_dominates_is_the_frontier(points, best) -> None:
    assert pareto(points) == best


def test_judged_answers_are_read_by_their_example(tmp_path: Path) -> None:
    assert read_judged(tmp_path) == {}
    rows = [{"example": 7, "right": True}, {"example": 3, "right": False}]
    (tmp_path / "evaluation-after.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_judged(tmp_path) == {7: 1.0, 3: 0.0}


def test_the_best_setting_has_the_highest_mean_of_the_figure_asked_for() -> None:
    rows = {"a": [{"accuracy": 0.5, "reward": 1.0}], "b": [{"accuracy": 0.9, "reward": None}, {"accuracy": 0.3, "reward": None}], "c": []}
    assert best_label(rows, "accuracy") == "b" and best_label(rows, "reward") == "a"
    with pytest.raises(UserError, match="no run has a figure 'rouge'"):
        best_label(rows, "rouge")
