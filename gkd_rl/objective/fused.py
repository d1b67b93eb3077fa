"""The objective in one pass over chunks of tokens: what ``unified.py`` defines, without [N, V] for any model.

For each chunk the logit tiles of student and teacher are formed once. From them come log-probabilities, entropies, divergences and
the gradient of the whole weighted sum in the student's logits, which goes at once into the gradients of hidden states and head: the
backward pass only hands these out. Shapes: N valid completion tokens, n tokens of a chunk, V vocabulary, H hidden, K top-k.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.objective.sweep import Gradients, Sweep
from gkd_rl.objective.terms import divergence_of_tokens
from gkd_rl.types import GlobalCounts, ObjectiveResult, TokenBatch


class _MadeInForward(torch.autograd.Function):
    """The loss, with gradients that the forward pass made already."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, loss: Tensor, made: Gradients) -> Tensor:
        ctx.made = made
        ctx.types = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        made, ctx.made = ctx.made, None
        assert made is not None, "the fused objective's graph serves one backward pass"
        gradients = (made.hidden, made.weight, made.bias)
        scaled = [None if g is None else g.mul_(grad_outputs[0]).to(dtype) for g, dtype in zip(gradients, ctx.types, strict=True)]
        return (*scaled, None, None)


def fused_objective(
    batch: TokenBatch,
    config: ObjectiveConfig,
    counts: GlobalCounts,
    chunk_tokens: int | None = None,
    compile: bool | None = None,
) -> ObjectiveResult:
    """The objective of one micro-batch; results and gradients agree with ``unified_objective`` to 1e-5 in fp32.

    Args:
        batch: N valid tokens, whole sequences; N may be 0.
        config: the objective.
        counts: global denominators of the terms; a count of 0 leaves its term out.
        chunk_tokens: tokens per chunk; by default chosen from the vocabulary and the device.
        compile: whether to compile the sweeps over the tiles; by default where a compiler is present and tiles are large.

    The loss can be differentiated once. Gradients flow to hidden states, head weight and bias of the student.
    """
    sweep = Sweep(batch, config, counts, chunk_tokens, compile)
    hidden, head = batch.student_hidden, batch.student_head
    wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (hidden, head.weight, head.bias)]
    with torch.no_grad():
        made = sweep.run(weight=wanted[1], bias=wanted[2], needs_gradient=any(wanted))
    loss = sweep.losses.total()
    if made is not None:
        loss = _MadeInForward.apply(hidden, head.weight, head.bias, loss, made)
    return ObjectiveResult(
        loss=loss,
        sums=sweep.sums,
        token_logprobs=sweep.values.logprob,
        token_divergence=divergence_of_tokens(sweep.values, config),
        token_entropy=sweep.values.entropy,
    )
