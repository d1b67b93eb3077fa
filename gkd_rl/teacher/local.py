"""A teacher in the process: one forward pass per rollout, of which the hidden states are kept.

Hidden states are what to store: for a vocabulary of 152k and a width of 2k they are 74 times smaller than logits, and with the
teacher's head they give its whole distribution back.

Shapes: B sequences, C completion positions, H hidden.
"""

from __future__ import annotations

from typing import Protocol

import torch

from gkd_rl.models.language_model import LanguageModel
from gkd_rl.rollout.rows import lengths, take
from gkd_rl.types import Head, Rollouts, TeacherScores


class Teacher(Protocol):
    """Anything that can score rollouts."""

    head: Head

    def score(self, rollouts: Rollouts) -> TeacherScores:
        """What the teacher predicts at each completion token."""
        ...


class LocalTeacher:
    """A Hugging Face model, causal or encoder-decoder."""

    def __init__(self, model: LanguageModel, token_budget: int) -> None:
        self.model = model
        self.token_budget = token_budget
        head = model.head
        self.head = Head(
            weight=head.weight.detach(),
            bias=None if head.bias is None else head.bias.detach(),
            scale=head.scale,
            soft_cap=head.soft_cap,
        )

    @torch.no_grad()
    def score(self, rollouts: Rollouts) -> TeacherScores:
        """Hidden states [B, C, H], zero where there is no token; rows of like length go through the model together."""
        prompt, completion = lengths(rollouts)
        order = (prompt + completion).argsort(stable=True)
        weight = self.head.weight
        hidden = weight.new_zeros(*rollouts.completion_ids.shape, weight.shape[1])
        for rows in self._cuts(order, (prompt + completion)[order]):
            part = take(rollouts, rows)
            states = self.model.completion_hidden(part.prompt_ids, part.prompt_mask, part.completion_ids, part.completion_mask)
            hidden[rows, : states.shape[1]] = states * part.completion_mask[..., None]
        return TeacherScores(hidden, self.head)

    def _cuts(self, order: torch.Tensor, sorted_lengths: torch.Tensor) -> list[torch.Tensor]:
        cuts, start = [], 0
        widths = sorted_lengths.tolist()
        for end in range(1, len(widths) + 1):
            if end == len(widths) or (end + 1 - start) * widths[end] > self.token_budget:
                cuts.append(order[start:end])
                start = end
        return cuts
