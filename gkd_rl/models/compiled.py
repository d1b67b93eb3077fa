"""Decoding steps compiled into one graph: norms, rotations and activations between the matrix products become one loop each.

Shapes: B sequences, T positions a cache has memory for.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from types import FunctionType
from typing import Any

import torch
from torch import nn

from gkd_rl.models.cache import states_of


def compiled_step(module: nn.Module) -> Callable[..., Any]:
    """``module``'s forward for one new token per sequence over a cache of fixed layers, compiled for each T at its first call.

    B is left free; B = 1, which compilers treat apart, runs as it is. So the graph that serves a step depends on the step's own shapes
    alone, not on those a process met before, and a resumed run goes on to the last bit.
    """

    def run(**inputs: Any) -> Any:
        return module(**inputs)

    # Graphs are limited in number per code object: each model gets its own.
    own = FunctionType(run.__code__.replace(), run.__globals__, run.__name__, None, run.__closure__)
    compiled = torch.compile(own, dynamic=False)

    def step(**inputs: Any) -> Any:
        if len(inputs["input_ids"]) == 1:
            return module(**inputs)
        states = chain.from_iterable(states_of(inputs["past_key_values"]))
        for tensor in (inputs["input_ids"], inputs["attention_mask"], inputs["position_ids"], *states):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return compiled(**inputs)

    return step
