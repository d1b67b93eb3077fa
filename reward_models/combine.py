"""One reward out of several: a weighted sum with requirements, scheduled weights and normalised parts, which keeps every component."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from reward_models.asking import ask
from reward_models.errors import InputError, nearest_hint
from reward_models.loading import Reward

Scope = Literal["none", "group", "batch"]
STD_FLOOR = 1e-4
"""Added to standard deviations: values that are all alike become 0."""


@dataclass(frozen=True)
class RewardTotals:
    """What a `WeightedSum` gives for a batch: a total for each completion, and each component before its weight."""

    totals: list[float | None]
    components: dict[str, list[float | None]]


@dataclass(frozen=True)
class Requirement:
    """A reward counts only where another one, named `reward`, gives `at_least`."""

    reward: str
    at_least: float = 1.0


@dataclass(frozen=True)
class LinearWeight:
    """`weight(t) = start + (end − start)·min(t / steps, 1)`."""

    start: float
    end: float
    steps: int

    def at(self, step: int) -> float:
        """Return the weight at a 0-based step."""
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)


class WeightedSum:
    """`total_i = Σ_k weight_k · reward_k(i)` over the rewards that apply to row i; None where none does.

    Args:
        rewards: `(name, callable, weight)` for each reward; names are unique, weights finite or a `LinearWeight`, of which the end counts
            unless `at` says where on it one is.
        requires: name → what has to hold before that reward is asked. Elsewhere its component is None, and it adds nothing.
        normalize: name → over which rows its values are brought to mean 0 and deviation 1 in `normalised`: `group` or `batch`.

    Raises:
        InputError: no reward, a name given twice, a weight that is not finite, or requirements of an absent
            reward or in a circle.
    """

    __name__ = "weighted_sum"

    def __init__(
        self,
        rewards: Sequence[tuple[str, Reward, float | LinearWeight]],
        requires: Mapping[str, Requirement] | None = None,
        normalize: Mapping[str, Scope] | None = None,
    ) -> None:
        self.rewards = list(rewards)
        self.requires: dict[str, Requirement] = dict(requires or {})
        self.normalize: dict[str, Scope] = dict(normalize or {})
        _check(self.rewards, self.requires, self.normalize)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return the totals alone: a weighted sum is itself a reward."""
        return self.score(prompts, completions, **columns).totals

    def at(self, step: int) -> "WeightedSum":
        """Return the same sum with the weights of a 0-based step."""
        fixed = [(name, reward, weight.at(step) if isinstance(weight, LinearWeight) else weight) for name, reward, weight in self.rewards]
        return WeightedSum(fixed, self.requires, self.normalize)

    @property
    def weights(self) -> dict[str, float]:
        """Each reward's weight; of a scheduled one the last."""
        return {name: weight.end if isinstance(weight, LinearWeight) else weight for name, _, weight in self.rewards}

    @property
    def scheduled(self) -> list[str]:
        """Names of the rewards whose weight changes."""
        return [name for name, _, weight in self.rewards if isinstance(weight, LinearWeight)]

    def score(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> RewardTotals:
        """Return totals and components of a batch; errors as of `ask`."""
        components: dict[str, list[float | None]] = {}
        for name, reward, _ in sorted(self.rewards, key=lambda one: len(_chain(one[0], self.requires))):
            rows = self._asked(name, components, len(completions))
            values: list[float | None] = [None] * len(completions)
            if rows or not completions:
                for row, value in zip(rows, ask(name, reward, prompts, completions, columns, rows), strict=True):
                    values[row] = value
            components[name] = values
        listed = {name: components[name] for name, _, _ in self.rewards}
        return RewardTotals(self._sums(listed, len(completions)), listed)

    def normalised(self, components: Mapping[str, Sequence[float | None]], groups: Sequence[int]) -> list[float | None]:
        """Return totals of components that `score` gave, each one that `normalize` names as (r − mean) / (std + 1e-4), std with n−1.

        Means and deviations are of its values in the row's group, or in all rows. (For groups: GDPO, arXiv 2601.05242.)
        """
        scaled: dict[str, Sequence[float | None]] = {}
        for name, values in components.items():
            scope = self.normalize.get(name, "none")
            scaled[name] = values if scope == "none" else _standard(values, groups if scope == "group" else [0] * len(values))
        return self._sums(scaled, len(groups))

    def _sums(self, values: Mapping[str, Sequence[float | None]], rows: int) -> list[float | None]:
        weights = self.weights
        found = [[weight * value for name, weight in weights.items() if (value := values[name][row]) is not None] for row in range(rows)]
        return [math.fsum(of_row) if of_row else None for of_row in found]

    def _asked(self, name: str, components: Mapping[str, Sequence[float | None]], rows: int) -> list[int]:
        """The rows of which the reward is asked."""
        need = self.requires.get(name)
        if need is None:
            return list(range(rows))
        return [row for row, value in enumerate(components[need.reward]) if value is not None and value >= need.at_least]


def _standard(values: Sequence[float | None], groups: Sequence[int]) -> list[float | None]:
    members: dict[int, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        if value is not None:
            members.setdefault(group, []).append(value)
    means = {group: math.fsum(of_group) / len(of_group) for group, of_group in members.items()}
    deviations = {
        group: math.sqrt(math.fsum((value - means[group]) ** 2 for value in of_group) / max(len(of_group) - 1, 1))
        for group, of_group in members.items()
    }
    return [
        None if value is None else (value - means[group]) / (deviations[group] + STD_FLOOR)
        for value, group in zip(values, groups, strict=True)
    ]


def _check(
    rewards: Sequence[tuple[str, Reward, float | LinearWeight]], requires: Mapping[str, Requirement], normalize: Mapping[str, Scope]
) -> None:
    if not rewards:
        raise InputError("a weighted sum needs at least one reward")
    names = [name for name, _, _ in rewards]
    for name, _, weight in rewards:
        if names.count(name) > 1:
            raise InputError(f"two rewards are named '{name}'; give each a name of its own")
        bounds = (weight.start, weight.end) if isinstance(weight, LinearWeight) else (weight,)
        if not all(map(math.isfinite, bounds)):
            raise InputError(f"reward '{name}': its weight is {weight}; it must be a finite number")
        if isinstance(weight, LinearWeight) and weight.steps < 1:
            raise InputError(f"reward '{name}': its weight changes over {weight.steps} steps; it must be 1 or more")
        if normalize.get(name, "none") not in ("none", "group", "batch"):
            raise InputError(f"reward '{name}': normalize is '{normalize[name]}'; choose none, group or batch")
        need = requires.get(name)
        if need is not None and need.reward not in names:
            raise InputError(f"reward '{name}' requires '{need.reward}', which is none of them{nearest_hint(need.reward, names)}")
    for name in requires:
        if name in _chain(name, requires):
            raise InputError(f"reward '{name}' requires what requires it again; remove one of the requirements")


def _chain(name: str, requires: Mapping[str, Requirement]) -> list[str]:
    """What a reward requires, what that requires, and so on; ends where a name comes again."""
    found: list[str] = []
    while name in requires and requires[name].reward not in found:
        name = requires[name].reward
        found.append(name)
    return found
