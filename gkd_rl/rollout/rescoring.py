"""Log-probabilities of completions under the policy, by the trainer's own forward pass: what importance ratios compare with.

Shapes: B sequences, C completion positions, N tokens, H hidden.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gkd_rl.models.language_model import LanguageModel
from gkd_rl.objective.head import in_fp32, logits_of
from gkd_rl.rollout.rows import lengths, take
from gkd_rl.types import Head, Rollouts

TOKENS_AT_ONCE = 1024
"""Tokens whose logits exist at the same time."""


@torch.no_grad()
def policy_logprobs(model: LanguageModel, rollouts: Rollouts, token_budget: int) -> Tensor:
    """[B, C] fp32: log softmax of the untruncated logits at each completion token, 0 where the mask is 0.

    Rows go through the model in batches of at most ``token_budget`` padded tokens (a single longer one alone), sorted by length.
    """
    out = torch.zeros(rollouts.completion_ids.shape, device=rollouts.completion_ids.device)
    head = in_fp32(model.head)
    for rows in _batches(rollouts, token_budget):
        part = take(rollouts, rows)
        mask = part.completion_mask
        hidden = model.completion_hidden(part.prompt_ids, part.prompt_mask, part.completion_ids, mask)
        scored = torch.zeros(mask.shape, device=out.device)
        scored[mask] = token_logprobs(hidden[mask], part.completion_ids[mask], head)
        out[rows, : mask.shape[1]] = scored
    return out


def with_policy_logprobs(model: LanguageModel, rollouts: Rollouts, token_budget: int) -> Rollouts:
    """The same rollouts with ``logprobs`` from the policy's forward pass."""
    return replace(rollouts, logprobs=policy_logprobs(model, rollouts, token_budget))


def _batches(rollouts: Rollouts, token_budget: int) -> list[Tensor]:
    prompt, completion = lengths(rollouts)
    order = (prompt + completion).argsort(stable=True).tolist()
    cuts: list[list[int]] = []
    widest = (0, 0)
    for row in order:
        size = int(prompt[row]), int(completion[row])
        wider = max(widest[0], size[0]), max(widest[1], size[1])
        if cuts and (len(cuts[-1]) + 1) * sum(wider) <= token_budget:
            cuts[-1].append(row)
            widest = wider
        else:
            cuts.append([row])
            widest = size
    return [torch.tensor(cut, device=rollouts.completion_ids.device) for cut in cuts]


def token_logprobs(hidden: Tensor, tokens: Tensor, head: Head) -> Tensor:
    """[N] fp32: log softmax of states [N, H] at token ids [N]."""
    parts = []
    for start in range(0, len(tokens), TOKENS_AT_ONCE):
        logits = logits_of(hidden[start : start + TOKENS_AT_ONCE], head)
        chosen = logits.gather(-1, tokens[start : start + TOKENS_AT_ONCE, None])[:, 0]
        parts.append(chosen - logits.logsumexp(-1))
    return torch.cat(parts).float() if parts else hidden.new_zeros(0, dtype=torch.float32)
