"""What collectives send, and what a rank holds: counted, for ``bench_scaling.py``."""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SENT: dict[str, tuple[str, float]] = {
    "all_reduce": ("tensor", 2.0),
    "reduce": ("tensor", 1.0),
    "broadcast": ("tensor", 1.0),
    "reduce_scatter": ("input_list", 1.0),
    "reduce_scatter_tensor": ("input", 1.0),
    "all_gather": ("tensor_list", 1.0),
    "all_gather_into_tensor": ("output_tensor", 1.0),
}
"""Collective → the argument with the whole payload, and how often a ring sends that: an all-reduce reduces, then gathers."""


class Traffic:
    """Counts what collectives send, apart for updates and for the rest of a step."""

    def __init__(self) -> None:
        self.place = "elsewhere"
        self.sent: Counter[str] = Counter()

    def watch(self, module: Any = dist) -> None:
        """Put counters in the place of ``module``'s collectives."""
        for name, (argument, times) in SENT.items():
            setattr(module, name, self._counted(getattr(module, name), name, argument, times))

    def _counted(self, collective: Callable[..., Any], name: str, argument: str, times: float) -> Callable[..., Any]:
        signature = inspect.signature(collective)

        @functools.wraps(collective)
        def counted(*given: Any, **named: Any) -> Any:
            self.sent[self.place] += int(times * _bytes(signature.bind(*given, **named).arguments[argument]))
            return collective(*given, **named)

        return counted


def _bytes(payload: Tensor | Iterable[Tensor]) -> int:
    return payload.nbytes if isinstance(payload, Tensor) else sum(part.nbytes for part in payload)


def held_bytes(*roots: Any) -> int:
    """Bytes of all tensors that can be reached from ``roots`` (each memory once): weights, gradients, states, buffers."""
    seen: set[int] = set()
    memory: dict[int, int] = {}
    waiting = list(roots)
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, (str, int, float, type, torch.dtype)) or inspect.ismodule(item):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            memory[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
            waiting += [item.grad] if item.is_leaf and item.grad is not None else []
        if isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set, frozenset)):
            waiting += item
        elif hasattr(item, "__dict__") and not inspect.isroutine(item):
            waiting += vars(item).values()
    return sum(memory.values())
