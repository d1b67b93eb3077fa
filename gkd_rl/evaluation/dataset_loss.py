"""The student's loss on the dataset's own completions: what an adaptive share of sampled rows goes by."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gkd_rl.models.language_model import LanguageModel
from gkd_rl.processes import Processes
from gkd_rl.rollout.rescoring import policy_logprobs
from gkd_rl.rollout.sampler import dataset_rollouts
from gkd_rl.types import Example


@torch.no_grad()
def dataset_loss(model: LanguageModel, examples: Sequence[Example], max_new_tokens: int, token_budget: int, processes: Processes) -> float:
    """Cross-entropy in nats per token, −Σ log p(y_n) / Σ 1, of the completions of ``examples``, which all ranks share among them.

    Raises ``UserError`` for an example without a completion, or with one of more than ``max_new_tokens`` tokens.
    """

    def sums() -> dict[str, float]:
        mine = processes.share(examples)
        if not mine:
            return {"logprob": 0.0, "tokens": 0.0}
        rollouts = dataset_rollouts(model, mine, max_new_tokens, 0)
        logprobs = policy_logprobs(model, rollouts, token_budget)
        return {"logprob": float(logprobs.double().sum()), "tokens": float(rollouts.completion_mask.sum())}

    whole = processes.sum(processes.together(sums))
    return -whole["logprob"] / whole["tokens"]
