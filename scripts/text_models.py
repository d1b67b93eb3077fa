"""Tokenizer, teacher and initial student of ``scripts/evidence_text.py``: models of T5's architecture, made and fitted from scratch.

Shapes: B rows, P prompt positions, C completion positions, V vocabulary.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from gkd_rl.models.language_model import LanguageModel, wrap
from gkd_rl.objective.head import logits_of

SHAPE: dict[str, Any] = {"d_model": 160, "d_kv": 40, "d_ff": 416, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 4}
"""of the teacher"""
KEPT = {"encoder": (0, 2), "decoder": (0,)}
"""layers of the teacher from which the student is made"""
VOCABULARY = 3000
RATES = 0.006, 0.01
"""peak learning rates of the matrices and of the rest"""
DROPOUT = 0.1
"""while the teacher is fitted, which meets each of its few thousand pairs many times"""

Pair = tuple[list[int], list[int]]
"""Token ids of a prompt and of its completion, the latter with EOS."""


def fit_tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-pair encoding with ``size`` tokens, of which none crosses a space; unknown characters are bytes, so that decoding gives back
    the text (in NFKC, with single spaces)."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" +", " "), normalizers.Strip()])  # pyright: ignore
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Digits(individual_digits=True)])  # pyright: ignore
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])  # pyright: ignore
    special = ["<pad>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )


def new_teacher(tokenizer: PreTrainedTokenizerBase, seed: int) -> LanguageModel:
    """A model of ``SHAPE`` with random weights."""
    torch.manual_seed(seed)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "decoder_start_token_id": tokenizer.pad_token_id}
    config = T5Config(vocab_size=len(tokenizer), dropout_rate=DROPOUT, relative_attention_max_distance=64, **ids, **SHAPE)
    return wrap(T5ForConditionalGeneration(config), tokenizer)


def smaller(teacher: LanguageModel) -> LanguageModel:
    """A student with the teacher's embeddings and its layers ``KEPT`` (shrink and fine-tune: Shleifer and Rush 2020, arXiv 2010.13002),
    which has to be fitted anew."""
    counts = {"num_layers": len(KEPT["encoder"]), "num_decoder_layers": len(KEPT["decoder"])}
    student = T5ForConditionalGeneration(T5Config.from_dict({**teacher.module.config.to_dict(), **counts}))
    named = teacher.module.state_dict().items()
    weights = {name: value for name, value in named if ".block." not in name}
    for side, layers in KEPT.items():
        for place, layer in enumerate(layers):
            old, new = (f"{side}.block.{number}." for number in (layer, place))
            weights |= {new + name.removeprefix(old): value for name, value in named if name.startswith(old)}
    student.load_state_dict(weights)
    return wrap(student, teacher.tokenizer)


def batches(pairs: Sequence[Pair], size: int, pad: int, rng: random.Random) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Prompt ids and mask [B, P], completion ids and mask [B, C], without end; rows of similar length together."""
    while True:
        order = rng.sample(range(len(pairs)), len(pairs))
        for start in range(0, len(order), size * 32):
            part = sorted((pairs[i] for i in order[start : start + size * 32]), key=lambda pair: (len(pair[1]), len(pair[0])))
            cuts = [part[i : i + size] for i in range(0, len(part), size)]
            rng.shuffle(cuts)
            for cut in cuts:
                yield *_padded([prompt for prompt, _ in cut], pad), *_padded([completion for _, completion in cut], pad)


def _padded(rows: Sequence[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(width) < lengths[:, None]


def fit(model: LanguageModel, pairs: Sequence[Pair], steps: int, batch: int = 32, seed: int = 0, watched: Sequence[Pair] = ()) -> None:
    """Cross-entropy (labels smoothed by 0.1) for ``steps`` steps: Muon for the matrices, AdamW for the rest; the rates rise over 50 steps
    and fall linearly to zero over the last two thirds. The loss of ``watched`` pairs, which are not trained on, is printed beside."""
    named = list(model.module.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "shared" not in name and "relative" not in name]
    chosen = set(map(id, matrices))
    optimizers = [
        torch.optim.Muon(matrices, lr=RATES[0], weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([p for _, p in named if id(p) not in chosen], lr=RATES[1], weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    torch.manual_seed(seed)
    start, losses = time.time(), []
    model.module.train()
    stream = batches(pairs, batch, model.tokenizer.pad_token_id, random.Random(seed))  # pyright: ignore[reportArgumentType]
    for step, rows in enumerate(itertools.islice(stream, steps), 1):
        scale = min(1.0, step / 50) * min(1.0, (1 - step / steps) * 1.5)
        for optimizer, rate in zip(optimizers, RATES, strict=True):
            optimizer.param_groups[0]["lr"] = rate * scale
        loss = _loss(model, rows, 0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.module.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step % 200 == 0:
            beside = f", of others {surprise(model, watched):.3f}" if watched else ""
            print(f"step {step} of {steps}: loss {sum(losses[-25:]) / 25:.3f}{beside}, {time.time() - start:.0f} s", flush=True)
    model.module.eval()


@torch.no_grad()
def surprise(model: LanguageModel, pairs: Sequence[Pair]) -> float:
    """Cross-entropy per token of ``pairs``, in nats."""
    training = model.module.training
    model.module.eval()
    rows = next(batches(pairs, len(pairs), model.tokenizer.pad_token_id, random.Random(0)))  # pyright: ignore[reportArgumentType]
    found = _loss(model, rows, 0.0).item()
    model.module.train(training)
    return found


def _loss(model: LanguageModel, rows: tuple[Tensor, Tensor, Tensor, Tensor], smoothing: float) -> Tensor:
    """Mean over the tokens of the completions."""
    mask = rows[3]
    logits = logits_of(model.completion_hidden(*rows)[mask], model.head)
    return torch.nn.functional.cross_entropy(logits, rows[2][mask], label_smoothing=smoothing)


def save(model: LanguageModel, folder: Path) -> None:
    """Weights, configuration and tokenizer in Hugging Face form; what is loaded from it has no dropout."""
    model.module.config.dropout_rate = 0.0
    model.module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
