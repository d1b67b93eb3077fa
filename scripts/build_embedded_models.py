"""Train the embedded teacher and student from scratch and write them as safetensors under ``gkd_rl/assets``.

    python scripts/build_embedded_models.py [--out gkd_rl/assets] [--only teacher|student] [--teacher-steps 3500]

The teacher sees problems without limit; the student is fitted to a fixed set of a few thousand, so that data, not size, is what it
lacks. Both are Llama models. Hidden matrices are trained by Muon, the rest by AdamW; only solution tokens carry loss.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gkd_rl.tasks.arithmetic_problems import Problem, problems, vocabulary

TEACHER = {"hidden_size": 192, "intermediate_size": 480, "num_hidden_layers": 5, "num_attention_heads": 6}
STUDENT = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
LEVELS = (1, 2, 2, 3, 3, 4)  # the teacher's mixture, so that it has seen the harder level too
STUDENT_LEVELS = (1, 2, 3)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words (with their leading space) and single digits; decoding gives back the very text."""
    words = vocabulary()
    signs = [*list(".,?:+-*/=()$%'"), " ", "\n", "#### "]
    pieces = ["<pad>", "<eos>", "<unk>", *signs, *"0123456789", *(f" {d}" for d in range(10))]
    pieces += words + [f" {word}" for word in words]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"#### | ?[A-Za-z]+| ?[0-9]|\n|\s|[^\sA-Za-z0-9]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def build_model(shape: dict, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids("<eos>"),
        pad_token_id=0,
        **shape,
    )
    return LlamaForCausalLM(config)


def batches(stream: Iterator[Problem], tokenizer, size: int, rng: random.Random) -> Iterator[tuple[torch.Tensor, ...]]:
    """Right-padded ids and labels, rows of similar length together."""
    while True:
        rows = []
        for problem in itertools.islice(stream, size * 32):
            prompt = tokenizer(problem.question + "\n")["input_ids"]
            rows.append((prompt, tokenizer(problem.solution)["input_ids"] + [tokenizer.eos_token_id]))
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        cuts = [rows[i : i + size] for i in range(0, len(rows), size)]
        rng.shuffle(cuts)
        for cut in cuts:
            width = max(len(p) + len(c) for p, c in cut)
            ids = torch.full((len(cut), width), tokenizer.pad_token_id)
            labels = torch.full((len(cut), width), -100)
            for i, (prompt, completion) in enumerate(cut):
                ids[i, : len(prompt) + len(completion)] = torch.tensor(prompt + completion)
                labels[i, len(prompt) : len(prompt) + len(completion)] = torch.tensor(completion)
            yield ids, labels


def fit(model, stream, tokenizer, steps: int, batch: int, lr_muon: float, lr_adam: float, decay: float = 0.0) -> None:
    """Fit for ``steps``; the rates fall linearly to zero over the last two thirds of them."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=lr_muon, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr_adam, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    body = torch.compile(model.model, dynamic=True)
    start, seen = time.time(), 0
    model.train()
    for step, (ids, labels) in enumerate(itertools.islice(batches(stream, tokenizer, batch, random.Random(0)), steps), 1):
        share = step / steps
        warm = min(1.0, step / 50)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * warm * min(1.0, (1 - share) * 1.5)
        hidden = body(input_ids=ids).last_hidden_state[:, :-1]
        keep = labels[:, 1:] != -100
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[keep]), labels[:, 1:][keep])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen += len(ids)
        if step % 100 == 0:
            print(f"step {step} loss {loss.item():.4f} problems {seen} {time.time() - start:.0f} s", flush=True)


@torch.no_grad()
def accuracy(model, tokenizer, levels: tuple[int, ...], n: int = 500) -> float:
    """Greedy accuracy on held-out problems."""
    model.eval()
    held_out = list(itertools.islice(problems("test", 0, levels), n))
    right = 0
    for i in range(0, n, 100):
        part = held_out[i : i + 100]
        batch = tokenizer([p.question + "\n" for p in part], return_tensors="pt", padding=True, return_token_type_ids=False)
        out = model.generate(**batch, max_new_tokens=72, do_sample=False)[:, batch["input_ids"].shape[1] :]
        for problem, text in zip(part, tokenizer.batch_decode(out, skip_special_tokens=True), strict=True):
            right += text.strip().endswith(f"#### {problem.answer}")
    return right / n


def save(model, tokenizer, folder: Path, figures: dict) -> None:
    model.generation_config.max_new_tokens = None
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(folder, figures, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gkd_rl/assets"))
    parser.add_argument("--only", choices=("teacher", "student"))
    parser.add_argument("--teacher-steps", type=int, default=3500)
    parser.add_argument("--student-steps", type=int, default=1200)
    parser.add_argument("--student-problems", type=int, default=1500)
    parser.add_argument("--lr", type=float, default=0.006, help="rate of the hidden matrices")
    args = parser.parse_args()
    tokenizer = build_tokenizer()
    if args.only != "student":
        teacher = build_model(TEACHER, tokenizer, seed=1)
        fit(teacher, problems("train", 1, LEVELS), tokenizer, args.teacher_steps, 64, args.lr, 4e-3)
        figures = {f"accuracy_level_{k}": accuracy(teacher, tokenizer, (k,), 200) for k in (1, 2, 3, 4, 5)}
        figures["accuracy"] = accuracy(teacher, tokenizer, STUDENT_LEVELS)
        save(teacher, tokenizer, args.out / "arithmetic-teacher", figures)
    if args.only != "teacher":
        student = build_model(STUDENT, tokenizer, seed=2)
        fixed = list(itertools.islice(problems("train", 2, STUDENT_LEVELS), args.student_problems))
        fit(student, itertools.cycle(fixed), tokenizer, args.student_steps, 64, args.lr, 4e-3, decay=0.1)
        save(student, tokenizer, args.out / "arithmetic-student", {"accuracy": accuracy(student, tokenizer, STUDENT_LEVELS)})


if __name__ == "__main__":
    main()
