"""One chunk of the fused objective: from tiles of logits to per-token values, and from the loss's slopes to logit gradients.

Shapes: n tokens of the chunk, V vocabulary, K top-k, M tokens on which the terms' gradients are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.objective.divergence import divergence_of
from gkd_rl.objective.kernel import (
    ON_KEPT_TOKENS,
    Rows,
    Slopes,
    Tiles,
    add_at,
    has_dense_divergence,
    log_probs_of,
    target_logits,
    tempered,
)
from gkd_rl.objective.span_chunks import SpanRows
from gkd_rl.objective.spans import kept_tokens, span_divergence, span_view, student_rest
from gkd_rl.objective.target import teacher_temperature
from gkd_rl.objective.telemetry import TeacherView
from gkd_rl.objective.terms import Losses, Streams, TokenValues, losses_of
from gkd_rl.objective.top_k import GivenTopK, agreement_with, on_draws, restrict

GradientKernel = Callable[[Tiles, Rows, Slopes], Tensor]
"""Writes the gradient in the logits [n, V] over the student's tile and returns it."""


@dataclass(frozen=True)
class Chunk:
    """The tokens of one chunk, without the tiles. ``values`` are leaves of a small graph that ends in the losses."""

    where: slice
    token_ids: Tensor
    """[n]"""
    rows: Rows
    """[n] each"""
    values: TokenValues
    view: TeacherView | None
    kept: Tensor | None = None
    """[n, K] the teacher's likeliest tokens, for a top-k divergence"""
    kept_logprobs: Tensor | None = None
    """[n, K] the student's log-probabilities there: the leaf behind ``values.divergence``"""

    def leaves(self) -> list[Tensor]:
        """The tensors whose slopes the gradient is made of: log-probability, entropy, divergence (or kept), reference KL."""
        values = (self.values.logprob, self.values.entropy, self.kept_logprobs, self.values.divergence, self.values.reference_kl)
        return [value for value in values if value is not None and value.is_leaf]


@torch.enable_grad()
def read_chunk(
    tiles: Tiles, rows: Rows, token_ids: Tensor, where: slice, given: GivenTopK | SpanRows | None, config: ObjectiveConfig
) -> Chunk:
    """Per-token values of a chunk from its tiles [n, V] and row figures [n]; ``given`` [n] is of a teacher without a tile."""
    logprob = log_probs_of(tiles.student.gather(-1, token_ids[:, None]), rows.lse[:, None]).squeeze(-1).requires_grad_()
    reference_kl = rows.reference_kl.clone().requires_grad_() if config.surrogate.reference_kl_weight else None
    values = TokenValues(logprob, rows.entropy.clone().requires_grad_(), reference_kl=reference_kl)
    if isinstance(given, SpanRows):
        return _with_spans(Chunk(where, token_ids, rows, values, None), tiles, given, config)
    if given is not None:
        return _with_top_k(Chunk(where, token_ids, rows, values, None), tiles, given, config)
    if tiles.teacher is None:
        return Chunk(where, token_ids, rows, values, None)
    teacher_logprob = _target_at(tiles, rows, token_ids[:, None], config).squeeze(-1)
    kept = kept_logprobs = divergence = student_mass = teacher_mass = None
    if has_dense_divergence(config):
        divergence = rows.divergence.clone().requires_grad_()
    elif config.divergence.estimator == "top_k":
        kept, kept_logprobs, kept_targets = _top_k(tiles, rows, config)
        divergence = _divergence_on(kept_logprobs, kept_targets, config)
        student_mass, teacher_mass = kept_logprobs.detach().exp().sum(-1), kept_targets.exp().sum(-1)
    values = TokenValues(logprob, values.entropy, divergence, teacher_logprob, reference_kl)
    view = TeacherView(rows.forward_kl, rows.reverse_kl, rows.agreement, student_mass, teacher_mass)
    return Chunk(where, token_ids, rows, values, view, kept, kept_logprobs)


def _with_top_k(chunk: Chunk, tiles: Tiles, given: GivenTopK, config: ObjectiveConfig) -> Chunk:
    """The chunk against all that is known of a teacher."""
    agreement = agreement_with(given, tiles.student.gather(-1, given.ids), chunk.rows.highest)
    values = replace(chunk.values, teacher_logprob=given.token_logprobs)
    if config.divergence.estimator not in ON_KEPT_TOKENS:
        return replace(chunk, values=values, view=TeacherView(None, None, agreement))
    kept_logprobs = _student_at(tiles, chunk.rows, given.ids, config)
    if config.divergence.estimator == "draws":
        values, view = replace(values, divergence=on_draws(kept_logprobs, given)), TeacherView(None, None, agreement)
        return replace(chunk, values=values, view=view, kept=given.ids, kept_logprobs=kept_logprobs)
    values = replace(values, divergence=_divergence_on(kept_logprobs, given.logprobs, config))
    view = TeacherView(None, None, agreement, kept_logprobs.detach().exp().sum(-1), given.mass)
    return replace(chunk, values=values, view=view, kept=given.ids, kept_logprobs=kept_logprobs)


