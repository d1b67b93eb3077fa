"""When an answer ends: end tokens of the model and of the settings, and texts.

Shapes: B sequences, C completion positions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import GenerationConfig

from gkd_rl.models.language_model import LanguageModel
from gkd_rl.rollout.drawing import SamplingParams

SLACK = 8
"""Tokens beyond a stop text's length that are looked at: some tokens hold no character."""


def end_tokens(model: LanguageModel) -> list[int]:
    """Every token that ends an answer: the tokenizer's EOS and those of the model's generation settings (chat models have several)."""
    return sorted({int(model.tokenizer.eos_token_id), *generation_ends(model.module.generation_config)})  # pyright: ignore[reportArgumentType]


def generation_ends(settings: GenerationConfig | None) -> list[int]:
    """The end tokens that generation settings name."""
    named = getattr(settings, "eos_token_id", None)
    return [] if named is None else [named] if isinstance(named, int) else list(named)


class Stopping:
    """Says which rows have ended."""

    def __init__(self, model: LanguageModel, params: SamplingParams) -> None:
        self.tokenizer = model.tokenizer
        self.ends = torch.tensor(sorted({*end_tokens(model), *params.stop_token_ids}), device=model.device)
        self.texts = params.stop
        self.first = params.min_new_tokens
        self.window = max((len(text) for text in params.stop), default=0) + SLACK

    def banned(self, position: int) -> Tensor | None:
        """Tokens that may not be drawn at ``position`` (from 0)."""
        return self.ends if position < self.first else None

    def ending(self, ids: Tensor, position: int, tokens: Tensor) -> Tensor:
        """[B] bool: whether ``tokens`` [B], drawn at ``position`` of the completions ``ids`` [B, C], end them."""
        ending = torch.isin(tokens, self.ends)
        if not self.texts or position + 1 < self.first:
            return ending
        tails = self.tokenizer.batch_decode(ids[:, max(0, position + 1 - self.window) : position + 1], skip_special_tokens=True)
        found = [any(text in tail for text in self.texts) for tail in tails]
        return ending | torch.tensor(found, dtype=torch.bool, device=ids.device)
