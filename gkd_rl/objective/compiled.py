"""The tile arithmetic of ``kernel.py``, compiled where that is possible and pays."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.objective.kernel import Rows, Slopes, Tiles, logit_gradient, row_figures

SMALLEST_VOCABULARY = 4096
"""Below this a compiler does not earn back its start-up time."""


@dataclass(frozen=True)
class Kernels:
    """The two sweeps over a tile for one configuration."""

    figures: Callable[[Tiles], Rows]
    gradient_: Callable[[Tiles, Rows, Slopes], Tensor]
    """Writes the gradient over the student's logits and returns it."""


def kernels_for(
    config: ObjectiveConfig, soft_cap: float | None, vocabulary: int, device: torch.device, compile: bool | None
) -> Kernels:
    """Eager or compiled kernels with equal results.

    Args:
        config: the objective.
        soft_cap: the student head's.
        vocabulary: V.
        device: where the tiles are.
        compile: None compiles where a compiler is found and the vocabulary is large.
    """
    if compile is None:
        compile = vocabulary >= SMALLEST_VOCABULARY and has_compiler(device)
    if not compile:
        return _eager(config, soft_cap)
    surrogate = config.surrogate
    weights = (bool(surrogate.entropy_weight), bool(surrogate.reference_kl_weight))
    key = (repr(config.divergence), *weights, soft_cap, vocabulary, device)
    if key not in _COMPILED:
        _COMPILED[key] = _compiled(_eager(deepcopy(config), soft_cap))
    return _COMPILED[key]


_COMPILED: dict[tuple[object, ...], Kernels] = {}
"""Compiled kernels by all that they depend on. Weights of terms are inputs, so that schedules compile nothing anew."""


def has_compiler(device: torch.device) -> bool:
    """Whether ``torch.compile`` can build kernels for the device here."""
    if device.type == "cuda":
        return torch.utils._triton.has_triton()
    return any(shutil.which(name) for name in ("g++", "clang++"))


def _eager(config: ObjectiveConfig, soft_cap: float | None) -> Kernels:
    def figures(tiles: Tiles) -> Rows:
        return row_figures(tiles, config)

    def gradient_(tiles: Tiles, rows: Rows, slopes: Slopes) -> Tensor:
        return tiles.student.copy_(logit_gradient(tiles, rows, slopes, config, soft_cap))

    return Kernels(figures, gradient_)


def _compiled(eager: Kernels) -> Kernels:
    figures, gradient_ = _compile(eager.figures), _compile(eager.gradient_)

    def checked_figures(tiles: Tiles) -> Rows:
        if len(tiles.student) < 2:
            return eager.figures(tiles)
        _free_rows(tiles)
        return figures(tiles)

    def checked_gradient_(tiles: Tiles, rows: Rows, slopes: Slopes) -> Tensor:
        if len(tiles.student) < 2:
            return eager.gradient_(tiles, rows, slopes)
        _free_rows((*tiles, *rows, *slopes))
        return gradient_(tiles, rows, slopes)

    return Kernels(checked_figures, checked_gradient_)


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """One graph with a free number of rows. The code object is copied: compilations are limited in number per code object."""
    assert isinstance(function, FunctionType)
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__)
    return torch.compile(own, dynamic=False, fullgraph=True)


def _free_rows(tensors: Iterable[Tensor | None]) -> None:
    """Tells the compiler that the number of rows varies (0 and 1 are always compiled apart, hence the eager path for them)."""
    for tensor in tensors:
        if tensor is not None:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
