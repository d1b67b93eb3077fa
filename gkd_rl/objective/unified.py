"""The definition of the objective: dense, readable, differentiated by autograd. ``fused.py`` computes the same without [N, V].

With w the batch's weights divided by the terms' global counts, p the student and q the teacher at token n's prefix:

    loss = Σ_n  w_r·( −min(ρÂ, clip(ρ)Â) − c_H·H(p) + c_ref·KL(p‖ref) )  +  w_d·D(q, p)  −  w_ce·log p(y_n)

(GKD, arXiv 2306.13649, eq. 5, as a loss). ``terms.py`` says how the terms are made of a token's log-probability, entropy and
divergence; this file computes those from the logits. Shapes: N valid completion tokens, V vocabulary, H hidden.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gkd_rl.config.objective import DivergenceConfig, ObjectiveConfig
from gkd_rl.objective.divergence import divergence_of
from gkd_rl.objective.head import logits_of
from gkd_rl.objective.numerics import log_probs
from gkd_rl.objective.spans import kept_tokens, later_sums, outcomes_in, span_divergence, span_view, start_of, student_rest
from gkd_rl.objective.target import target_log_probs
from gkd_rl.objective.telemetry import TeacherView, compared_tokens, interference, sums_of
from gkd_rl.objective.terms import Losses, TokenValues, divergence_of_tokens, losses_of, needs_whole_sequences, streams_of, with_sequences
from gkd_rl.objective.top_k import GivenTopK, agreement_with, given_top_k, on_draws, on_top_k, restrict
from gkd_rl.types import GlobalCounts, ObjectiveResult, SpanScores, SpanTopKScores, TokenBatch


def unified_objective(batch: TokenBatch, config: ObjectiveConfig, counts: GlobalCounts) -> ObjectiveResult:
    """The objective of one micro-batch, to be differentiated by autograd.

    Args:
        batch: N valid tokens, whole sequences; N may be 0.
        config: the objective.
        counts: global denominators of the terms; a count of 0 leaves its term out.
    """
    student = logits_of(batch.student_hidden, batch.student_head)
    values, view = _token_values(student, batch, config)
    streams = streams_of(batch, config, counts)
    if needs_whole_sequences(config):
        streams = with_sequences(streams, values.logprob.detach(), values.teacher_logprob, config)
    losses = losses_of(values, streams, config)
    sums = sums_of(losses, values, streams, view, config)
    differentiable = torch.is_grad_enabled() and batch.student_hidden.requires_grad
    if view is not None and config.telemetry.interference_stride and differentiable:
        sums |= _interference(losses, batch.student_hidden, compared_tokens(streams, config.telemetry.interference_stride))
    return ObjectiveResult(
        # The sum over hidden states keeps the graph alive when N = 0.
        loss=losses.total() + 0 * batch.student_hidden.sum(),
        sums=sums,
        token_logprobs=values.logprob.detach(),
        token_divergence=divergence_of_tokens(values, config).detach(),
        token_entropy=values.entropy.detach(),
    )


def _token_values(student: Tensor, batch: TokenBatch, config: ObjectiveConfig) -> tuple[TokenValues, TeacherView | None]:
    """Per-token quantities from student logits [N, V]."""
    lp = log_probs(student)
    reference = None
    if batch.reference_hidden is not None and batch.reference_head is not None:
        reference = logits_of(batch.reference_hidden, batch.reference_head).detach()
    reference_kl = None
    if config.surrogate.reference_kl_weight:
        assert reference is not None, "validate_objective asks for a reference"
        reference_kl = _kl_to(lp, log_probs(reference))
    values = TokenValues(logprob=_at(lp, batch.token_ids), entropy=-(lp.exp() * lp).sum(-1), reference_kl=reference_kl)
    if (given := given_top_k(batch, config.divergence)) is not None:
        return _with_top_k(values, log_probs(student, config.divergence.temperature), given, config.divergence)
    if batch.teacher_spans is not None:
        return _with_spans(
            values, log_probs(student, config.divergence.temperature), batch.teacher_spans, batch.token_ids, config.divergence
        )
    teacher = _teacher_logits(batch)
    if teacher is None:
        return values, None
    assert teacher.shape == student.shape, "both heads are cut to one vocabulary"
    lq = target_log_probs(teacher, reference, config.divergence)
    lp = log_probs(student, config.divergence.temperature)
    values = replace(values, divergence=_divergence(lp, lq, config.divergence), teacher_logprob=_at(lq, batch.token_ids))
    return values, _view(lp.detach(), lq, config.divergence)


def _teacher_logits(batch: TokenBatch) -> Tensor | None:
    """The teacher's logits [N, V], or of several the logarithm of the mixture Σ_m w_m·q_m."""
    if batch.teacher_weights is not None:
        each = [log_probs(logits_of(hidden, head).detach()) for hidden, head in batch.teacher_parts]
        return (torch.stack(each, -1) + batch.teacher_weights.log()[:, None]).logsumexp(-1)
    if batch.teacher_hidden is None or batch.teacher_head is None:
        return None
    return logits_of(batch.teacher_hidden, batch.teacher_head).detach()


