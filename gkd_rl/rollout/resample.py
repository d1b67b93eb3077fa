"""Sampling and judging the answers of a step, and replacing groups that teach nothing. Shapes: B sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gkd_rl.rollout.rows import join, take
from gkd_rl.types import Example, Rollouts

FRESH = 2**28
"""Examples of the stream that the steps' own prompts may use; those of the n-th round of replacements begin at n·FRESH."""


@dataclass(frozen=True)
class Judged:
    """Rollouts with their rewards."""

    rollouts: Rollouts
    rewards: Tensor
    """[B] fp32, NaN where none applies"""
    components: dict[str, Tensor]
    """name → [B]"""


Judge = Callable[[Sequence[Example]], Judged]
"""Samples answers to examples and judges them."""


def flat_groups(judged: Judged) -> list[int]:
    """Groups of sampled rows whose rewards are all equal: their advantages are 0, and they teach the reward's term nothing."""
    rewards: dict[int, set[float]] = {}
    rows = zip(judged.rollouts.group.tolist(), judged.rewards.tolist(), judged.rollouts.on_policy.tolist(), strict=True)
    for group, reward, on_policy in rows:
        if on_policy and reward == reward:
            rewards.setdefault(group, set()).add(reward)
    return [group for group, found in rewards.items() if len(found) == 1]


def replace_flat_groups(judged: Judged, rounds: int, fresh: Callable[[int], Example | None], judge: Judge, pad: int) -> tuple[Judged, int]:
    """Replace flat groups by answers to fresh prompts, up to ``rounds`` times; what is flat then stays (DAPO, arXiv 2503.14476).

    ``fresh`` gives the example at a place of the stream, None if it cannot be used. Which example takes a group's place depends on the
    group and the round alone, so that no cut over ranks changes it. Returns also how many groups were replaced.
    """
    count = 0
    for number in range(1, rounds + 1):
        offered = {group: fresh(group % FRESH + number * FRESH) for group in flat_groups(judged)}
        examples = {group: example for group, example in offered.items() if example is not None}
        if not examples:
            break
        gone = torch.tensor(list(examples), device=judged.rewards.device)
        kept = (~torch.isin(judged.rollouts.group, gone)).nonzero()[:, 0]
        judged = _joined(_taken(judged, kept), judge(list(examples.values())), pad)
        count += len(examples)
    return judged, count


def _taken(judged: Judged, rows: Tensor) -> Judged:
    return Judged(take(judged.rollouts, rows), judged.rewards[rows], {name: values[rows] for name, values in judged.components.items()})


def _joined(first: Judged, second: Judged, pad: int) -> Judged:
    return Judged(
        join([first.rollouts, second.rollouts], pad),
        torch.cat([first.rewards, second.rewards]),
        {name: torch.cat([values, second.components[name]]) for name, values in first.components.items()},
    )
