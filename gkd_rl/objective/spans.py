"""The divergence to a teacher with another tokenizer, over what both sides can say of one text.

Student and teacher cut a completion into different tokens; a span is the shortest stretch of text that begins and ends a token on either
side. Where a span begins, the next thing that happens is one of

* the span itself, through the very tokens s_1..s_M and t_1..t_L that both sides have for it;
* a token v that both vocabularies have, other than s_1 and t_1;
* the rest: anything else.

On either side these exclude each other and have a sum of 1, so they are two distributions over the same outcomes:
p(span) = Π p(s_i), q(span) = Π q(t_j) by the chain rule. Any divergence between them is proper, and its gradient flows into all M tokens.
With one tokenizer and all tokens kept it is the divergence over the whole vocabulary. Where the tokens of a span do not say the same text
on both sides (a special token, a broken character), it is no outcome: it belongs to the rest.

Shapes: n or N tokens, V and U vocabulary of student and teacher, K kept tokens.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gkd_rl.config.objective import DivergenceConfig
from gkd_rl.objective.divergence import divergence_of
from gkd_rl.objective.numerics import LOG_FLOOR, TINY, at_least_fp32, log_probs
from gkd_rl.objective.target import teacher_temperature
from gkd_rl.objective.telemetry import TeacherView
from gkd_rl.types import SpanScores, SpanTopKScores


def start_of(starts: Tensor) -> Tensor:
    """[N] number of the token that begins each token's span, from flags [N]; the first token of a sequence begins one."""
    numbers = torch.arange(len(starts), device=starts.device)
    return torch.where(starts, numbers, 0).cummax(0).values if len(starts) else numbers


def later_sums(logprobs: Tensor, starts: Tensor) -> Tensor:
    """[N] Σ log p of a span's tokens after its first, at the first; differentiable. Elsewhere 0."""
    return torch.zeros_like(logprobs).index_add(0, start_of(starts), logprobs.masked_fill(starts, 0.0))


def outcomes_in(scores: SpanScores | SpanTopKScores, logits: Tensor | None, token_ids: Tensor, config: DivergenceConfig) -> SpanTopKScores:
    """The teacher's side of the outcomes at tokens [n], from its logits [n, U] or what was kept of them."""
    k = config.top_k if config.estimator == "top_k" else None
    if isinstance(scores, SpanTopKScores):
        assert k is not None, "validate_objective asks for it"
        return _fewer(scores, k)
    assert logits is not None
    return outcomes_of(logits, scores, token_ids, k, teacher_temperature(config))


def outcomes_of(logits: Tensor, scores: SpanScores, token_ids: Tensor, k: int | None, temperature: float = 1.0) -> SpanTopKScores:
    """The teacher's side of the outcomes, with all shared tokens or its ``k`` likeliest of them.

    Args:
        logits: [n, U] of the teacher's next token.
        scores: of these tokens, [n].
        token_ids: [n] the student's tokens.
        k: tokens to keep; None: all.
        temperature: divides the logits; ``scores.later_logprobs`` are taken at it already.
    """
    lq, realised, matched = log_probs(logits, temperature), scores.realised, scores.matched
    first = scores.first_ids[:, None]
    taken = (matched.student_ids == token_ids[:, None]) | (matched.teacher_ids == first)
    shared = lq[:, matched.teacher_ids].masked_fill(taken & realised[:, None], -torch.inf)
    kept = None if k is None else shared.topk(min(k, shared.shape[-1]), dim=-1)
    logprobs = shared if kept is None else kept.values
    ids, theirs = (x.expand_as(shared) if kept is None else x[kept.indices] for x in (matched.student_ids, matched.teacher_ids))
    later = at_least_fp32(scores.later_logprobs)
    at_first = lq.gather(-1, first).squeeze(-1)
    return SpanTopKScores(
        ids=ids,
        logprobs=logprobs,
        span_logprobs=(at_first + later).clamp_min(LOG_FLOOR) * realised,
        rest=_rest(lq.exp(), theirs, logprobs > -torch.inf, first, later, realised),
        starts=scores.starts,
        realised=realised,
        single=scores.single,
    )