def _with_top_k(values: TokenValues, lp: Tensor, given: GivenTopK, config: DivergenceConfig) -> tuple[TokenValues, TeacherView]:
    """The same from all that is known of a teacher: the student's log-probabilities [N, V] against its top-k."""
    at_kept = lp.gather(-1, given.ids)
    agreement = agreement_with(given, at_kept.detach(), lp.detach().amax(-1))
    values = replace(values, teacher_logprob=given.token_logprobs)
    if config.estimator == "draws":
        return replace(values, divergence=on_draws(at_kept, given)), TeacherView(None, None, agreement)
    if config.estimator != "top_k":
        return values, TeacherView(None, None, agreement)
    assert config.tail != "drop", "validate_objective refuses it"
    divergence = divergence_of(restrict(at_kept, config.tail), restrict(given.logprobs, config.tail), config)
    return replace(values, divergence=divergence), TeacherView(None, None, agreement, at_kept.detach().exp().sum(-1), given.mass)


def _with_spans(
    values: TokenValues, lp: Tensor, scores: SpanScores | SpanTopKScores, token_ids: Tensor, config: DivergenceConfig
) -> tuple[TokenValues, TeacherView]:
    """The same with a teacher of another tokenizer: the student's log-probabilities [N, V] against what is shared."""
    logits = logits_of(scores.hidden, scores.matched.head).detach() if isinstance(scores, SpanScores) else None
    outcomes = outcomes_in(scores, logits, token_ids, config)
    later = later_sums(_at(lp, token_ids), scores.starts)
    rest = student_rest(lp, token_ids, later, outcomes)
    at_kept = lp.gather(-1, kept_tokens(token_ids, outcomes))
    values = replace(values, divergence=span_divergence(at_kept, later, rest, outcomes, config))
    return values, span_view(scores, rest, outcomes.rest, scores.realised[start_of(scores.starts)])


def _kl_to(lp: Tensor, reference: Tensor) -> Tensor:
    """KL(p‖reference) [N]."""
    return (lp.exp() * (lp - reference)).sum(-1)


def _at(log_probs: Tensor, token_ids: Tensor) -> Tensor:
    return log_probs.gather(-1, token_ids[:, None]).squeeze(-1)


def _divergence(lp: Tensor, lq: Tensor, config: DivergenceConfig) -> Tensor | None:
    """[N] for the estimators that look at more than the sampled token."""
    if config.estimator == "full":
        return divergence_of(lp, lq, config)
    if config.estimator == "top_k":
        assert config.tail != "drop", "validate_objective refuses it"
        return divergence_of(*on_top_k(lp, lq, config.top_k, config.tail), config)
    return None


def _view(lp: Tensor, lq: Tensor, config: DivergenceConfig) -> TeacherView:
    p, q = lp.exp(), lq.exp()
    masses: tuple[Tensor | None, Tensor | None] = (None, None)
    if config.estimator == "top_k":
        kept = lq.topk(min(config.top_k, lq.shape[-1]), dim=-1)
        masses = (p.gather(-1, kept.indices).sum(-1), kept.values.exp().sum(-1))
    return TeacherView(
        forward_kl=(q * (lq - lp)).sum(-1),
        reverse_kl=_kl_to(lp, lq),
        top1_agreement=_same_top(lp, lq),
        student_top_k_mass=masses[0],
        teacher_top_k_mass=masses[1],
    )


def _same_top(lp: Tensor, lq: Tensor) -> Tensor:
    """1 where a likeliest token of the teacher is a likeliest of the student [N]."""
    at_teachers_top = lp.masked_fill(lq < lq.amax(-1, keepdim=True), -torch.inf)
    return (at_teachers_top.amax(-1) == lp.amax(-1)).to(lp.dtype)


def _interference(losses: Losses, hidden: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """The two terms' gradients at the hidden states of some tokens, by autograd."""
    by_reward, by_divergence = (
        torch.autograd.grad(term.sum(), hidden, retain_graph=True, allow_unused=True)[0] for term in (losses.reward, losses.divergence)
    )
    zero = torch.zeros_like(hidden)
    return interference((zero if by_reward is None else by_reward)[tokens], (zero if by_divergence is None else by_divergence)[tokens])
