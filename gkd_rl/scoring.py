"""From rollouts to experience: rewards, advantages and the teacher's scores. (The rewards' own code is in ``reward_models``.)

Shapes: B sequences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gkd_rl.config.objective import AdvantageConfig
from gkd_rl.config.run import RewardConfig
from gkd_rl.objective.advantage import advantages
from gkd_rl.processes import Processes
from gkd_rl.types import Rollouts
from reward_models.cached import Cached
from reward_models.combine import LinearWeight, Requirement, WeightedSum
from reward_models.errors import RewardValueError
from reward_models.llm_judge import LLMJudge
from reward_models.loading import Reward, load_reward
from reward_models.time_limit import TimeLimit
from reward_models.wrappers import Retried, Threaded


def make_rewards(configs: Sequence[RewardConfig], cache_folder: Path | None = None) -> WeightedSum:
    """The weighted sum that the configuration describes; ``cache_folder`` is where rewards with ``cache: true`` keep their values."""
    names = [config.name or config.path.replace(":", ".").rsplit(".", 1)[-1] for config in configs]
    return WeightedSum(
        [(name, _reward(name, config, cache_folder), _weight(config)) for name, config in zip(names, configs, strict=True)],
        requires={
            name: Requirement(config.requires.reward, config.requires.at_least)
            for name, config in zip(names, configs, strict=True)
            if config.requires is not None
        },
        normalize={name: config.normalize for name, config in zip(names, configs, strict=True)},
    )


def _weight(config: RewardConfig) -> float | LinearWeight:
    return LinearWeight(**config.weight) if isinstance(config.weight, dict) else float(config.weight)


def _reward(name: str, config: RewardConfig, cache_folder: Path | None) -> Reward:
    reward = load_reward(config.path, config.options)
    if config.timeout:
        reward = TimeLimit(reward, config.timeout)
    if config.retries:
        reward = Retried(reward, config.retries)
    if config.threads > 1:
        reward = Threaded(reward, config.threads)
    if config.cache:
        folder = Path(config.cache) if isinstance(config.cache, str) else cache_folder
        reward = Cached(reward, [config.path, config.options], None if folder is None else folder / f"{name}.sqlite")
    return reward


def score_texts(rewards: WeightedSum, prompts: Sequence[Any], texts: Sequence[str], columns: Sequence[Any]) -> tuple[
    list[float | None], dict[str, list[float | None]]
]:  # fmt: skip
    """Totals and components for texts; ``columns`` holds each row's further columns (a name absent in a row is None there).

    Rewards that count tokens find them in the column ``completion_ids``, as in TRL.
    """
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
    counts = rollouts.completion_mask.sum(1).tolist()
    columns = [{**rollouts.examples[i].columns, "completion_ids": rollouts.completion_ids[i, : counts[i]].tolist()} for i in rows]
    try:
        sums, parts = score_texts(rewards, [e.prompt for e in examples], texts, columns)
    except RewardValueError as error:
        raise RewardValueError(f"{error} (example {examples[error.row].key})", error.row) from error
    totals[rows] = _tensor(sums, device)
    for name, values in parts.items():
        components[name][rows] = _tensor(values, device)
    return totals, components


def combined_rewards(
    rewards: WeightedSum | None, totals: Tensor, components: Mapping[str, Tensor], group: Tensor, processes: Processes
) -> Tensor:
    """What advantages are made of, [B]: the totals, or, where a reward is normalised, the sum of its normalised values over all ranks."""
    if rewards is None or not any(scope != "none" for scope in rewards.normalize.values()):
        return totals
    parts = processes.gather(({name: values.cpu() for name, values in components.items()}, group.cpu()))
    gathered = {name: _optional(torch.cat([one[name] for one, _ in parts])) for name in components}
    everything = rewards.normalised(gathered, torch.cat([one for _, one in parts]).tolist())
    start = sum(len(one) for _, one in parts[: processes.rank])
    return _tensor(everything[start : start + len(totals)], totals.device)


def global_advantages(rewards: Tensor, group: Tensor, config: AdvantageConfig, processes: Processes) -> Tensor:
    """Advantages of this rank's rows, baselines taken over the rows of all ranks."""
    parts = processes.gather((rewards.cpu(), group.cpu()))
    everything = advantages(torch.cat([r for r, _ in parts]), torch.cat([g for _, g in parts]), config)
    start = sum(len(r) for r, _ in parts[: processes.rank])
    return everything[start : start + len(rewards)].to(rewards.device)


def reward_usage(rewards: WeightedSum, processes: Processes) -> dict[str, dict[str, float]]:
    """What rewards that keep account asked of others, by name, over all ranks: requests, tokens and cost (``reward_models.LLMJudge``)."""
    found: dict[str, dict[str, float]] = {}
    for name, reward, _ in rewards.rewards:
        inner: Any = reward
        while hasattr(inner, "reward"):  # what is put round it: time limits, retries, threads, caches
            inner = inner.reward
        if isinstance(inner, LLMJudge):
            found[name] = processes.sum({key: float(value) for key, value in {**asdict(inner.usage), "cost": inner.cost}.items()})
    return found


def _optional(values: Tensor) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def _tensor(values: Sequence[float | None], device: torch.device) -> Tensor:
    return torch.tensor([math.nan if value is None else value for value in values], device=device)
