"""What a run does when its reward looks hacked. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gkd_rl.config.objective import ObjectiveConfig


@dataclass
class WatchConfig:
    """Looking out for reward hacking: the reward rises while what it stands for does not."""

    action: Literal["off", "warn", "raise_alpha", "stop"] = "warn"
    """``warn`` says it once, with the answers that show it; ``raise_alpha`` also gives the teacher more weight from then on; ``stop``
    ends the run after keeping the step."""
    window: int = 10
    """Steps whose means are compared: the first so many of the run with the last so many."""
    symptoms: int = 2
    """Symptoms beside a rising reward from which on it counts, where held-out accuracy is not known to have fallen or risen."""
    alpha: float = 1.0
    """``raise_alpha``: the least α from then on."""


def watch_complaints(watch: WatchConfig, objective: ObjectiveConfig) -> Iterator[str]:
    """A sentence for each setting that is out of range, or that nothing would come of."""
    if watch.window < 2:
        yield f"watch.window is {watch.window}; it must be at least 2: a spread is made of two steps or more"
    if watch.symptoms < 1:
        yield f"watch.symptoms is {watch.symptoms}; it must be at least 1"
    if not 0 <= watch.alpha <= 1:
        yield f"watch.alpha is {watch.alpha}; it must lie between 0 and 1"
    if watch.action == "raise_alpha" and (objective.reward_weight is not None or objective.divergence_weight is not None):
        yield "watch.action=raise_alpha raises objective.alpha; drop objective.reward_weight and divergence_weight, which replace it"
