"""The objective: reward, divergence to the teacher and cross-entropy over one set of sampled tokens.

``unified.py`` is the definition, ``fused.py`` its fast twin. Names are loaded on first use, so that checking a configuration
(``validate.py``, ``schedule.py``) imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gkd_rl.objective.divergence import token_divergence
    from gkd_rl.objective.fused import fused_objective
    from gkd_rl.objective.unified import unified_objective

__all__ = ["fused_objective", "token_divergence", "unified_objective"]

_HOME = {"fused_objective": "fused", "token_divergence": "divergence", "unified_objective": "unified"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