def _with_spans(chunk: Chunk, tiles: Tiles, spans: SpanRows, config: ObjectiveConfig) -> Chunk:
    """The chunk against a teacher with another tokenizer; ``kept_logprobs`` [n, 1+K] begin with the student's own tokens."""
    ids, later, outcomes = kept_tokens(chunk.token_ids, spans.outcomes), spans.later, spans.outcomes
    everywhere = log_probs_of(tempered(tiles.student, config.divergence.temperature), chunk.rows.tempered_lse[:, None])
    rest = student_rest(everywhere, chunk.token_ids, later, outcomes)
    kept_logprobs = _student_at(tiles, chunk.rows, ids, config)
    values = replace(chunk.values, divergence=span_divergence(kept_logprobs, later, rest, outcomes, config.divergence))
    view = span_view(outcomes, rest, outcomes.rest, spans.aligned)
    return replace(chunk, values=values, view=view, kept=ids, kept_logprobs=kept_logprobs)


def _divergence_on(kept_logprobs: Tensor, kept_targets: Tensor, config: ObjectiveConfig) -> Tensor:
    """Divergence [n] on the teacher's likeliest tokens [n, K]."""
    tail = config.divergence.tail
    assert tail != "drop", "validate_objective refuses it"
    return divergence_of(restrict(kept_logprobs, tail), restrict(kept_targets, tail), config.divergence)


def _student_at(tiles: Tiles, rows: Rows, ids: Tensor, config: ObjectiveConfig) -> Tensor:
    """The student's log-probabilities at tokens ids [n, K], at the divergence's temperature: a leaf."""
    logits = tempered(tiles.student.gather(-1, ids), config.divergence.temperature)
    return log_probs_of(logits, rows.tempered_lse[:, None]).requires_grad_()


def _target_at(tiles: Tiles, rows: Rows, ids: Tensor, config: ObjectiveConfig) -> Tensor:
    """log q at tokens ids [n, K]."""
    assert tiles.teacher is not None
    if config.divergence.extrapolation != 1.0:
        logits = target_logits(tiles, config).gather(-1, ids)
    else:
        logits = tempered(tiles.teacher.gather(-1, ids), teacher_temperature(config.divergence))
    return log_probs_of(logits, rows.target_lse[:, None])


def _top_k(tiles: Tiles, rows: Rows, config: ObjectiveConfig) -> tuple[Tensor, Tensor, Tensor]:
    """The teacher's likeliest tokens [n, K], the student's log-probabilities there (a leaf) and the teacher's."""
    target = target_logits(tiles, config)
    kept = target.topk(min(config.divergence.top_k, target.shape[-1]), dim=-1)
    return kept.indices, _student_at(tiles, rows, kept.indices, config), log_probs_of(kept.values, rows.target_lse[:, None])


def slopes_of(chunk: Chunk, *contributions: Tensor) -> tuple[Slopes, Tensor | None]:
    """Derivatives of summed contributions [n] in the chunk's token quantities, and in the kept log-probabilities [n, K]."""
    leaves = chunk.leaves()
    ones = [torch.ones_like(part) for part in contributions]
    found = torch.autograd.grad(contributions, leaves, ones, retain_graph=True, allow_unused=True, materialize_grads=True)
    by_leaf = {id(leaf): slope for leaf, slope in zip(leaves, found, strict=True)}
    zero = torch.zeros_like(chunk.values.logprob)

    def slope(leaf: Tensor | None) -> Tensor:
        return by_leaf.get(id(leaf), zero)

    kept = None if chunk.kept_logprobs is None else slope(chunk.kept_logprobs)
    divergence = slope(chunk.values.divergence) if kept is None else kept.sum(-1)
    return Slopes(slope(chunk.values.logprob), slope(chunk.values.entropy), divergence, slope(chunk.values.reference_kl)), kept


@torch.enable_grad()
def chunk_losses(chunk: Chunk, streams: Streams, config: ObjectiveConfig) -> Losses:
    """The terms on this chunk, with the small graph that leads back to its leaves."""
    return losses_of(chunk.values, streams.rows(chunk.where), config)


def reward_gradient(
    tiles: Tiles, chunk: Chunk, losses: Losses, tokens: Tensor, gradient_: GradientKernel, soft_cap: float | None
) -> Tensor:
    """Gradient of the reward's term alone in the uncapped logits [M, V] of some tokens of the chunk."""
    slopes, _ = slopes_of(chunk, losses.reward)
    picked = Tiles(tiles.student[tokens], None, None if tiles.reference is None else tiles.reference[tokens])
    ids = chunk.token_ids[tokens, None]
    at_token = picked.student.gather(-1, ids)
    gradient = gradient_(picked, Rows(*(row[tokens] for row in chunk.rows)), Slopes(*(slope[tokens] for slope in slopes)))
    add_at(gradient, at_token, ids, slopes.logprob[tokens, None], soft_cap)
    return gradient
