"""Tiny random models of many families, and tokenizers to go with them.

Weights are drawn large enough for distributions to be far from uniform, so that a shifted position or a lost scale shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from gkd_rl.models.language_model import LanguageModel, wrap

EMBEDDED_TOKENIZER = Path(__file__).resolve().parent.parent / "gkd_rl" / "assets" / "arithmetic-teacher"

_DECODER = {
    **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 256},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
}
_BART = {
    **{"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 256},
    **{"decoder_start_token_id": 1, "forced_eos_token_id": None},
}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_DECODER, "tie_word_embeddings": True}),
    "llama:untied": ("llama", {**_DECODER, "tie_word_embeddings": False}),
    "mistral": ("mistral", {**_DECODER, "sliding_window": None}),
    "qwen2": ("qwen2", _DECODER),
    "qwen3": ("qwen3", _DECODER),
    "gemma2": ("gemma2", {**_DECODER, "final_logit_softcapping": 2.0, "sliding_window": 4, "query_pre_attn_scalar": 8}),
    "cohere": ("cohere", {**_DECODER, "logit_scale": 0.25}),
    "granite": ("granite", {**_DECODER, "logits_scaling": 4.0}),
    "gpt2": ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}),
    "t5": ("t5", {**_T5, "tie_word_embeddings": True}),
    "t5:untied": ("t5", {**_T5, "tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}),
    "umt5": ("umt5", {**_T5, "feed_forward_proj": "gated-gelu"}),
    "bart": ("bart", _BART),
    "mbart": ("mbart", _BART),
}
"""Name → model type and its configuration."""

CAUSAL = tuple(name for name in FAMILIES if name.split(":")[0] not in ("t5", "umt5", "bart", "mbart"))


def build(kind: str, tokenizer: PreTrainedTokenizerBase, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of a family for ``tokenizer``; ``changes`` go over its configuration."""
    model_type, settings = FAMILIES[kind]
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = AutoConfig.for_model(model_type, **{"vocab_size": len(tokenizer), **ids, **settings, **changes})
    family = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = family.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise * 0.5)
            else:
                parameter.add_(noise * 0.1)
    model.tie_weights()
    if kind == "t5:untied":  # Transformers ties all T5 models but those that are loaded from a file with a head of its own
        head = torch.randn(model.get_output_embeddings().weight.shape, generator=generator) * 0.5
        model.get_output_embeddings().weight = torch.nn.Parameter(head)
    return model.eval()


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Save both in Hugging Face form; returns ``folder``."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def embedded_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer that ships with the package."""
    return AutoTokenizer.from_pretrained(EMBEDDED_TOKENIZER)


def letters(size: int, eos: str = "<eos>", names: str = "abcdefghijklmnopqrstuvwxyz") -> PreTrainedTokenizerBase:
    """A tokenizer of ``size`` tokens: padding 0, end 1, and letters, apart by spaces. Answers end often where there are few."""
    return word_tokenizer({word: i for i, word in enumerate(["<pad>", eos, *names[: size - 2]])}, eos)


def word_tokenizer(vocabulary: dict[str, int], eos: str = "<eos>") -> PreTrainedTokenizerBase:
    """A tokenizer of whole words, apart by spaces."""
    inner = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = WhitespaceSplit()  # pyright: ignore
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token=eos)


def language_model(kind: str, vocabulary: int = 12, seed: int = 0, **changes: Any) -> LanguageModel:
    """A tiny model over ``letters(vocabulary)``, ready to use."""
    tokenizer = letters(vocabulary)
    return wrap(build(kind, tokenizer, seed, **changes), tokenizer)


def padded_rows(
    rows: list[tuple[list[int], list[int]]], left: int = 0, right: int = 0, pad: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prompt ids and mask (left-padded), completion ids and mask (right-padded), with ``left`` and ``right`` columns more."""
    prompt_width = max(len(prompt) for prompt, _ in rows) + left
    width = max(len(completion) for _, completion in rows) + right
    prompt_ids, ids = torch.full((len(rows), prompt_width), pad), torch.full((len(rows), width), pad)
    prompt_mask, mask = torch.zeros_like(prompt_ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for i, (prompt, completion) in enumerate(rows):
        prompt_ids[i, prompt_width - len(prompt) :] = torch.tensor(prompt)
        prompt_mask[i, prompt_width - len(prompt) :] = True
        ids[i, : len(completion)] = torch.tensor(completion)
        mask[i, : len(completion)] = True
    return prompt_ids, prompt_mask, ids, mask
