"""Evaluation: greedy accuracy, and reward, divergence and pass@k on samples.

Shapes: B sequences.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.evaluation.metrics import Answers, Metric
from gkd_rl.learner import Learner
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.objective.schedule import TermWeights
from gkd_rl.objective.telemetry import summarise
from gkd_rl.processes import Processes
from gkd_rl.progress import progress, within
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.rows import micro_batches
from gkd_rl.rollout.sampler import Sampler
from gkd_rl.scoring import score_rollouts
from gkd_rl.teacher.local import Teacher
from gkd_rl.types import Example, Experience, GlobalCounts, Rollouts
from reward_models.combine import WeightedSum
from reward_models.statistics import pass_at_k, wilson_interval

SAMPLING_SEED = 1_000_003
"""Evaluation samples with numbers of its own, the same in every run."""


@dataclass(frozen=True)
class Evaluation:
    """One model on the held-out examples."""

    examples: int
    accuracy: float
    """share of greedy answers to which the task's own reward gives 1, whatever rewards are trained on"""
    accuracy_low: float
    accuracy_high: float
    """95% Wilson interval"""
    reward: float
    """mean weighted reward of answers sampled at temperature 1"""
    divergence: float | None
    """the configured divergence to the teacher, per token of those samples; None without a teacher"""
    reverse_kl: float | None
    """KL(student‖teacher) per token of those samples; None without a teacher, or with one that gives only some tokens"""
    length: float
    """mean tokens of a sampled answer"""
    truncated: float
    """share of samples that did not end by themselves"""
    tokens: int
    seconds: float
    """tokens generated and the time it took, greedy and sampled"""
    pass_at: dict[str, float]
    """k → pass@k, where more than one sample per example was asked for"""
    metrics: dict[str, float] = field(default_factory=dict)
    """corpus metrics of all answers"""
    judged: Sequence[dict[str, Any]] = ()
    """of each example: its key, prompt, reference (where there is one) and greedy answer, and whether this was right"""

    def score(self, name: str) -> float:
        """The figure by which models are compared: ``accuracy``, ``reward``, or one of ``metrics``; NaN where no answer has it."""
        return {"accuracy": self.accuracy, "reward": self.reward, **self.metrics}.get(name, math.nan)

    def as_row(self) -> dict[str, Any]:
        """Everything but the times, which differ from run to run, and single examples."""
        row = asdict(self)
        del row["seconds"], row["judged"]
        return row


