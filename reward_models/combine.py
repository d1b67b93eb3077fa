"""One reward out of several: a weighted sum that keeps every component."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reward_models.errors import InputError, RewardError, RewardValueError
from reward_models.loading import Reward
from reward_models.time_limit import OutOfTime


@dataclass(frozen=True)
class RewardTotals:
    """What a `WeightedSum` gives for a batch: a total for each completion, and each component before its weight."""

    totals: list[float | None]
    components: dict[str, list[float | None]]


class WeightedSum:
    """`total_i = Σ_k weight_k · reward_k(i)` over the rewards that apply to row i; None where none does.

    Args:
        rewards: `(name, callable, weight)` for each reward; names are unique and weights finite.

    Raises:
        InputError: no reward, a name given twice, or a weight that is not finite.
    """

    __name__ = "weighted_sum"

    def __init__(self, rewards: Sequence[tuple[str, Reward, float]]) -> None:
        if not rewards:
            raise InputError("a weighted sum needs at least one reward")
        names = [name for name, _, _ in rewards]
        for name, _, weight in rewards:
            if names.count(name) > 1:
                raise InputError(f"two rewards are named '{name}'; give each a name of its own")
            if not math.isfinite(weight):
                raise InputError(f"reward '{name}': its weight is {weight}; it must be a finite number")
        self.rewards = list(rewards)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return the totals alone: a weighted sum is itself a reward."""
        return self.score(prompts, completions, **columns).totals

    def score(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> RewardTotals:
        """Return totals and components of a batch.

        Raises:
            InputError: a reward refused its input; its name is put in front.
            RewardError: a reward failed, took longer than its `TimeLimit`, or returned too few or too many values.
            RewardValueError: it returned one that is not a finite number; row and completion are named.
        """
        components = {name: _values(name, reward, prompts, completions, columns) for name, reward, _ in self.rewards}
        weights = [weight for _, _, weight in self.rewards]
        return RewardTotals([_total(weights, row) for row in zip(*components.values(), strict=True)], components)


def _total(weights: Sequence[float], row: Sequence[float | None]) -> float | None:
    applied = [weight * value for weight, value in zip(weights, row, strict=True) if value is not None]
    return math.fsum(applied) if applied else None


def _values(name: str, reward: Reward, prompts: Sequence[Any], completions: Sequence[Any], columns: dict[str, Any]) -> list[float | None]:
    try:
        values = list(reward(prompts=prompts, completions=completions, **columns))
    except InputError as error:
        raise InputError(f"reward '{name}': {error}") from error
    except OutOfTime as error:
        raise RewardError(f"reward '{name}' {error}; raise its timeout, or mend the reward") from None
    except Exception as error:
        raise RewardError(f"reward '{name}' failed ({type(error).__name__}: {error})") from error
    if len(values) != len(completions):
        raise RewardError(f"reward '{name}' returned {len(values)} values for {len(completions)} completions")
    return [_finite(name, row, value, completion) for row, (value, completion) in enumerate(zip(values, completions, strict=True))]


def _finite(name: str, row: int, value: Any, completion: Any) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        said = f"reward '{name}' returned {value!r} for row {row}; a reward is a number or None"
        raise RewardValueError(f"{said}; the completion is {_short(completion)}", row) from error
    if not math.isfinite(number):
        said = f"reward '{name}' returned {number} for row {row}; rewards must be finite, or None where they do not apply"
        raise RewardValueError(f"{said}; the completion is {_short(completion)}", row)
    return number


def _short(completion: Any, most: int = 80) -> str:
    """One line for a message."""
    text = completion if isinstance(completion, str) else str(completion[-1]["content"])
    return repr(text if len(text) <= most else f"{text[:most]}...")
