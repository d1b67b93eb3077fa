"""Spans of text in the fused pass, where a span's tokens may lie in several chunks.

The log-probability of a span is that of its first token plus a sum over the others, which a look ahead leaves as a number. The slope of
the loss in it is found where the span begins, and carried to its other tokens when their turn comes: they stand behind it.

Shapes: N tokens, n tokens of a chunk, V and U vocabulary of student and teacher, K kept tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gkd_rl.config.objective import DivergenceConfig, ObjectiveConfig
from gkd_rl.objective.numerics import log_probs
from gkd_rl.objective.projection import Projection
from gkd_rl.objective.spans import later_sums, outcomes_in, start_of
from gkd_rl.types import SpanScores, SpanTopKScores

LOOK_AHEAD_TOKENS = 64
"""Tokens whose logits are formed at once to get their own log-probability."""


class SpanRows(NamedTuple):
    """Spans of the tokens of a chunk."""

    outcomes: SpanTopKScores
    """[n] the teacher's side"""
    later: Tensor
    """[n] Σ log p of the span's tokens after its first, at the first"""
    aligned: Tensor
    """[n] bool: in a span whose text both sides have"""


def on_kept_tokens(config: ObjectiveConfig) -> ObjectiveConfig:
    """The objective for kernels that meet no tile of the teacher: its divergence is a function of some log-probabilities."""
    return replace(config, divergence=replace(config.divergence, estimator="top_k"))


class SpanChunks:
    """What the pass over chunks needs of a teacher with another tokenizer."""

    def __init__(self, scores: SpanScores | SpanTopKScores, token_ids: Tensor, student: Projection, config: DivergenceConfig) -> None:
        self.scores, self.token_ids, self.config = scores, token_ids, config
        self.teacher = Projection(scores.hidden, scores.matched.head) if isinstance(scores, SpanScores) else None
        self.start_of = start_of(scores.starts)
        self.later = later_sums(self._own(student), scores.starts)
        self.slopes = torch.zeros_like(self.later)

    @torch.no_grad()
    def _own(self, student: Projection) -> Tensor:
        """[N] the student's log-probability of each token that does not begin a span; 0 for the others."""
        own = torch.zeros(len(self.token_ids), dtype=student.dtype, device=self.token_ids.device)
        for some in (~self.scores.starts).nonzero()[:, 0].split(LOOK_AHEAD_TOKENS):
            own[some] = log_probs(student.logits(some), self.config.temperature).gather(-1, self.token_ids[some, None]).squeeze(-1)
        return own

    @torch.no_grad()
    def rows(self, where: slice) -> SpanRows:
        """Those of some tokens."""
        logits = None if self.teacher is None else self.teacher.logits(where)
        outcomes = outcomes_in(_part(self.scores, where), logits, self.token_ids[where], self.config)
        return SpanRows(outcomes, self.later[where], self.scores.realised[self.start_of[where]])

    def carry(self, kept_slopes: Tensor, where: slice) -> Tensor:
        """Slopes of a chunk [n, 1+K], completed by those that tokens within spans have from the spans' beginnings. Chunks come in order."""
        starts = self.scores.starts[where]
        self.slopes[where] = kept_slopes[:, 0] * starts
        own = torch.where(starts, kept_slopes[:, 0], self.slopes[self.start_of[where]])
        return torch.cat([own[:, None], kept_slopes[:, 1:]], dim=-1)


def _part(scores: SpanScores | SpanTopKScores, where: slice) -> SpanScores | SpanTopKScores:
    part: dict[str, Any] = {name: value[where] for name, value in vars(scores).items() if isinstance(value, Tensor)}
    return replace(scores, **part)
