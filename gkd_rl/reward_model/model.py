"""The model with one output and its tokenizer: a checkpoint, or both made from scratch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from gkd_rl.config.reward_model import RewardModelConfig
from gkd_rl.errors import UserError
from gkd_rl.models.source import resolve
from reward_models.errors import nearest_hint

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
"""Sizes of a model from scratch where ``model.config`` does not name them."""


def load_scorer(config: RewardModelConfig, texts: Iterable[str]) -> tuple[Any, Any]:
    """Model and tokenizer; ``texts`` teach a vocabulary where there is no checkpoint.

    Raises ``UserError`` for a checkpoint that cannot be loaded, and an architecture or sizes that do not exist.
    """
    torch.manual_seed(config.seed)
    if config.model.path is None:
        tokenizer = _learned_tokenizer(texts, config.model.vocabulary, config.max_length)
        return _new_model(config, tokenizer), tokenizer
    path = resolve(config.model.path, "model.path")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"model.path: {path} cannot be loaded as a sequence classifier ({str(error).splitlines()[0]})") from None
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise UserError(f"model.path: the tokenizer of {path} has neither a padding nor an end token; give it one")
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def _learned_tokenizer(texts: Iterable[str], vocabulary: int, max_length: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    special = list(SPECIAL.values())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False)  # pyright: ignore
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(name, special.index(name)) for name in ("[CLS]", "[SEP]")]
    single = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.post_processor = single  # pyright: ignore[reportAttributeAccessIssue]
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, model_input_names=names, **SPECIAL)


def _new_model(config: RewardModelConfig, tokenizer: Any) -> Any:
    kind = config.model.type
    if kind not in CONFIG_MAPPING:
        raise UserError(f"model.type: Transformers has no architecture '{kind}'{nearest_hint(kind, CONFIG_MAPPING.keys())}")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
    ends = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    fixed = {"vocab_size": len(tokenizer), "num_labels": 1, **ids, **ends}
    sizes = {**SMALL, "max_position_embeddings": config.max_length, **config.model.config}
    try:
        return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **{**sizes, **fixed}))
    except Exception as error:  # each architecture complains of its sizes in a way of its own
        raise UserError(f"model.type: no '{kind}' with one output can be made with model.config {config.model.config} ({error})") from None
