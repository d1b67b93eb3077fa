"""What rollouts of every sampler are compared with: the definition of truncation, and the trainer's forward pass."""

from __future__ import annotations

import torch
from experiences import own_logits
from torch import Tensor

from gkd_rl.models.language_model import LanguageModel
from gkd_rl.objective.head import logits_of
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.types import Rollouts

TRUNCATIONS = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.2},
    "top_k and top_p": {"temperature": 1.4, "top_k": 6, "top_p": 0.9},
}


def exact_distribution(model: LanguageModel, prompt: list[int], params: SamplingParams) -> Tensor:
    """[V]: the first token's: temperature, then the k likeliest, the fewest of those whose mass reaches p, and those near the top."""
    logits = own_logits(model, prompt, [0])[0].detach().double()
    masses = (logits / params.temperature).exp().tolist()
    order = sorted(range(len(masses)), key=lambda i: -masses[i])[: params.top_k or len(masses)]
    total, kept, mass = sum(masses[i] for i in order), [], 0.0
    for i in order:
        if mass < params.top_p * total and masses[i] >= params.min_p * max(masses):
            kept.append(i)
            mass += masses[i]
    return torch.tensor([masses[i] / mass if i in kept else 0.0 for i in range(len(masses))])


@torch.no_grad()
def forward_logprobs(model: LanguageModel, r: Rollouts) -> Tensor:
    """[B, C]: log-probabilities of the completions by one forward pass over all rows."""
    hidden = model.completion_hidden(r.prompt_ids, r.prompt_mask, r.completion_ids, r.completion_mask)
    return logits_of(hidden, model.head).log_softmax(-1).gather(-1, r.completion_ids[..., None])[..., 0]
