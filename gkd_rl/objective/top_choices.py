"""What student and teacher would have said at each token: their likeliest tokens. Shapes: N tokens, V vocabulary, K kept, k given."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gkd_rl.objective.head import logits_of
from gkd_rl.objective.numerics import log_probs
from gkd_rl.types import TokenBatch, TopChoices

_TILE = 2**24
"""Elements of one tile of probabilities: what is logged should not need more memory than the objective."""


@torch.no_grad()
def top_choices(batch: TokenBatch, count: int) -> tuple[TopChoices, TopChoices | None]:
    """The ``count`` likeliest tokens of the student and of the teacher at temperature 1, likeliest first; fewer in smaller vocabularies.

    A teacher that gives some tokens alone is shown by the likeliest of these; of one that draws them they are those drawn. None where
    there is no teacher, and of a teacher with another tokenizer, whose tokens the student does not have.
    """
    ours = [_likeliest(_probabilities(batch, rows, of_student=True), count) for rows in _chunks(batch)]
    return _joined(ours), _of_teacher(batch, count)


def _of_teacher(batch: TokenBatch, count: int) -> TopChoices | None:
    if batch.teacher_top_ids is not None and batch.teacher_top_logprobs is not None:
        top = _likeliest(batch.teacher_top_logprobs.exp(), count)
        return TopChoices(batch.teacher_top_ids.gather(-1, top.ids), top.probabilities)
    if batch.teacher_hidden is None and not batch.teacher_parts:
        return None
    return _joined([_likeliest(_probabilities(batch, rows, of_student=False), count) for rows in _chunks(batch)])


def _chunks(batch: TokenBatch) -> Iterator[slice]:
    tokens = max(1, _TILE // batch.student_head.weight.shape[0])
    return (slice(start, start + tokens) for start in range(0, max(1, len(batch.token_ids)), tokens))


def _probabilities(batch: TokenBatch, rows: slice, of_student: bool) -> Tensor:
    """[n, V]"""
    if of_student:
        return log_probs(logits_of(batch.student_hidden[rows].detach(), batch.student_head)).exp()
    if batch.teacher_hidden is not None:
        assert batch.teacher_head is not None
        return log_probs(logits_of(batch.teacher_hidden[rows], batch.teacher_head)).exp()
    assert batch.teacher_weights is not None
    weights = batch.teacher_weights[rows].unbind(-1)
    parts = [log_probs(logits_of(hidden[rows], head)).exp() for hidden, head in batch.teacher_parts]
    return torch.stack([w[:, None] * part for w, part in zip(weights, parts, strict=True)]).sum(0)


def _likeliest(probabilities: Tensor, count: int) -> TopChoices:
    values, ids = probabilities.topk(min(count, probabilities.shape[-1]), -1)
    return TopChoices(ids, values)


def _joined(parts: list[TopChoices]) -> TopChoices:
    return TopChoices(torch.cat([part.ids for part in parts]), torch.cat([part.probabilities for part in parts]))
