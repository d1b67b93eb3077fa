"""What the models of ``scripts/evidence_text.py`` answer to held-out rows, and how sure its figures are.

An evaluation's file holds corpus metrics and, of each held-out row, what a bootstrap needs: of translations BLEU's counts (matches and
totals of 1- to 4-grams, lengths), of summaries ROUGE-2 of the greedy answer, and of both the mean reward of the samples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from sacrebleu.metrics.bleu import BLEU

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
    """corpus metrics, and ``reward``, ``reverse_kl``, ``length``, ``truncated``"""
    score: list[list[float]]
    """[row][statistic]: BLEU's ten counts, or one ROUGE-2 (0 to 100)"""
    reward: list[float]
    """of each row: mean over its samples"""


def evaluate(config: Config, model: Path, bleu: bool, rewarded: str) -> Judged:
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
    rewards = [[reward.score(text, of_row) or 0.0 for text in texts] for texts, of_row in zip(answers.samples, references, strict=True)]
    rouge2 = TextMetric(metric="rouge2")
    score = [
        bleu_counts(text, of_row) if bleu else [100 * (rouge2.score(text, of_row) or 0.0)]
        for text, of_row in zip(answers.greedy, references, strict=True)
    ]
    known = {"reward": result.reward, "reverse_kl": result.reverse_kl, "length": result.length, "truncated": result.truncated}
    figures = {**result.metrics, **{name: value for name, value in known.items() if value is not None}}
    return Judged(figures, score, [sum(values) / len(values) for values in rewards])


def bleu_counts(text: str, references: Sequence[str]) -> list[float]:
    """Matches of 1- to 4-grams, their totals, and the lengths of answer and reference, as sacrebleu counts them."""
    found = BLEU(effective_order=True).sentence_score(text, references)
    return [*map(float, found.counts), *map(float, found.totals), float(found.sys_len), float(found.ref_len)]


def corpus_score(rows: np.ndarray) -> float:
    """BLEU of the corpus (exponential smoothing, as sacrebleu) from counts [R, 10]; the mean of single values [R, 1]."""
    if rows.shape[1] == 1:
        return float(rows.mean())
    total = [int(value) for value in rows.sum(axis=0)]
    return BLEU.compute_bleu(total[:4], total[4:8], total[8], total[9], smooth_method="exp").score


def bootstrap(runs: Sequence[Judged], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """``DRAWS`` values each of the score and of the mean reward, averaged over runs; [D] and [D].

    Runs and held-out rows are drawn with replacement, so that few seeds and few rows both count. The draws depend on ``seed`` and on the
    numbers of runs and rows alone: methods with as many of both are drawn alike, and their differences are paired by row.
    """
    rng = np.random.default_rng(seed)
    counts, rewards = np.array([run.score for run in runs]), np.array([run.reward for run in runs])
    scores, means = np.empty(DRAWS), np.empty(DRAWS)
    for draw in range(DRAWS):
        rows = rng.integers(0, counts.shape[1], counts.shape[1])
        chosen = rng.integers(0, len(runs), len(runs))
        scores[draw] = np.mean([corpus_score(counts[run][rows]) for run in chosen])
        means[draw] = rewards[chosen][:, rows].mean()
    return scores, means


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
