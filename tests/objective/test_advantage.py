"""Advantages against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gkd_rl.config.objective import AdvantageConfig
from gkd_rl.objective.advantage import advantages

KINDS = ("rloo", "grpo", "dr_grpo", "batch")
REWARDS = torch.tensor([1.0, 0.0, 0.0, 0.0, 3.0, 1.0])
GROUP = torch.tensor([7, 7, 7, 7, 2, 2])


def of(kind: str, rewards: Tensor = REWARDS, group: Tensor = GROUP) -> list[float]:
    return advantages(rewards, group, AdvantageConfig(kind=kind)).tolist()


def test_numbers_computed_by_hand():
    third = 1 / 3
    assert of("dr_grpo") == pytest.approx([0.75, -0.25, -0.25, -0.25, 1, -1])
    assert of("rloo") == pytest.approx([1, -third, -third, -third, 2, -2])
    std = 0.5  # √((0.75² + 3·0.25²) / 3)
    assert of("grpo") == pytest.approx(
        [0.75 / (std + 1e-4), *[-0.25 / (std + 1e-4)] * 3, 1 / (math.sqrt(2) + 1e-4), -1 / (math.sqrt(2) + 1e-4)]
    )
    mean = 5 / 6
    assert of("batch") == pytest.approx([1 - mean, -mean, -mean, -mean, 3 - mean, 1 - mean])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_reward_get_zero_and_are_in_no_baseline(kind):
    nan = torch.nan
    with_gaps = of(kind, torch.tensor([1.0, nan, 0.0, 0.0, 0.0, 3.0, 1.0, nan]), torch.tensor([7, 7, 7, 7, 7, 2, 2, 3]))
    expected = of(kind)
    assert with_gaps == pytest.approx([expected[0], 0, *expected[1:4], *expected[4:], 0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_rows_and_the_numbers_of_groups_mean_nothing(kind):
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    shuffled = of(kind, REWARDS[order], GROUP[order] * 10 - 3)
    assert shuffled == pytest.approx([of(kind)[i] for i in order.tolist()])


@pytest.mark.parametrize("kind", KINDS)
def test_equal_rewards_and_single_rows_give_zero(kind):
    assert of(kind, torch.ones(4), torch.tensor([0, 0, 0, 0])) == [0, 0, 0, 0]
    assert of(kind, torch.ones(1), torch.tensor([5])) == [0]


def test_no_rows_give_no_advantages():
    for kind in KINDS:
        assert of(kind, torch.zeros(0), torch.zeros(0, dtype=torch.int64)) == []
