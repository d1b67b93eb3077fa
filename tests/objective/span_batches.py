"""Batches with a teacher of another tokenizer, and the divergence over what both sides can say, enumerated in plain Python.

Shapes: N tokens, V and U vocabulary of student and teacher, H hidden.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from token_batches import token_batch
from torch import Tensor

from gkd_rl.objective.head import logits_of
from gkd_rl.objective.spans import outcomes_of
from gkd_rl.types import Head, MatchedHead, SpanScores, TokenBatch

LENGTHS = (1, 3, 1, 1, 2, 1, 4, 1, 1, 2, 1)
"""Tokens of each span"""
UNREALISED = (3, 4)
"""Spans whose text the teacher does not have"""
PAIRS = {0: 6, 2: 1, 3: 3, 4: 0, 7: 2, 8: 5}
"""Student's token → the teacher's of the same text; 9 and 7 tokens in all"""


def span_batch(dtype: torch.dtype = torch.float32, seed: int = 0, pairs: dict[int, int] = PAIRS, **changes) -> TokenBatch:
    """18 tokens in spans of ``LENGTHS``, all of one sequence; a teacher of 7 tokens of its own."""
    generator = torch.Generator().manual_seed(seed + 100)
    batch = token_batch(sum(LENGTHS), 9, seed=seed, dtype=dtype, sequence_index=torch.zeros(sum(LENGTHS), dtype=torch.long))
    starts = torch.zeros(sum(LENGTHS), dtype=torch.bool)
    starts[[sum(LENGTHS[:number]) for number in range(len(LENGTHS))]] = True
    realised = starts.clone()
    realised[starts.nonzero()[list(UNREALISED), 0]] = False
    single = realised & torch.tensor([length == 1 for length in LENGTHS for _ in range(length)])
    size = len(starts)
    scores = SpanScores(
        hidden=torch.randn(size, 5, generator=generator, dtype=dtype),
        first_ids=torch.randint(7, (size,), generator=generator),
        later_logprobs=-torch.rand(size, generator=generator, dtype=dtype) * torch.randint(2, (size,), generator=generator),
        starts=starts,
        realised=realised,
        single=single,
        matched=MatchedHead(
            Head(torch.randn(7, 5, generator=generator, dtype=dtype)), torch.tensor(list(pairs)), torch.tensor(list(pairs.values()))
        ),
    )
    return replace(batch, teacher_hidden=None, teacher_head=None, teacher_spans=scores, **changes)


def kept_only(batch: TokenBatch, k: int) -> TokenBatch:
    """The batch with what is left if the teacher keeps ``k`` tokens."""
    scores = batch.teacher_spans
    assert isinstance(scores, SpanScores)
    logits = logits_of(scores.hidden, scores.matched.head)
    return replace(batch, teacher_spans=outcomes_of(logits, scores, batch.token_ids, k))


def teacher_top(scores: SpanScores, place: int, excluded: set[int], k: int | None, temperature: float) -> tuple[Tensor, list[int]]:
    """The teacher's log-probabilities [U] at a place and the shared tokens (the student's) that are outcomes of their own."""
    lq = (logits_of(scores.hidden[place : place + 1], scores.matched.head)[0] / temperature).log_softmax(-1)
    theirs = dict(zip(scores.matched.student_ids.tolist(), scores.matched.teacher_ids.tolist(), strict=True))
    shared = sorted((v for v in theirs if v not in excluded), key=lambda v: -float(lq[theirs[v]]))
    return lq, shared[:k]


def enumerated(batch: TokenBatch, logits: Tensor, k: int | None, temperature: float = 1.0, teacher_temperature: float = 1.0):
    """Of each span: its first token, and lists of p (differentiable in ``logits`` [N, V]) and q of its outcomes."""
    scores, lp = batch.teacher_spans, (logits / temperature).log_softmax(-1)
    assert isinstance(scores, SpanScores)
    theirs = dict(zip(scores.matched.student_ids.tolist(), scores.matched.teacher_ids.tolist(), strict=True))
    ours = {u: v for v, u in theirs.items()}
    firsts = scores.starts.nonzero()[:, 0].tolist()
    for place, end in zip(firsts, [*firsts[1:], len(lp)], strict=True):
        realised, first = bool(scores.realised[place]), int(scores.first_ids[place])
        excluded = {int(batch.token_ids[place]), ours.get(first, -1)} if realised else set()
        lq, shared = teacher_top(scores, place, excluded, k, teacher_temperature)
        p = [lp[place, v].exp() for v in shared]
        q = [lq[theirs[v]].exp() for v in shared]
        if realised:
            p.append(math.prod(lp[i, batch.token_ids[i]].exp() for i in range(place, end)))
            q.append((lq[first] + scores.later_logprobs[place]).exp())
        p.append(1 - sum(p))
        q.append(1 - sum(q))
        yield place, torch.stack(p), torch.stack([torch.as_tensor(x) for x in q])
