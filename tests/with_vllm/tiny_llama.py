"""A tiny Llama whose heads are as wide as vLLM's CPU kernels want them."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_models import build, letters, save

from gkd_rl.models.language_model import LanguageModel, wrap

WIDE_HEADS = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1}

WINDOW = 64
"""Tokens that a server reads at most."""


def tiny_llama(seed: int = 0, **changes) -> LanguageModel:
    """A random model over twelve letters; distributions are neither flat nor certain."""
    tokenizer = letters(12)
    module = build("llama", tokenizer, seed, **{**WIDE_HEADS, **changes})
    with torch.no_grad():
        module.get_input_embeddings().weight.mul_(0.4)  # pyright: ignore[reportCallIssue]
    return wrap(module, tokenizer)


def change_weights(model: LanguageModel, seed: int) -> None:
    """Write the weights of another random model into ``model``, in place, as an optimiser would."""
    with torch.no_grad():
        for mine, other in zip(model.module.parameters(), tiny_llama(seed).module.parameters(), strict=True):
            mine.copy_(other)


def saved(model: LanguageModel, folder: Path) -> Path:
    """``model`` in Hugging Face form."""
    return save(model.module, model.tokenizer, folder)
