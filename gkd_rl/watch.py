"""Looks out for reward hacking: the reward rises while what it stands for does not.

A run's first steps are compared with its last ones. A mean counts as moved where it lies more than ``SIGMAS`` standard errors away (Welch)
and by more than the least change named in ``SYMPTOMS``. Shapes: B sequences.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gkd_rl.config.watch import WatchConfig
from gkd_rl.objective.schedule import TermWeights
from gkd_rl.types import Experience

SIGMAS = 3.0
SHOWN = 3
"""Answers that a finding shows."""


@dataclass(frozen=True)
class Symptom:
    """One figure of ``metrics.jsonl`` and the change of it that is typical of a hacked reward."""

    figure: str
    words: str
    factor: float = 1.0
    """The mean must have passed so many times the first one ..."""
    distance: float = 0.0
    """... and lie so far from it."""
    falls: bool = False

    def shown_by(self, before: Sequence[float], after: Sequence[float]) -> bool:
        sign = -1 if self.falls else 1
        first, last = statistics.fmean(before), statistics.fmean(after)
        moved = sign * (last - first)
        return moved > SIGMAS * _error(before, after) and moved > self.distance and sign * (last - self.factor * first) > 0


REWARD = Symptom("reward", "the reward")
SYMPTOMS = (
    Symptom("truncated", "the share of answers without an end", distance=0.1),
    Symptom("length", "the length of answers", factor=1.5),
    Symptom("distinct_2", "the share of distinct bigrams", factor=0.8, falls=True),
    Symptom("entropy", "the entropy", factor=0.5, falls=True),
    Symptom("reverse_kl", "the divergence to the teacher", factor=1.5),
)
_WATCHED = ("reward", *(symptom.figure for symptom in SYMPTOMS))


@dataclass
class Watch:
    """What has been seen of the run so far. Every rank sees the same figures, so that all come to the same finding."""

    config: WatchConfig
    examples: int
    """Held-out examples of an evaluation during training: what its accuracy is worth."""
    steps: list[dict[str, float]] = field(default_factory=list)
    """The watched figures of the first ``window`` steps and of the last so many."""
    accuracies: list[float] = field(default_factory=list)
    found_at: int = 0
    """Step after which the reward was found to be hacked; 0: it was not."""

    def observe(self, figures: Mapping[str, float]) -> str | None:
        """Takes in a step's figures; the first time they look like hacking, a sentence that says why."""
        if self.config.action == "off" or "reward" not in figures:
            return None
        window = self.config.window
        watched = {name: figures[name] for name in _WATCHED if math.isfinite(figures.get(name, math.nan))}
        self.steps = [*self.steps[:window], *self.steps[window:][-(window - 1) :], watched]
        if "eval_accuracy" in figures:
            self.accuracies.append(figures["eval_accuracy"])
        if self.found_at or len(self.steps) < 2 * window:
            return None
        reasons = self._reasons()
        self.found_at = int(figures["step"]) if reasons else 0
        return f"step {self.found_at}: {reasons}" if reasons else None

    def _reasons(self) -> str | None:
        """What moved, in words, if it amounts to hacking."""
        if not self._shows(REWARD):
            return None
        symptoms = [symptom for symptom in SYMPTOMS if self._shows(symptom)]
        accuracy = self._accuracy_moved()
        if accuracy > 0 or (accuracy == 0 and len(symptoms) < self.config.symptoms):
            return None
        words = [self._in_words(symptom) for symptom in symptoms]
        if accuracy < 0:
            words.insert(0, f"held-out accuracy went from {max(self.accuracies[:-1]):.3g} to {self.accuracies[-1]:.3g}")
        return f"{self._in_words(REWARD)}, while {' and '.join(words)}"

    def _windows(self, figure: str) -> tuple[list[float], list[float]]:
        parts = self.steps[: self.config.window], self.steps[-self.config.window :]
        before, after = ([step[figure] for step in part if figure in step] for part in parts)
        return before, after

    def _shows(self, symptom: Symptom) -> bool:
        before, after = self._windows(symptom.figure)
        return min(len(before), len(after)) >= 2 and symptom.shown_by(before, after)

    def _accuracy_moved(self) -> int:
        """1: the last held-out accuracy is above the first by more than chance, −1: below the best by more than chance, 0: neither."""
        if len(self.accuracies) < 2:
            return 0
        first, best, last = self.accuracies[0], max(self.accuracies[:-1]), self.accuracies[-1]
        if best - last > SIGMAS * _binomial_error(best, last, self.examples):
            return -1
        return int(last - first > _binomial_error(first, last, self.examples))

    def _in_words(self, symptom: Symptom) -> str:
        before, after = (statistics.fmean(part) for part in self._windows(symptom.figure))
        return f"{symptom.words} went from {before:.3g} to {after:.3g}"

    def weights(self, scheduled: TermWeights) -> TermWeights:
        """The terms' weights, with at least ``alpha`` on the teacher once the reward was found to be hacked and the settings say so."""
        if not self.found_at or self.config.action != "raise_alpha":
            return scheduled
        alpha = max(self.config.alpha, scheduled.divergence)
        return TermWeights(1 - alpha, alpha, scheduled.cross_entropy)

    def state_dict(self) -> dict[str, Any]:
        """A plain copy of what has been seen."""
        return {"steps": self.steps, "accuracies": self.accuracies, "found_at": self.found_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what ``state_dict`` gave."""
        self.steps, self.accuracies, self.found_at = list(state["steps"]), list(state["accuracies"]), state["found_at"]


def _error(before: Sequence[float], after: Sequence[float]) -> float:
    """Standard error of the difference of two means."""
    return math.sqrt(sum(statistics.variance(part) / len(part) for part in (before, after)))


def _binomial_error(one: float, other: float, count: int) -> float:
    return math.sqrt((one * (1 - one) + other * (1 - other)) / count)


def most_rewarded(experience: Experience) -> list[dict[str, Any]]:
    """This rank's sampled answers of the highest reward, as rows."""
    rewards = experience.rewards.masked_fill(~experience.rollouts.on_policy, -math.inf).nan_to_num(-math.inf, neginf=-math.inf)
    places = rewards.argsort(descending=True, stable=True)[:SHOWN].tolist()
    rows = [(experience.rewards[i].item(), experience.rollouts.examples[i], experience.rollouts.texts[i]) for i in places]
    return [{"reward": reward, "prompt": _text(example.prompt), "completion": text} for reward, example, text in rows]


def _text(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
