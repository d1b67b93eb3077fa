"""Random and tabular token batches for the objective's tests. Shapes: N tokens, V vocabulary, H hidden."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.types import GlobalCounts, Head, ObjectiveResult, TokenBatch

Objective = Callable[..., ObjectiveResult]


def token_batch(tokens: int = 11, vocabulary: int = 9, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> TokenBatch:
    """Random tokens of sequences of length 3; every term applies to every token; heads have all that a head can have."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    ids = torch.randint(vocabulary, (tokens,), generator=generator)
    old = -normal(tokens).abs() - 1
    batch = TokenBatch(
        student_hidden=normal(tokens, 4).requires_grad_(),
        student_head=Head(normal(vocabulary, 4).requires_grad_(), normal(vocabulary).requires_grad_(), scale=0.8, soft_cap=4.0),
        token_ids=ids,
        reward_weights=torch.full((tokens,), 0.5, dtype=dtype),
        divergence_weights=torch.full((tokens,), 0.7, dtype=dtype),
        cross_entropy_weights=torch.zeros(tokens, dtype=dtype),
        advantages=normal(tokens),
        old_logprobs=old,
        sampler_logprobs=old + 0.3 * normal(tokens),
        sequence_index=torch.arange(tokens) // 3,
        teacher_hidden=normal(tokens, 5),
        teacher_head=Head(normal(vocabulary, 5), soft_cap=6.0),
        reference_hidden=normal(tokens, 4),
        reference_head=Head(normal(vocabulary, 4), normal(vocabulary)),
    )
    return replace(batch, **changes)


def logits_batch(student: Tensor, token_ids: Tensor, teacher: Tensor | None = None, **changes) -> TokenBatch:
    """A batch whose hidden states are the logits [N, V] themselves (identity heads); weights 1 unless changed."""
    tokens, vocabulary = student.shape
    identity = Head(torch.eye(vocabulary, dtype=student.dtype))
    ones, zeros = student.new_ones(tokens), student.new_zeros(tokens)
    logprobs = student.detach().log_softmax(-1).gather(-1, token_ids[:, None]).squeeze(-1)
    batch = TokenBatch(
        student_hidden=student,
        student_head=identity,
        token_ids=token_ids,
        reward_weights=zeros,
        divergence_weights=ones,
        cross_entropy_weights=zeros,
        advantages=zeros,
        old_logprobs=logprobs,
        sampler_logprobs=logprobs,
        sequence_index=torch.arange(tokens),
        teacher_hidden=teacher,
        teacher_head=None if teacher is None else identity,
    )
    return replace(batch, **changes)


def gradients(
    objective: Objective, batch: TokenBatch, config: ObjectiveConfig, counts: GlobalCounts, **options
) -> tuple[ObjectiveResult, list[Tensor]]:
    """The result and its gradients in hidden states, head weight and bias, where these ask for one."""
    leaves = [x for x in (batch.student_hidden, batch.student_head.weight, batch.student_head.bias) if x is not None and x.requires_grad]
    result = objective(batch, config, counts, **options)
    return result, list(torch.autograd.grad(result.loss, leaves))


def rows_of(batch: TokenBatch, rows: Tensor) -> TokenBatch:
    """Some tokens of a batch, in the order given."""
    names = [name for name, value in vars(batch).items() if isinstance(value, Tensor)]
    return replace(batch, **{name: getattr(batch, name)[rows] for name in names})
