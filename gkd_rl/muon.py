"""Muon as one optimiser with AdamW: matrices within the layers by the one, everything else by the other. Part of ``engine.py``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gkd_rl.config.run import OptimizerConfig
from gkd_rl.errors import UserError

MOMENTUM = 0.95


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for the matrices within the layers, AdamW for embeddings, the head and vectors.

    A matrix m×n moves by lr · 0.2·√max(m, n) · UVᵀ, where UΣVᵀ is its Nesterov momentum (0.95): about as far as with AdamW, so that one
    rate serves both (Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982).

    Raises:
        UserError: no matrix within the layers is trained.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        outer = {id(weight) for weight in _outer(model)}
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        inner = [p for p in trained if p.ndim == 2 and id(p) not in outer]
        if not inner:
            raise UserError("optimizer.kind=muon moves matrices within the layers, and none of them is trained; set optimizer.kind=adamw")
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(inner, config.lr, config.weight_decay, MOMENTUM, adjust_lr_fn="match_rms_adamw")
        ]
        rest = [p for p in trained if p.ndim != 2 or id(p) in outer]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        if groups := [group for group in groups if group["params"]]:
            self._parts.append(torch.optim.AdamW(groups, config.lr, (config.beta1, config.beta2), config.eps))
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let both parts work on the groups and states of the whole, which is what is saved and loaded, and whose rates are set."""
        for part, groups in zip(self._parts, (self.param_groups[:1], self.param_groups[1:]), strict=False):
            part.state, part.param_groups = self.state, groups

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for part in self._parts:
            part.step()


def _outer(model: nn.Module) -> list[nn.Parameter]:
    """Weights whose rows are tokens or places, not directions: of embeddings, and of the head."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    parts = [*(part for part in model.modules() if isinstance(part, nn.Embedding)), *([head] if isinstance(head, nn.Module) else [])]
    return [weight for part in parts for weight in part.parameters()]