@dataclass
class Evaluator:
    """Evaluates models of one family on one task; the teacher may be absent."""

    rewards: WeightedSum
    verifier: WeightedSum
    """the task's own: what is right does not depend on what is rewarded"""
    objective: ObjectiveConfig
    processes: Processes
    token_budget: int
    max_new_tokens: int
    temperature: float = 1.0
    """of the sampled answers"""
    metrics: Sequence[Metric] = ()
    calculator: bool = False
    """whether results of ``<<expression=`` are inserted into answers"""

    @torch.no_grad()
    def __call__(
        self,
        model: LanguageModel,
        sampler: Sampler,
        examples: Sequence[Example],
        teacher: Teacher | None = None,
        samples: int = 1,
    ) -> Evaluation:
        """``samples`` answers to each example beside the greedy one."""
        with within("evaluation"):
            return self._evaluation(model, sampler, examples, teacher, samples)

    def _evaluation(
        self, model: LanguageModel, sampler: Sampler, examples: Sequence[Example], teacher: Teacher | None, samples: int
    ) -> Evaluation:
        mine = self.processes.share(examples)
        started = time.perf_counter()
        greedy, sampled = self.processes.together(lambda: self._samples(sampler, mine, max(1, samples)))
        seconds = time.perf_counter() - started
        right, correct, rewards = self.processes.together(
            lambda: (self._right(greedy), self._right(sampled), score_rollouts(self.rewards, sampled)[0])
        )
        right_samples = correct.view(len(mine), max(1, samples)).sum(1).tolist()
        totals = self.processes.sum(
            {
                "right": float(right.sum()),
                "reward": float(rewards.nansum()),
                "rewarded": float((~rewards.isnan()).sum()),
                "samples": float(len(rewards)),
                "sample_tokens": float(sampled.completion_mask.sum()),
                "tokens": float(sampled.completion_mask.sum() + greedy.completion_mask.sum()),
                "truncated": float((~sampled.ended).sum()),
                **{f"pass@{k}": sum(pass_at_k(samples, int(c), k) for c in right_samples) for k in _powers(samples)},
            }
        )
        judged = [_judged(*answer) for answer in zip(mine, greedy.texts, right.tolist(), strict=True)]
        values = self._metrics(greedy, sampled, max(1, samples))
        figures = self._divergence(model, teacher, sampled) if teacher is not None else {}
        low, high = wilson_interval(int(totals["right"]), len(examples))
        return Evaluation(
            examples=len(examples),
            accuracy=totals["right"] / len(examples),
            accuracy_low=low,
            accuracy_high=high,
            reward=totals["reward"] / totals["rewarded"] if totals["rewarded"] else math.nan,
            divergence=figures.get("divergence"),
            reverse_kl=figures.get("reverse_kl"),
            length=totals["sample_tokens"] / totals["samples"],
            truncated=totals["truncated"] / totals["samples"],
            tokens=int(totals["tokens"]),
            seconds=seconds,
            pass_at={str(k): totals[f"pass@{k}"] / len(examples) for k in _powers(samples)},
            metrics=values,
            judged=[row for part in self.processes.gather(judged) for row in part],
        )

    def _samples(self, sampler: Sampler, examples: Sequence[Example], count: int) -> tuple[Rollouts, Rollouts]:
        """One greedy answer to each example, and ``count`` sampled ones."""
        params = SamplingParams(self.max_new_tokens, self.temperature, calculator=self.calculator)
        greedy = sampler.sample(examples, 1, replace(params, temperature=0.0), SAMPLING_SEED)
        return greedy, sampler.sample(examples, count, params, SAMPLING_SEED)

    def _right(self, rollouts: Rollouts) -> Tensor:
        _, components = score_rollouts(self.verifier, rollouts)
        return next(iter(components.values())) >= 1.0

    def _metrics(self, greedy: Rollouts, sampled: Rollouts, count: int) -> dict[str, float]:
        """Corpus metrics of the answers of all ranks; each rank computes them."""
        if not self.metrics:
            return {}
        rows = [
            (example.columns, text, sampled.texts[count * place : count * (place + 1)])
            for place, (example, text) in enumerate(zip(greedy.examples, greedy.texts, strict=True))
        ]
        everything = [row for part in self.processes.gather(rows) for row in part]
        names = sorted({name for columns, _, _ in everything for name in columns})
        columns = {name: [columns.get(name) for columns, _, _ in everything] for name in names}
        answers = Answers([text for _, text, _ in everything], [texts for _, _, texts in everything], columns)
        return {name: value for metric in self.metrics for name, value in metric(answers).items()}

    def _divergence(self, model: LanguageModel, teacher: Teacher, rollouts: Rollouts) -> dict[str, float]:
        zeros = torch.zeros(len(rollouts.examples), device=rollouts.completion_ids.device)
        experience = Experience(rollouts, zeros, {}, zeros, teacher.score(rollouts))
        towards = replace(self.objective, divergence=replace(self.objective.divergence, extrapolation=1.0))  # the teacher itself
        learner = Learner(model, towards, TermWeights(0.0, 1.0, 0.0), GlobalCounts(0.0, 1.0, 0.0))
        with progress("divergence", len(zeros), "rows") as advance:
            for part in micro_batches(experience, self.token_budget, model.one_sequence):
                learner.loss(part)
                advance(len(part.rewards))
        return summarise(self.processes.sum(learner.sums))


def _judged(example: Example, answer: str, right: bool) -> dict[str, Any]:
    prompt = example.prompt if isinstance(example.prompt, str) else [dict(message) for message in example.prompt]
    reference = {"reference": example.columns["reference"]} if "reference" in example.columns else {}
    return {"example": example.key, "right": right, "prompt": prompt, "completion": answer, **reference}


def _powers(samples: int) -> list[int]:
    return [] if samples < 2 else [k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k <= samples]
