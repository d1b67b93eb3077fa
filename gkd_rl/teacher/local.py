"""A teacher in the process: one forward pass per rollout, of which the hidden states are kept.

Hidden states are what to store: for a vocabulary of 152k and a width of 2k they are 74 times smaller than logits, and with the
teacher's head they give its whole distribution back.

Shapes: B sequences, C completion positions, H hidden.
"""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from typing import Protocol

import torch

from gkd_rl.models.language_model import LanguageModel
from gkd_rl.models.lora import without_lora
from gkd_rl.models.placement import placed
from gkd_rl.objective.head import in_fp32, logits_of
from gkd_rl.objective.numerics import log_probs
from gkd_rl.processes import Processes
from gkd_rl.progress import progress
from gkd_rl.rollout.rows import lengths, take
from gkd_rl.teacher.sharded import Shards
from gkd_rl.types import Head, Heads, HiddenScores, Rollouts, TeacherScores, TopKScores


class Teacher(Protocol):
    """Anything that can score rollouts."""

    @property
    def head(self) -> Heads | None:
        """What stored hidden states are completed with; None for a teacher that gives ``TopKScores``."""
        ...

    def score(self, rollouts: Rollouts) -> TeacherScores:
        """What the teacher predicts at each completion token."""
        ...


class LocalTeacher:
    """A Hugging Face model, causal or encoder-decoder; ``under_adapter``: what ``model`` is without its adapter.

    Under an adapter it reads the trained model's own weights, which have to be whole when it is asked.
    """

    def __init__(self, model: LanguageModel, token_budget: int, device: torch.device | None = None, under_adapter: bool = False) -> None:
        """``device``: where the model goes to score, and where its head stays; None: it is there already."""
        self.model = model
        self.under_adapter = under_adapter
        self.token_budget = token_budget
        self.shards: Shards | None = None
        self.device = device or model.device
        head = model.head
        self.head = Head(
            weight=head.weight.detach().to(self.device),
            bias=None if head.bias is None else head.bias.detach().to(self.device),
            scale=head.scale,
            soft_cap=head.soft_cap,
        )

    def shard(self, processes: Processes) -> None:
        """Cut the model's weights, but for the head, up over ranks. From then on all ranks ``score`` together, whatever rows each has."""
        self.shards = Shards(self.model, processes)

    @property
    def parameters(self) -> int:
        """Number of parameters that a token goes through."""
        return self.model.parameters - (self.model.trained_parameters if self.under_adapter else 0)

    @torch.no_grad()
    def score(self, rollouts: Rollouts) -> HiddenScores:
        """Hidden states [B, C, H], zero where there is no token; rows of like length go through the model together."""
        prompt, completion = lengths(rollouts)
        order = (prompt + completion).argsort(stable=True)
        weight = self.head.weight
        hidden = weight.new_zeros(*rollouts.completion_ids.shape, weight.shape[1])
        cuts = self._cuts(order, (prompt + completion)[order])
        surplus = 0 if self.shards is None else self.shards.surplus(len(cuts))
        with placed(self.model, self.device), without_lora(self.model.module) if self.under_adapter else nullcontext():
            with progress("teacher", len(order), "rows") as advance:
                for rows in cuts:
                    part = take(rollouts, rows)
                    states = self._states(part)
                    hidden[rows, : states.shape[1]] = states * part.completion_mask[..., None]
                    advance(len(rows))
            for _ in range(surplus):
                assert self.shards is not None
                self.shards.run_empty()
        return HiddenScores(hidden, self.head)

    def _states(self, part: Rollouts) -> torch.Tensor:
        """Hidden states of rows that go through the model together."""
        forward = lambda: self.model.completion_hidden(part.prompt_ids, part.prompt_mask, part.completion_ids, part.completion_mask)
        return forward() if self.shards is None else self.shards.run(forward)

    def _cuts(self, order: torch.Tensor, sorted_lengths: torch.Tensor) -> list[torch.Tensor]:
        cuts, start = [], 0
        widths = sorted_lengths.tolist()
        for end in range(1, len(widths) + 1):
            if end == len(widths) or (end + 1 - start) * widths[end] > self.token_budget:
                cuts.append(order[start:end])
                start = end
        return cuts


SCORED_TOKENS = 512
"""Tokens whose distributions are formed at once where only a part of them is kept."""


class TopKTeacher:
    """A teacher in the process that keeps its ``k`` likeliest tokens only, or ``k`` drawn from it: for a small buffer or cache."""

    head = None

    def __init__(self, whole: LocalTeacher, k: int, draws: bool = False) -> None:
        self.whole = whole
        self.k = k
        self.draws = draws

    def score(self, rollouts: Rollouts) -> TopKScores:
        """The k likeliest tokens (all, where the vocabulary has fewer) or draws, and the completion's own."""
        if self.draws:
            return draws_of(self.whole.score(rollouts), rollouts, self.k)
        return top_k_of(self.whole.score(rollouts), rollouts, self.k)


@torch.no_grad()
def top_k_of(scores: HiddenScores, rollouts: Rollouts, k: int) -> TopKScores:
    """What is left of whole distributions if only ``k`` tokens of each are kept; zero where there is no token."""
    mask, head = rollouts.completion_mask, in_fp32(scores.head)
    k = min(k, head.weight.shape[0])
    ids = torch.zeros(*mask.shape, k, dtype=torch.long, device=mask.device)
    logprobs, own = torch.zeros(ids.shape, device=mask.device), torch.zeros(mask.shape, device=mask.device)
    kept = []
    for hidden, tokens in zip(scores.hidden[mask].split(SCORED_TOKENS), rollouts.completion_ids[mask].split(SCORED_TOKENS), strict=True):
        lq = log_probs(logits_of(hidden, head))
        kept.append((*lq.topk(k), lq.gather(-1, tokens[:, None]).squeeze(-1)))
    if kept:
        logprobs[mask], ids[mask], own[mask] = (torch.cat(parts) for parts in zip(*kept, strict=True))
    return TopKScores(ids, logprobs, own)


@torch.no_grad()
def draws_of(scores: HiddenScores, rollouts: Rollouts, k: int) -> TopKScores:
    """``k`` tokens drawn with replacement from each distribution; the same for the same row, whatever surrounds it."""
    mask, head = rollouts.completion_mask, in_fp32(scores.head)
    ids = torch.zeros(*mask.shape, k, dtype=torch.long, device=mask.device)
    logprobs, own = torch.zeros(ids.shape, device=mask.device), torch.zeros(mask.shape, device=mask.device)
    for row, valid in enumerate(mask.sum(1).tolist()):
        if not valid:
            continue
        tokens = rollouts.completion_ids[row, :valid]
        lq = log_probs(logits_of(scores.hidden[row, :valid], head))
        seen = repr((rollouts.prompt_ids[row][rollouts.prompt_mask[row]].tolist(), tokens.tolist())).encode()
        seed = int.from_bytes(hashlib.blake2b(seen, digest_size=7).digest(), "big")
        uniforms = torch.rand(valid, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        bounds = lq.double().exp().cumsum(-1)
        drawn = torch.searchsorted(bounds, uniforms.to(bounds.device) * bounds[:, -1:], right=True).clamp_max(lq.shape[-1] - 1)
        ids[row, :valid], logprobs[row, :valid] = drawn, lq.gather(-1, drawn)
        own[row, :valid] = lq.gather(-1, tokens[:, None]).squeeze(-1)
    return TopKScores(ids, logprobs, own)