def _fewer(scores: SpanTopKScores, k: int) -> SpanTopKScores:
    """Those ``k`` of the kept tokens that the teacher finds likeliest; the others go to the rest."""
    order = at_least_fp32(scores.logprobs).sort(-1, descending=True)
    return replace(
        scores,
        ids=scores.ids.gather(-1, order.indices[:, :k]),
        logprobs=order.values[:, :k],
        rest=at_least_fp32(scores.rest) + order.values[:, k:].exp().sum(-1),
    )


def student_rest(logprobs: Tensor, token_ids: Tensor, later: Tensor, outcomes: SpanTopKScores) -> Tensor:
    """[n] the student's probability of the rest, from its log-probabilities [n, V]; no gradient.

    Summed from what it holds: 1 − Σ of the others would be rounding where they hold nearly all.
    """
    kept = outcomes.logprobs > -torch.inf
    return _rest(logprobs.detach().exp(), outcomes.ids, kept, token_ids[:, None], later.detach(), outcomes.realised)


def _rest(probabilities: Tensor, ids: Tensor, kept: Tensor, first: Tensor, later: Tensor, realised: Tensor) -> Tensor:
    """[n] Σ of probabilities [n, V] (overwritten) but for kept tokens [n, K] and the span, of whose first token [n, 1] a part is left."""
    at_first = probabilities.gather(-1, first).squeeze(-1)
    probabilities.scatter_(-1, ids, probabilities.gather(-1, ids).masked_fill(kept, 0.0))
    probabilities.scatter_(-1, first, probabilities.gather(-1, first).masked_fill(realised[:, None], 0.0))
    return probabilities.sum(-1) - at_first * torch.expm1(later) * realised


def kept_tokens(token_ids: Tensor, outcomes: SpanTopKScores) -> Tensor:
    """[n, 1+K] tokens whose log-probabilities ``span_divergence`` wants: the student's own, then the kept ones."""
    return torch.cat([token_ids[:, None], outcomes.ids], dim=-1)


def span_divergence(at_kept: Tensor, later: Tensor, rest: Tensor, outcomes: SpanTopKScores, config: DivergenceConfig) -> Tensor:
    """Divergence [n] over the outcomes where a span begins, 0 elsewhere.

    Args:
        at_kept: [n, 1+K] the student's log-probabilities of ``kept_tokens``, with gradient.
        later: [n] Σ log p of the span's further tokens, with or without gradient.
        rest: [n] from ``student_rest``.
        outcomes: the teacher's side.
        config: the divergence.
    """
    lq = torch.cat([outcomes.span_logprobs[:, None], at_least_fp32(outcomes.logprobs)], dim=-1)
    exists = torch.cat([outcomes.realised[:, None], outcomes.logprobs > -torch.inf], dim=-1)
    lp = torch.cat([at_kept[:, :1] + later[:, None], at_kept[:, 1:]], dim=-1).masked_fill(~exists, LOG_FLOOR)
    others = -lp.exp().sum(-1)
    rest = rest + (others - others.detach())  # its value is known, its gradient is that of 1 − Σ of the others
    there = (rest.detach() > 0) | (outcomes.rest > 0)
    lp = torch.cat([lp, _log_of(rest, there)], dim=-1)
    lq = torch.cat([lq.masked_fill(~exists, LOG_FLOOR), _log_of(at_least_fp32(outcomes.rest), there)], dim=-1)
    values = divergence_of(lp, lq, config, outcomes=exists.sum(-1, keepdim=True) + there[:, None])
    return torch.where(outcomes.starts, values, 0.0)


def _log_of(rest: Tensor, there: Tensor) -> Tensor:
    return rest.clamp_min(TINY).log().masked_fill(~there, LOG_FLOOR)[:, None]


@torch.no_grad()
def span_view(scores: SpanScores | SpanTopKScores, rest: Tensor, teacher_rest: Tensor, aligned: Tensor) -> TeacherView:
    """What is measured of spans: [n] probability outside the rest on both sides where a span begins, and which tokens are aligned."""
    starts = scores.starts.to(rest.dtype)
    return TeacherView(
        None, None, None,
        spans=starts,
        aligned_tokens=aligned.to(rest.dtype),
        one_to_one_tokens=scores.single.to(rest.dtype),
        student_matched_mass=(1 - rest) * starts,
        teacher_matched_mass=(1 - teacher_rest) * starts,
    )  # fmt: skip
