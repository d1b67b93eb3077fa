"""Gates: where reward and divergence count."""

from __future__ import annotations

import pytest
import torch
from token_batches import logits_batch

from gkd_rl.config.objective import GateConfig, ObjectiveConfig
from gkd_rl.objective import unified_objective
from gkd_rl.objective.gate import row_gates, sign_agreement
from gkd_rl.types import GlobalCounts

REWARDS = torch.tensor([1.0, 0.0, 0.0, 0.0, torch.nan])
GROUP = torch.tensor([4, 4, 9, 9, 2])


@pytest.mark.parametrize(
    ("kind", "reward", "divergence"),
    [
        ("none", [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
        ("wrong", [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]),
        ("unsolved_group", [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]),
        ("right_reward_wrong_divergence", [1, 0, 0, 0, 0], [0, 1, 1, 1, 1]),
        ("sign_agreement", [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
    ],
)
def test_gates_of_rows(kind, reward, divergence):
    gates = row_gates(REWARDS, GROUP, GateConfig(kind=kind))
    assert gates.reward.tolist() == reward
    assert gates.divergence.tolist() == divergence


def test_a_row_is_right_from_the_configured_reward_on():
    assert row_gates(torch.tensor([0.4, 0.6]), torch.tensor([0, 0]), GateConfig("wrong", right_at=0.5)).divergence.tolist() == [1, 0]


def test_sign_agreement_of_tokens():
    log_ratio, advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]), torch.tensor([2.0, -2.0, -2.0, 2.0, 0.0])
    assert sign_agreement(log_ratio, advantages).tolist() == [1, 1, 0, 0, 0]


def test_the_objective_drops_the_divergence_of_tokens_whose_signs_differ():
    student = torch.zeros(2, 2, requires_grad=True)
    teacher = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()  # R > 0 for token 0
    config = ObjectiveConfig(gate=GateConfig("sign_agreement"))
    batch = logits_batch(
        student, torch.zeros(2, dtype=torch.int64), teacher, reward_weights=torch.full((2,), 1e-12), advantages=torch.tensor([1.0, -1.0])
    )
    (gradient,) = torch.autograd.grad(unified_objective(batch, config, GlobalCounts(1, 1, 1)).loss, student)
    assert gradient[0].abs().max() > 0.01
    assert gradient[1].abs().max() < 1e-9
