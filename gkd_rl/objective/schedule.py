"""The terms' weights over the run. Imports no torch: configurations are checked with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gkd_rl.config.objective import ObjectiveConfig, ScheduleConfig


@dataclass(frozen=True)
class TermWeights:
    """Weights of the objective's terms at one update."""

    reward: float
    divergence: float
    cross_entropy: float


@dataclass
class ScoreHistory:
    """Validation so far: what ``plateau`` and ``adaptive`` schedules look at. A run saves and restores it with its checkpoints."""

    scores: list[float] = field(default_factory=list)
    """One score per evaluation, larger is better."""
    losses: list[float] = field(default_factory=list)
    """Where a schedule is adaptive: cross-entropy of the dataset's held-out completions, at the start and at each evaluation."""

    def observe(self, score: float) -> None:
        """Adds the score of one evaluation."""
        self.scores.append(float(score))

    def state_dict(self) -> dict[str, Any]:
        """A plain copy of the history."""
        return {"scores": list(self.scores), "losses": list(self.losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a saved history."""
        self.scores = [float(score) for score in state["scores"]]
        self.losses = [float(loss) for loss in state["losses"]]


def has_plateaued(scores: Sequence[float], patience: int, min_gain: float) -> bool:
    """Whether at any time ``patience`` scores in a row brought no new best by more than ``min_gain``; once true, it stays so."""
    best, waited = -math.inf, 0
    for score in scores:
        best, waited = (score, 0) if score > best + min_gain else (best, waited + 1)
        if waited >= patience:
            return True
    return False


def grown(start: float, end: float, losses: Sequence[float], increment: float, tolerance: float) -> float:
    """``start`` + ``increment`` for each time that the loss has risen by ``tolerance``, at most ``end``.

    Risen since it last had, or since the first loss: DistiLLM's schedule of student-generated rows (Ko et al. 2024, arXiv 2402.03898,
    section 3.2; in the authors' code both numbers are 0.1).
    """
    last, times = math.inf, 0
    for number, loss in enumerate(losses):
        if number == 0 or loss >= last + tolerance:
            last, times = loss, times + (number > 0)
    return min(end, start + times * increment)


def value_at(start: float, config: ScheduleConfig, step: int, max_steps: int, history: ScoreHistory | None = None) -> float:
    """The scheduled value at update ``step`` (0-based): ``start`` until ``start_step``, then along the path to ``end``."""
    if config.kind == "constant":
        return start
    assert config.end is not None, "validate_objective asks for `end`"
    if config.kind == "plateau":
        scores = history.scores if history is not None else ()
        return config.end if has_plateaued(scores, config.patience, config.min_gain) else start
    if config.kind == "adaptive":
        return grown(start, config.end, history.losses if history is not None else (), config.increment, config.tolerance)
    if config.kind == "step":
        return config.end if step >= config.start_step else start
    length = config.steps if config.steps is not None else max_steps - 1 - config.start_step
    done = min(max((step - config.start_step) / max(length, 1), 0.0), 1.0)
    if config.kind == "exponential":
        return start * (config.end / start) ** done
    if config.kind == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return start + (config.end - start) * done


def weights_at(config: ObjectiveConfig, step: int, max_steps: int, state: ScoreHistory | None = None) -> TermWeights:
    """w_r = 1−α(t) and w_d = α(t), or the weights set apart from α; w_ce is constant.

    Args:
        config: the objective's configuration.
        step: 0-based number of the update.
        max_steps: updates of the whole run.
        state: validation scores so far, for ``plateau`` schedules.
    """
    alpha = value_at(config.alpha, config.alpha_schedule, step, max_steps, state)
    reward, divergence = 1 - alpha, alpha
    if config.reward_weight is not None:
        reward = value_at(config.reward_weight, config.reward_schedule, step, max_steps, state)
    if config.divergence_weight is not None:
        divergence = value_at(config.divergence_weight, config.divergence_schedule, step, max_steps, state)
    return TermWeights(reward, divergence, config.cross_entropy_weight)
