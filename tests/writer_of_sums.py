"""A tiny model that writes sums in marks, ``<<4+38=42>>``, and is as likely as not to be wrong about them."""

from __future__ import annotations

import math

import torch
from tiny_models import build
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gkd_rl.models.language_model import LanguageModel, wrap

WORDS = ["<pad>", "<eos>", "<<", ">>", "=", "=1", "+", "/", " ", *"0123456789", "<", ">"]
WIDTH = 32
FOLLOWS = {
    **{"<pad>": {"<<": 1.0}, "<<": dict.fromkeys("0123456789", 1.0), ">>": {"<<": 4.0, " ": 2.0, "<eos>": 0.5}, " ": {"<<": 1.0}},
    **{"+": dict.fromkeys("0123456789", 1.0), "=": dict.fromkeys("0123456789", 1.0), "=1": {">>": 1.0, "2": 1.0}},
    **{digit: {"+": 3.0, "=": 4.0, "=1": 2.0, ">>": 3.0, "7": 1.0} for digit in "0123456789"},
}
"""Which tokens follow which."""


def marks() -> PreTrainedTokenizerBase:
    merges = [("<", "<"), (">", ">"), ("=", "1")]
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    inner = Tokenizer(models.BPE(vocabulary, merges))
    inner.decoder = decoders.Fuse()  # pyright: ignore
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", clean_up_tokenization_spaces=False)


def writer(kind: str, noise: float = 0.05) -> LanguageModel:
    """A model whose next token depends on the last one by ``FOLLOWS``, and by ``noise`` on everything before it."""
    sizes = {"d_model": WIDTH} if kind == "t5" else {"hidden_size": WIDTH, "head_dim": 16, "tie_word_embeddings": False}
    model = build(kind, marks(), seed=4, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(noise) if parameter.ndim > 1 else parameter.fill_(1.0)
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        embedding.weight.copy_(torch.eye(len(WORDS), WIDTH))  # pyright: ignore
        head.weight = torch.nn.Parameter(torch.full((len(WORDS), WIDTH), -4.0))  # pyright: ignore
        for word, chances in FOLLOWS.items():
            for follower, weight in chances.items():
                head.weight[WORDS.index(follower), WORDS.index(word)] = math.log(weight) / WIDTH**0.5  # pyright: ignore
    model.config.tie_word_embeddings = model.config.scale_decoder_outputs = False
    return wrap(model, marks())
