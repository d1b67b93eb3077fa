"""Estimates of the divergence from the sampled token alone. Shapes: N tokens.

R = log pT(y) − log pS(y) at the token y drawn from the student. Each form is good for one use only:

* ``R`` itself, detached, as an advantage of the policy gradient (the estimator k1 = −R): unbiased gradient of the reverse KL; summed
  over later tokens, of the reverse KL of whole sequences;
* ``k2`` = R²/2 as a loss: the same gradient by differentiation;
* ``k3`` = e^R − R − 1 as a loss: its gradient is the *forward* KL's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gkd_rl.config.objective import DivergenceConfig

LOG_RATIO_LIMIT = 20.0
"""R is clamped to ± this inside k3's exponential."""


def k2(log_ratio: Tensor) -> Tensor:
    """R²/2 [N]."""
    return log_ratio.square() / 2


def k3(log_ratio: Tensor) -> Tensor:
    """e^R − R − 1 [N]."""
    return torch.expm1(log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)) - log_ratio


def later_log_ratios(log_ratio: Tensor, index: Tensor, config: DivergenceConfig) -> Tensor:
    """What each token's advantage from the teacher is made of [N]: Σ_m γ^(m−n)·R_m over its sequence's tokens m ≥ n.

    With ``use`` both over m > n, since the token's own term is differentiated (MiniLLM, arXiv 2306.08543, eq. 3). ``average`` divides by
    Σ_m γ^(m−n) (its length normalisation); where there is no later token, the value is 0.
    """
    own = config.use == "both"
    total = discounted_sum(log_ratio, index, config.discount) - own * log_ratio
    if not config.average:
        return total
    ones = torch.ones_like(log_ratio)
    weight = discounted_sum(ones, index, config.discount) - own * ones
    return torch.where(weight > 0, total / torch.where(weight > 0, weight, 1.0), 0.0)


def discounted_sum(values: Tensor, index: Tensor, discount: float) -> Tensor:
    """Σ_{m≥n} γ^(m−n)·value_m within each sequence [N]: the return of per-token rewards; tokens of a sequence are in order."""
    if discount == 0:
        return values
    tokens, sequences = values.tolist(), index.tolist()
    for n in range(len(tokens) - 2, -1, -1):
        if sequences[n] == sequences[n + 1]:
            tokens[n] += discount * tokens[n + 1]
    return values.new_tensor(tokens)
