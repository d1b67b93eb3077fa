"""The tile arithmetic of ``kernel.py``, compiled where that is possible and pays."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils._triton import has_triton

from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.objective.figures import figures_of
from gkd_rl.objective.kernel import Partials, Rows, Slopes, Tiles, first_sweep, logit_gradient, second_sweep

SMALLEST_VOCABULARY = 4096
"""Below this a compiler does not earn back its start-up time."""


@dataclass(frozen=True)
class Kernels:
    """The sweeps over a tile for one configuration."""

    first_sweep: Callable[[Tiles], Partials]
    second_sweep: Callable[[Tiles, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    gradient_: Callable[[Tiles, Rows, Slopes], Tensor]
    """Writes the gradient over the student's logits and returns it."""

    def figures(self, tiles: Tiles, config: ObjectiveConfig) -> Rows:
        """Figures [n] of each token of a chunk."""
        return figures_of(self.first_sweep(tiles), tiles.student.shape[-1], partial(self.second_sweep, tiles), config)


def kernels_for(config: ObjectiveConfig, soft_cap: float | None, vocabulary: int, device: torch.device, compile: bool | None) -> Kernels:
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
        return has_triton()
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return headers.exists() and any(shutil.which(name) for name in ("g++", "clang++"))


def _eager(config: ObjectiveConfig, soft_cap: float | None) -> Kernels:
    def first(tiles: Tiles) -> Partials:
        return first_sweep(tiles, config)

    def second(tiles: Tiles, lse: Tensor, target_lse: Tensor, doubt: Tensor) -> tuple[Tensor, Tensor]:
        return second_sweep(tiles, lse, target_lse, doubt, config)

    def gradient_(tiles: Tiles, rows: Rows, slopes: Slopes) -> Tensor:
        return tiles.student.copy_(logit_gradient(tiles, rows, slopes, config, soft_cap))

    return Kernels(first, second, gradient_)


def _compiled(eager: Kernels) -> Kernels:
    return Kernels(_compile(eager.first_sweep), _compile(eager.second_sweep), _compile(eager.gradient_))


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` compiled into one graph with a free number of rows; 0 rows and 1, which compilers treat apart, run eagerly."""
    assert isinstance(function, FunctionType)
    # Compilations are limited in number per code object: each configuration gets its own.
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__)
    compiled = torch.compile(own, dynamic=False, fullgraph=True)

    def checked(tiles: Tiles, *others: Any) -> Any:
        if len(tiles.student) < 2:
            return function(tiles, *others)
        for tensor in tree_leaves((tiles, others)):
            if tensor is not None:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return compiled(tiles, *others)

    return checked
