"""Estimates of the divergence from the sampled token alone. Shapes: N tokens.

R = log pT(y) − log pS(y) at the token y drawn from the student. Each form is good for one use only:

* ``R`` itself, detached, as an advantage of the policy gradient (the estimator k1 = −R): unbiased gradient of the reverse KL;
* ``k2`` = R²/2 as a loss: the same gradient by differentiation;
* ``k3`` = e^R − R − 1 as a loss: its gradient is the *forward* KL's.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""R is clamped to ± this inside k3's exponential."""


def k2(log_ratio: Tensor) -> Tensor:
    """R²/2 [N]."""
    return log_ratio.square() / 2


def k3(log_ratio: Tensor) -> Tensor:
    """e^R − R − 1 [N]."""
    return torch.expm1(log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)) - log_ratio


def discounted_sum(values: Tensor, index: Tensor, discount: float) -> Tensor:
    """Σ_{m≥n} γ^(m−n)·value_m within each sequence [N]: the return of per-token rewards; tokens of a sequence are in order."""
    if discount == 0:
        return values
    tokens, sequences = values.tolist(), index.tolist()
    for n in range(len(tokens) - 2, -1, -1):
        if sequences[n] == sequences[n + 1]:
            tokens[n] += discount * tokens[n + 1]
    return values.new_tensor(tokens)
