"""Refuses settings of a reward that cannot work. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from gkd_rl.config.run import RewardConfig

_SCHEDULE = {"start", "end", "steps"}


def reward_complaints(key: str, reward: RewardConfig) -> Iterator[str]:
    """What is wrong with the reward at ``key`` (as ``rewards[0]``), one sentence each."""
    yield from _weight_complaints(f"{key}.weight", reward.weight)
    if not 0 <= reward.timeout < math.inf:
        yield f"{key}.timeout is {reward.timeout}; it must be a number of seconds, or 0 for any time"
    if reward.retries < 0:
        yield f"{key}.retries is {reward.retries}; it must be at least 0"
    if reward.threads < 1:
        yield f"{key}.threads is {reward.threads}; it must be at least 1"
    if not isinstance(reward.cache, (bool, str)) or reward.cache == "":
        yield f"{key}.cache is {reward.cache!r}; it must be true, false or the path of a folder"
    if reward.requires is not None and not reward.requires.reward:
        yield f"{key}.requires names no reward; name another one of the list in {key}.requires.reward"
    if reward.requires is not None and not math.isfinite(reward.requires.at_least):
        yield f"{key}.requires.at_least is {reward.requires.at_least}; it must be a finite number"


def _weight_complaints(key: str, weight: Any) -> Iterator[str]:
    if isinstance(weight, dict):
        if set(weight) != _SCHEDULE or not all(map(_is_number, weight.values())):
            yield f"{key} is {weight}; a weight that changes is {{start: NUMBER, end: NUMBER, steps: NUMBER}}"
        elif not isinstance(weight["steps"], int) or weight["steps"] < 1:
            yield f"{key}.steps is {weight['steps']}; it must be a whole number of at least 1"
    elif not _is_number(weight):
        yield f"{key} is {weight!r}; it must be a finite number, or {{start: NUMBER, end: NUMBER, steps: NUMBER}}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
