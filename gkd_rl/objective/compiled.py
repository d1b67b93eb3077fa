"""The tile arithmetic of ``kernel.py``, compiled where that is possible and pays."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

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
    fixed_shape: bool
    """Whether every call must have the same number of rows."""


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
        return _kernels(config, soft_cap)
    surrogate = config.surrogate
    key = (repr(config.divergence), bool(surrogate.entropy_weight), bool(surrogate.reference_kl_weight), soft_cap)
    if key not in _COMPILED:
        eager = _kernels(deepcopy(config), soft_cap)
        _COMPILED[key] = Kernels(_compile(eager.figures), _compile(eager.gradient_), fixed_shape=True)
    return _COMPILED[key]


def has_compiler(device: torch.device) -> bool:
    """Whether ``torch.compile`` can build kernels for the device here."""
    if device.type == "cuda":
        return torch.utils._triton.has_triton()
    return any(shutil.which(name) for name in ("g++", "clang++"))


_COMPILED: dict[tuple[object, ...], Kernels] = {}
"""Compiled kernels by what they depend on: weights of terms are inputs, so schedules compile nothing anew."""


def _kernels(config: ObjectiveConfig, soft_cap: float | None) -> Kernels:
    def gradient_(tiles: Tiles, rows: Rows, slopes: Slopes) -> Tensor:
        return tiles.student.copy_(logit_gradient(tiles, rows, slopes, config, soft_cap))

    return Kernels(partial(row_figures, config=config), gradient_, fixed_shape=False)


def _compile(function: Callable[..., object]) -> Callable[..., object]:
    return torch.compile(function, dynamic=False, fullgraph=True)
