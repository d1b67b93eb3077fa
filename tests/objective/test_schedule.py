"""The terms' weights over a run."""

from __future__ import annotations

import math

import pytest

from gkd_rl.config.objective import ObjectiveConfig, ScheduleConfig
from gkd_rl.objective.schedule import ScoreHistory, TermWeights, has_plateaued, value_at, weights_at


def path(kind: str, at: range, **options) -> list[float]:
    config = ScheduleConfig(kind=kind, end=0.0 if kind != "exponential" else 0.01, **options)
    return [value_at(1.0, config, step, 11) for step in at]


def test_paths_by_hand():
    assert path("constant", range(0, 11, 5)) == [1, 1, 1]
    assert path("linear", range(0, 11, 5)) == [1, 0.5, 0]
    assert path("cosine", range(0, 11, 5)) == pytest.approx([1, 0.5, 0])
    assert path("cosine", range(2, 3)) == pytest.approx([(1 + math.cos(math.pi * 0.2)) / 2])
    assert path("exponential", range(0, 11, 5)) == pytest.approx([1, 0.1, 0.01])
    assert path("step", range(2, 5), start_step=3) == [1, 0, 0]


def test_a_path_has_a_start_and_a_length_and_stays_at_its_end():
    assert path("linear", range(0, 9, 2), start_step=2, steps=4) == [1, 1, 0.5, 0, 0]


def test_a_run_of_one_step_has_a_path():
    assert value_at(1.0, ScheduleConfig("linear", end=0.0), 0, 1) == 1.0


def test_weights_come_from_alpha_or_are_set_apart():
    assert weights_at(ObjectiveConfig(alpha=0.25, cross_entropy_weight=2.0), 0, 10) == TermWeights(0.75, 0.25, 2.0)
    apart = ObjectiveConfig(alpha=0.25, divergence_weight=4.0, divergence_schedule=ScheduleConfig("linear", end=0.0))
    assert weights_at(apart, 0, 11) == TermWeights(0.75, 4.0, 0.0)
    assert weights_at(apart, 10, 11) == TermWeights(0.75, 0.0, 0.0)
    rewarded = ObjectiveConfig(reward_weight=3.0, reward_schedule=ScheduleConfig("step", end=5.0, start_step=1))
    assert [weights_at(rewarded, step, 9).reward for step in (0, 1)] == [3, 5]


def test_plateau_waits_for_patience_evaluations_without_a_new_best():
    scores = [0.1, 0.3, 0.2, 0.3, 0.4, 0.4, 0.35]
    turned = [has_plateaued(scores[:n], patience=2, min_gain=0.0) for n in range(len(scores) + 1)]
    assert turned == [False, False, False, False, True, True, True, True]
    assert not has_plateaued(scores, patience=3, min_gain=0.0)
    assert has_plateaued([0.1, 0.15, 0.2, 0.25], patience=2, min_gain=0.2)


def test_an_adaptive_value_grows_each_time_the_loss_has_risen_since_it_last_grew():
    losses = [1.0, 1.05, 0.5, 1.125, 1.2, 1.25, 0.9, 1.375, 9.0, 9.0, 9.5]
    config = ScheduleConfig("adaptive", end=0.55, increment=0.125, tolerance=0.125)
    seen = [value_at(0.25, config, 3, 10, ScoreHistory(losses=losses[:n])) for n in range(len(losses) + 1)]
    assert seen == [0.25] * 4 + [0.375] * 2 + [0.5] + [0.5] + [0.55] * 4
    strict = ScheduleConfig("adaptive", end=1.0, increment=0.125, tolerance=0.0)
    assert value_at(0.25, strict, 0, 10, ScoreHistory(losses=[1.0, 1.0, 0.99])) == 0.375, "as high as before is risen by 0"
    assert value_at(0.25, strict, 0, 10) == 0.25


def test_plateau_distils_and_then_hands_over_to_the_reward_for_good():
    config = ObjectiveConfig(alpha=1.0, alpha_schedule=ScheduleConfig("plateau", end=0.0, patience=1))
    history = ScoreHistory()
    seen = []
    for score in (0.2, 0.4, 0.4, 0.9):
        history.observe(score)
        seen.append(weights_at(config, 0, 100, history).divergence)
    assert seen == [1, 1, 0, 0]


def test_a_restored_history_goes_on_where_the_saved_one_stopped():
    history = ScoreHistory()
    for score in (0.2, 0.1):
        history.observe(score)
    history.losses.append(1.25)
    saved = history.state_dict()
    history.observe(0.9)
    history.losses.append(2.0)
    restored = ScoreHistory()
    restored.load_state_dict(saved)
    assert restored == ScoreHistory([0.2, 0.1], [1.25])
    assert saved == {"scores": [0.2, 0.1], "losses": [1.25]}
