"""What the models of ``scripts/evidence_text.py`` answer to held-out rows, and how sure its figures are.

An evaluation's file holds corpus metrics and, of each held-out row, what a bootstrap needs: the score of the greedy answer by the metric
that is rewarded (chrF of the sentence, or ROUGE-2), and its mean over the samples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from gkd_rl.build import build_parts
from gkd_rl.config.run import Config
from gkd_rl.evaluation.metrics import Answers
from gkd_rl.processes import Processes
from reward_models.references import reference_column
from reward_models.text_metrics import TextMetric

DRAWS = 1000


@dataclass(frozen=True)
class Judged:
    """One model on one set of held-out rows."""

    figures: dict[str, float]
    """corpus metrics, means of the two below, and ``reverse_kl``, ``length``, ``truncated``"""
    score: list[float]
    """of each row: that of the greedy answer, 0 to 100"""
    reward: list[float]
    """of each row: mean over its samples, 0 to 1"""


def evaluate(config: Config, model: Path, rewarded: str) -> Judged:
    """The model in the folder ``model`` on the held-out rows of ``config``: one greedy answer and ``evaluation.samples`` samples each."""
    processes = Processes(config.engine.threads)
    parts = build_parts(config, processes, str(model), "model")
    kept: list[Answers] = []
    evaluator = replace(parts.evaluator, metrics=[*parts.evaluator.metrics, lambda answers: kept.append(answers) or {}])
    parts.sampler.sync(0)
    result = evaluator(parts.student, parts.evaluation_sampler, parts.held_out, parts.teaching.judge, config.evaluation.samples)
    processes.close()
    (answers,) = kept
    references = reference_column(answers.columns, "reference", len(answers.greedy))
    reward = TextMetric(metric=rewarded)
    score = [100 * (reward.score(text, of_row) or 0.0) for text, of_row in zip(answers.greedy, references, strict=True)]
    rewards = [[reward.score(text, of_row) or 0.0 for text in texts] for texts, of_row in zip(answers.samples, references, strict=True)]
    known = {
        "reward": result.reward,
        "score": sum(score) / len(score),
        "reverse_kl": result.reverse_kl,
        "length": result.length,
        "truncated": result.truncated,
    }
    figures = {**result.metrics, **{name: value for name, value in known.items() if value is not None}}
    return Judged(figures, score, [sum(values) / len(values) for values in rewards])


def bootstrap(runs: Sequence[Judged], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """``DRAWS`` values each of the mean score and the mean reward; [D] and [D].

    Runs and held-out rows are drawn with replacement, so that few seeds and few rows both count. Rows are drawn alike for all methods, so
    that their differences are paired by row.
    """
    of_rows, of_seeds = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    of_runs = np.array([[run.score, run.reward] for run in runs])
    means = np.empty((2, DRAWS))
    for draw in range(DRAWS):
        rows, chosen = of_rows.integers(0, of_runs.shape[2], of_runs.shape[2]), of_seeds.integers(0, len(runs), len(runs))
        means[:, draw] = of_runs[chosen][:, :, rows].mean(axis=(0, 2))
    return means[0], means[1]


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The middle 95%."""
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


def save(judged: Judged, path: Path) -> None:
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(asdict(judged)))
    aside.replace(path)


def load(path: Path) -> Judged:
    return Judged(**json.loads(path.read_text()))
