"""From rollouts to experience: rewards, advantages and the teacher's scores. (The rewards' own code is in ``reward_models``.)

Shapes: B sequences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gkd_rl.config.objective import AdvantageConfig
from gkd_rl.config.run import RewardConfig
from gkd_rl.objective.advantage import advantages
from gkd_rl.processes import Processes
from gkd_rl.types import Rollouts
from reward_models.combine import WeightedSum
from reward_models.errors import RewardValueError
from reward_models.loading import Reward, load_reward
from reward_models.time_limit import TimeLimit


def make_rewards(configs: Sequence[RewardConfig]) -> WeightedSum:
    """The weighted sum that the configuration describes."""
    names = [config.name or config.path.replace(":", ".").rsplit(".", 1)[-1] for config in configs]
    return WeightedSum([(name, _reward(config), config.weight) for name, config in zip(names, configs, strict=True)])


def _reward(config: RewardConfig) -> Reward:
    reward = load_reward(config.path, config.options)
    return TimeLimit(reward, config.timeout) if config.timeout else reward


def score_texts(rewards: WeightedSum, prompts: Sequence[Any], texts: Sequence[str], columns: Sequence[Any]) -> tuple[
    list[float | None], dict[str, list[float | None]]
]:  # fmt: skip
    """Totals and components for texts; ``columns`` holds each row's further columns (a name absent in a row is None there)."""
    names = sorted({name for row in columns for name in row})
    chat = bool(prompts) and not isinstance(prompts[0], str)
    completions = [[{"role": "assistant", "content": text}] for text in texts] if chat else list(texts)
    scored = rewards.score(list(prompts), completions, **{name: [row.get(name) for row in columns] for name in names})
    return scored.totals, scored.components


def score_rollouts(rewards: WeightedSum | None, rollouts: Rollouts) -> tuple[Tensor, dict[str, Tensor]]:
    """Rewards [B] and components of sampled rows; dataset rows get NaN, since a reward of them teaches the policy nothing."""
    device = rollouts.completion_ids.device
    count = len(rollouts.examples)
    rows = rollouts.on_policy.nonzero()[:, 0].tolist()
    totals = torch.full((count,), math.nan, device=device)
    names = [name for name, _, _ in rewards.rewards] if rewards else []
    components = {name: torch.full((count,), math.nan, device=device) for name in names}
    if rewards is None or not rows:
        return totals, components
    examples = [rollouts.examples[i] for i in rows]
    texts = [rollouts.texts[i] for i in rows]
    try:
        sums, parts = score_texts(rewards, [e.prompt for e in examples], texts, [e.columns for e in examples])
    except RewardValueError as error:
        raise RewardValueError(f"{error} (example {examples[error.row].key})", error.row) from error
    totals[rows] = _tensor(sums, device)
    for name, values in parts.items():
        components[name][rows] = _tensor(values, device)
    return totals, components


def global_advantages(rewards: Tensor, group: Tensor, config: AdvantageConfig, processes: Processes) -> Tensor:
    """Advantages of this rank's rows, baselines taken over the rows of all ranks."""
    parts = processes.gather((rewards.cpu(), group.cpu()))
    everything = advantages(torch.cat([r for r, _ in parts]), torch.cat([g for _, g in parts]), config)
    start = sum(len(r) for r, _ in parts[: processes.rank])
    return everything[start : start + len(rewards)].to(rewards.device)


def _tensor(values: Sequence[float | None], device: torch.device) -> Tensor:
    return torch.tensor([math.nan if value is None else value for value in values], device=device)
