"""What DeepSpeed has accumulated of an update's gradient, before its step: reduced, measured, or dropped. Part of ``engine.py``.

The optimiser has the gradient: of ZeRO 1 to 3 each rank's part of it, in ``averaged_gradients``; all of it at stage 0 (in ``.grad``),
and at stage 1 of a model in bfloat16, which has another optimiser. Where its states are in CPU memory the gradient has gone there, and
what is left to see are the norms of its parts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_SIGNS_OF_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class OutOfMemory(RuntimeError):
    """An update did not fit into some rank's memory. Raised on all ranks alike, with nothing of the update left."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, on an accelerator or a CPU (of which torch has no error of its own)."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _SIGNS_OF_NO_MEMORY)


def reduce_gradient(deepspeed: Any) -> None:
    """Average over ranks what stages 0 and 1 have added up on each; stage 2 and 3 do so in every backward."""
    deepspeed.set_gradient_accumulation_boundary(True)
    deepspeed.allreduce_gradients()


def gradient_norm(deepspeed: Any) -> Tensor:
    """Norm [] of this rank's part of the averaged gradient: at stage 0 that of all of it."""
    optimizer = deepspeed.optimizer
    if hasattr(optimizer, "norm_for_param_grads"):
        gradients = [torch.as_tensor(norm) for norm in optimizer.norm_for_param_grads.values()]
    elif hasattr(optimizer, "averaged_gradients"):
        gradients = [gradient for part in optimizer.averaged_gradients.values() for gradient in part or ()]
    elif hasattr(optimizer, "get_grads_for_reduction"):
        gradients, _ = optimizer.get_grads_for_reduction()
    else:
        gradients = [p.grad for p in deepspeed.module.parameters() if p.grad is not None]
    return nn.utils.get_total_norm(gradients)


def forget_gradient(deepspeed: Any) -> None:
    """Drop all of it, as DeepSpeed does in a step that overflows; also after a backward that did not come to its end (stages 0, 1)."""
    deepspeed.zero_grad()
    optimizer = deepspeed.optimizer
    if not hasattr(optimizer, "exit_backward"):
        return
    while optimizer._backward_active_depth > 0:
        optimizer.exit_backward()
    optimizer.zero_grad()
    if hasattr(optimizer, "norm_for_param_grads"):
        _forget_on_cpu(optimizer)
    if not hasattr(optimizer, "averaged_gradients"):
        return
    if hasattr(optimizer, "all_grad_tensors"):
        optimizer.averaged_gradients = dict.fromkeys(optimizer.averaged_gradients)
        optimizer.all_grad_tensors = dict.fromkeys(optimizer.all_grad_tensors)
    else:
        optimizer.averaged_gradients = {}


def _forget_on_cpu(optimizer: Any) -> None:
    """So that the next backward replaces what is there, in the place of adding to it; stage 3 does so by itself."""
    from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID

    optimizer.reset_cpu_buffers()
    if hasattr(optimizer, "_offload_accumulated_param_ids"):
        optimizer.micro_step_id = INITIAL_MICRO_STEP_ID
        optimizer._offload_accumulated_param_ids = set()
