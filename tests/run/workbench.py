"""What the tests of whole runs are made of: tiny models, generated rows, configurations."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkd_rl.tasks import arithmetic_problems

SPECIALS = ["<pad>", "<end>", "<user>", "<assistant>", "<system>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit status and what it said."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Models:
    """Folders of tiny random models. All but ``foreign`` share one tokenizer with a chat template."""

    student: Path
    teacher: Path
    t5_student: Path
    t5_teacher: Path
    judge: Path
    """A sequence classifier with one output"""
    foreign: Path
    """A causal model whose tokenizer differs from ``student``'s in one token"""


def build_models(folder: Path) -> Models:
    """Random models of a few thousand parameters with a byte-level BPE tokenizer trained on generated word problems."""
    import torch
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification, T5ForConditionalGeneration

    tokenizer, other = (_tokenizer(swap) for swap in (False, True))
    torch.manual_seed(7)
    made = {
        "student": LlamaForCausalLM(_llama(hidden=32)),
        "teacher": LlamaForCausalLM(_llama(hidden=48)),
        "t5_student": T5ForConditionalGeneration(_t5(hidden=32)),
        "t5_teacher": T5ForConditionalGeneration(_t5(hidden=48)),
        "judge": LlamaForSequenceClassification(_llama(hidden=32, num_labels=1)),
        "foreign": LlamaForCausalLM(_llama(hidden=32)),
    }
    for name, model in made.items():
        with torch.no_grad():  # larger weights: distributions far from uniform
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(4)
        model.save_pretrained(folder / name)
        (other if name == "foreign" else tokenizer).save_pretrained(folder / name)
    return Models(**{name: folder / name for name in made})


def _tokenizer(swap: bool) -> Any:
    """Byte-level BPE with a chat template; ``swap`` exchanges the ids of two tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator((row[field] for row in problems("train", 300) for field in ("question", "answer")), trainer)
    if swap:
        whole = json.loads(bpe.to_str())
        vocabulary = whole["model"]["vocab"]
        first, second = (token for token, number in vocabulary.items() if number in (390, 391))
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
        bpe = Tokenizer.from_str(json.dumps(whole))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token="<end>", chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False
    )


def _llama(hidden: int, **more: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=400, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=1024, tie_word_embeddings=False, pad_token_id=0, eos_token_id=1, bos_token_id=None, **more,
    )  # fmt: skip


def _t5(hidden: int) -> Any:
    from transformers import T5Config

    return T5Config(
        vocab_size=400, d_model=hidden, d_kv=16, d_ff=2 * hidden, num_layers=2, num_heads=2, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip


def problems(split: str, count: int) -> list[dict[str, str]]:
    """Generated word problems in GSM8K's form."""
    return [{"question": p.question, "answer": p.solution} for p in itertools.islice(arithmetic_problems.problems(split, 0, (1, 2)), count)]


def write_config(path: Path, settings: dict[str, Any]) -> Path:
    from omegaconf import OmegaConf

    path.write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def check_folder(folder: Path, steps: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Assert that a finished run of ``steps`` steps left a whole folder; returns metrics, rollouts and summary."""
    from gkd_rl.config.load import load_config

    metrics, rollouts = rows_of(folder / "metrics.jsonl"), rows_of(folder / "rollouts.jsonl")
    summary, made_with = (json.loads((folder / name).read_text()) for name in ("summary.json", "environment.json"))
    assert load_config(folder / "config.yaml").max_steps == steps
    assert [row["step"] for row in metrics] == list(range(1, steps + 1))
    assert all(isinstance(value, (int, float)) and math.isfinite(value) for row in metrics for value in row.values()), metrics
    assert {row["step"] for row in rollouts} == set(range(1, steps + 1))
    for row in rollouts:
        assert len(row["tokens"]) == len(row["logprobs"]) == len(row["divergence"]) > 0
        assert set(row) >= {"prompt", "completion", "columns", "on_policy", "reward", "rewards", "advantage", "example", "version"}
    assert {"accuracy_before", "accuracy_after", "accuracy_teacher", "seconds"} <= set(summary)
    assert {"python", "packages", "command", "device"} <= set(made_with)
    assert (folder / "checkpoints" / f"step-{steps:08d}" / "state.json").is_file()
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".") and path.name != ".lock"]
    return metrics, rollouts, summary


def check_final_model(folder: Path, initial: Path) -> None:
    """Assert that ``model/`` loads by Auto classes and holds the trained weights: the last checkpoint's, not the initial ones."""
    import torch
    from transformers import AutoTokenizer

    model, before = load(folder / "model"), load(initial)
    assert AutoTokenizer.from_pretrained(folder / "model").get_vocab() == AutoTokenizer.from_pretrained(initial).get_vocab()
    newest = max((folder / "checkpoints").glob("step-*"))
    state = torch.load(newest / "state" / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    trained = load(initial)
    trained.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    ids = torch.arange(5, 25)[None]
    ours, theirs, first = (_logits(m, ids, ids) for m in (model, trained, before))
    assert torch.equal(ours, theirs)
    assert not torch.allclose(ours, first, atol=1e-5)


def load(folder: Path) -> Any:
    """The causal or encoder-decoder model in ``folder``, by its Auto class."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    family = AutoModelForSeq2SeqLM if AutoConfig.from_pretrained(folder).is_encoder_decoder else AutoModelForCausalLM
    return family.from_pretrained(folder, dtype="float32").eval()


def check_rollouts_against_models(rows: list[dict[str, Any]], student: Path, teacher: Path) -> None:
    """Assert that log-probabilities and JSD(0.5) of stored rollouts are those of the two models, computed here from logits alone."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student)
    ours, theirs = load(student), load(teacher)
    for row in rows:
        text = row["prompt"]
        if not isinstance(text, str):
            text = tokenizer.apply_chat_template(text, add_generation_prompt=True, tokenize=False)
        prompt = torch.tensor([tokenizer(text)["input_ids"]])
        tokens = torch.tensor([row["tokens"]])
        p, q = (_logits(model, prompt, tokens).log_softmax(-1)[0] for model in (ours, theirs))
        mixture = torch.logaddexp(p, q) - math.log(2)
        divergence = ((q.exp() * (q - mixture)).sum(-1) + (p.exp() * (p - mixture)).sum(-1)) / 2
        logprobs = p.gather(-1, tokens[0][:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(row["logprobs"]), logprobs, atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(torch.tensor(row["divergence"]), divergence, atol=2e-3, rtol=1e-3)
        assert row["completion"] == tokenizer.decode(row["tokens"], skip_special_tokens=True)


def _logits(model: Any, prompt: Any, tokens: Any) -> Any:
    """Logits [1, C, V] that predict ``tokens`` after ``prompt``."""
    import torch

    with torch.no_grad():
        if model.config.is_encoder_decoder:
            start = torch.full((1, 1), model.config.decoder_start_token_id)
            return model(input_ids=prompt, decoder_input_ids=torch.cat([start, tokens[:, :-1]], 1)).logits
        return model(torch.cat([prompt, tokens], 1)).logits[:, prompt.shape[1] - 1 : -1]
