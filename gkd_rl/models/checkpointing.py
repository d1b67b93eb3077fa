"""Activation checkpointing: of each layer only its input is kept, and it runs again when its gradient is made (arXiv 1604.06174)."""

from __future__ import annotations

import types
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


def checkpoint_activations(module: nn.Module) -> int:
    """Have every layer of ``module`` run so where gradients are wanted; returns how many there are.

    Transformers' own switch works in training mode alone, which would let dropout in, and drops the caches that sampling needs.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]
    for layer in layers:
        layer.forward = types.MethodType(_twice, layer)
    return len(layers)


def _twice(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = partial(type(layer).forward, layer)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(partial(forward, **kwargs), *args, use_reentrant=False, preserve_rng_state=False)
