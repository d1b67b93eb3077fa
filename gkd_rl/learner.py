"""From a micro-batch to its loss: the student's one forward pass, the objective's weights, and what is logged of both.

Shapes: B sequences, C completion positions, N valid completion tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gkd_rl.config.objective import Mean, ObjectiveConfig
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.objective.fused import fused_objective
from gkd_rl.objective.schedule import TermWeights
from gkd_rl.objective.top_choices import top_choices
from gkd_rl.rollout.rows import chosen_tokens, on_device, score_tensors
from gkd_rl.types import (
    Experience,
    Gates,
    GlobalCounts,
    Head,
    HiddenScores,
    MixtureScores,
    ObjectiveResult,
    SpanScores,
    SpanTopKScores,
    TeacherScores,
    TokenBatch,
)


@dataclass
class Learner:
    """The student under the objective. ``reference_head`` belongs to ``Experience.reference``."""

    model: LanguageModel
    config: ObjectiveConfig
    weights: TermWeights = field(default_factory=lambda: TermWeights(0.0, 0.0, 0.0))
    """Set before each update by the loop."""
    counts: GlobalCounts = field(default_factory=lambda: GlobalCounts(0.0, 0.0, 0.0))
    """Set before each update by the loop."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Sums of the update's metrics over this rank's micro-batches."""
    records: list[tuple[Experience, ObjectiveResult]] | None = None
    """Where results are kept for the rollouts' file; None: nowhere."""
    logged_choices: int = 0
    """How many of the likeliest tokens of student and teacher are kept with them."""

    def loss(self, micro_batch: Experience | None) -> Tensor:
        """Loss of one micro-batch, divided by the global counts; a zero that reaches every parameter where there is none."""
        if micro_batch is None:
            return self._anchor()
        micro_batch = on_device(micro_batch, self.model.device)
        batch = self.token_batch(micro_batch)
        result = fused_objective(batch, self.config, self.counts)
        for name, value in result.sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        if self.records is not None:
            if self.logged_choices:
                ours, theirs = top_choices(batch, self.logged_choices)
                result = replace(result, student_top=ours, teacher_top=theirs)
            self.records.append((micro_batch, result))
        return result.loss

    def token_batch(self, micro_batch: Experience) -> TokenBatch:
        """The tokens of ``micro_batch`` that terms are about, with each term's weight for every one of them."""
        rollouts = micro_batch.rollouts
        mask = chosen_tokens(rollouts)
        hidden = self.model.completion_hidden(rollouts.prompt_ids, rollouts.prompt_mask, rollouts.completion_ids, rollouts.completion_mask)
        rows = torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask)[mask]
        return TokenBatch(
            student_hidden=hidden[mask],
            student_head=self.model.head,
            token_ids=rollouts.completion_ids[mask],
            reward_weights=self.weights.reward * row_weights(micro_batch, "reward", self.config)[rows],
            divergence_weights=self.weights.divergence * row_weights(micro_batch, "divergence", self.config)[rows],
            cross_entropy_weights=self.weights.cross_entropy * row_weights(micro_batch, "cross_entropy", self.config)[rows],
            advantages=micro_batch.advantages[rows],
            old_logprobs=rollouts.logprobs[mask],
            sampler_logprobs=rollouts.sampler_logprobs[mask],
            sequence_index=rows,
            **_of_teacher(micro_batch.teacher, mask),
            **_of_reference(micro_batch.reference, mask),
        )

    def _anchor(self) -> Tensor:
        """A forward pass of one token whose loss is 0, so that ranks without rows take part in every collective."""
        token = torch.zeros(1, 1, dtype=torch.long, device=self.model.device)
        mask = torch.ones_like(token, dtype=torch.bool)
        hidden = self.model.completion_hidden(token, mask, token, mask)
        head: Head = self.model.head
        loss = hidden.sum() * 0.0 + head.weight[:1].sum() * 0.0
        return loss if head.bias is None else loss + head.bias[:1].sum() * 0.0


def _of_teacher(scores: TeacherScores | None, mask: Tensor) -> dict[str, Any]:
    """A teacher's scores of the valid tokens as fields of ``TokenBatch``."""
    if scores is None:
        return {}
    if isinstance(scores, HiddenScores):
        return {"teacher_hidden": scores.hidden[mask], "teacher_head": scores.head}
    if isinstance(scores, MixtureScores):
        return {"teacher_parts": tuple((part.hidden[mask], part.head) for part in scores.parts), "teacher_weights": scores.weights[mask]}
    if isinstance(scores, SpanScores | SpanTopKScores):
        valid: dict[str, Any] = {name: value[mask] for name, value in score_tensors(scores).items()}
        return {"teacher_spans": replace(scores, **valid)}
    top = {"teacher_top_ids": scores.ids[mask], "teacher_top_logprobs": scores.logprobs[mask]}
    return {**top, "teacher_logprobs": scores.token_logprobs[mask]}


def _of_reference(scores: TeacherScores | None, mask: Tensor) -> dict[str, Any]:
    if scores is None:
        return {}
    assert isinstance(scores, HiddenScores), "the reference is a model in the process"
    return {"reference_hidden": scores.hidden[mask], "reference_head": scores.head}


def applies(experience: Experience, term: str) -> Tensor:
    """[B] bool: rows that a term is about. Reward: sampled rows that a reward judged; cross-entropy: dataset rows; divergence: all."""
    if term == "reward":
        return experience.rollouts.on_policy & ~experience.rewards.isnan()
    if term == "cross_entropy":
        return ~experience.rollouts.on_policy
    return torch.ones_like(experience.rollouts.on_policy)


def term_mean(term: str, config: ObjectiveConfig) -> Mean:
    """Whether a term's mean runs over tokens or over sequences first."""
    return config.surrogate.mean if term == "reward" else config.divergence.mean


def row_weights(experience: Experience, term: str, config: ObjectiveConfig) -> Tensor:
    """[B] fp32: gate × 1/length (sequence mean) of each row, 0 where the term does not apply."""
    gates: Gates | None = experience.gates
    weight = applies(experience, term).float()
    if gates is not None and term in ("reward", "divergence"):
        weight = weight * (gates.reward if term == "reward" else gates.divergence)
    if term_mean(term, config) == "sequence":
        weight = weight / chosen_tokens(experience.rollouts).sum(1).clamp(min=1)
    return weight


def local_counts(experiences: Sequence[Experience], config: ObjectiveConfig) -> dict[str, float]:
    """This rank's share of each term's denominator: tokens, or sequences, of the rows that the term is about (gated or not)."""
    counts: dict[str, Any] = {}
    for term in ("reward", "divergence", "cross_entropy"):
        total = 0
        for experience in experiences:
            size = chosen_tokens(experience.rollouts).sum(1)
            size = size if term_mean(term, config) == "token" else (size > 0)
            total += int((size * applies(experience, term)).sum())
        counts[term] = float(total)
    return counts
