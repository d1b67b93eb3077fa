"""A whole training step (sample, reward, teacher, update) beside TRL's trainers: same models, prompts, lengths and precision.

    python scripts/bench_step.py                   # 16 answers of 128 tokens, student width 256, teacher 512, vocabulary 32,000
    python scripts/bench_step.py --answers 8 --tokens 32 --json

Distillation (α = 1, JSD(½)) is compared with ``trl.DistillationTrainer``, reward (α = 0, groups of 4) with ``trl.GRPOTrainer``, and
the joint run (α = ½) with the dearer of our two. Every contender runs in a process of its own; the median of its steps after the
first two counts. TRL's gradient checkpointing is switched off, which makes it faster.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # threads of all contenders wait alike
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gkd_rl.config.run import RewardConfig
from gkd_rl.processes import quiet_libraries
from gkd_rl.types import Example

GROUP = 4
WARM_UP = 2
PHASES = ("sample", "reward", "teacher", "batching", "student", "optimiser", "sync")
CONTENDERS = ("ours, α=1", "ours, α=0", "ours, α=½", "TRL distillation", "TRL GRPO")


def even_share(prompts: list[str], completions: list[str], **columns: object) -> list[float | None]:
    """A reward that costs nothing: the share of words with an even number."""
    return [sum(word[1:].isdigit() and int(word[1:]) % 2 == 0 for word in text.split()) / max(1, len(text.split())) for text in completions]


class Prompts:
    """A task of seeded prompts of 16 to 64 words."""

    train_size = 4096

    def __init__(self, vocabulary: int = 32_000, **_: object) -> None:
        self.vocabulary = vocabulary

    def text(self, index: int) -> str:
        generator = torch.Generator().manual_seed(index)
        length = int(torch.randint(16, 65, (1,), generator=generator))
        return " ".join(f"w{i}" for i in torch.randint(2, self.vocabulary, (length,), generator=generator).tolist())

    def train_example(self, index: int) -> Example:
        return Example(self.text(index), key=index)

    def held_out(self, count: int) -> list[Example]:
        return [self.train_example(self.train_size + i) for i in range(count)]

    def default_rewards(self) -> list[RewardConfig]:
        return [RewardConfig(path=f"{Path(__file__).resolve()}:even_share")]


def save_models(folder: Path, vocabulary: int) -> None:
    """A student and a teacher of random weights and one tokenizer of made-up words."""
    names = ["<pad>", "<end>", *(f"w{i}" for i in range(2, vocabulary))]
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="w2"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<pad>")
    for name, width, layers in (("student", 256, 4), ("teacher", 512, 8)):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=width * 8 // 3,
                num_hidden_layers=layers,
                num_attention_heads=width // 64,
                num_key_value_heads=width // 64,
                max_position_embeddings=1024,
                eos_token_id=1,
                pad_token_id=0,
                bos_token_id=None,
            )
        )
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def ours(folder: Path, alpha: float, arguments: argparse.Namespace) -> list[float]:
    """Seconds of each step of ``gkd_rl.training``, as the run itself logs them."""
    from gkd_rl.config.load import load_config
    from gkd_rl.training import train

    run_dir = folder / f"run-{alpha}"
    settings: dict[str, Any] = {
        "run_dir": run_dir,
        "max_steps": arguments.steps,
        "student": {"path": folder / "student", "dtype": arguments.dtype},
        "teacher": {"path": folder / "teacher", "dtype": arguments.dtype},
        "task": {"path": f"{Path(__file__).resolve()}:Prompts", "options": {"vocabulary": arguments.vocabulary}, "max_prompt_tokens": 64},
        "rollout": {"prompts_per_step": arguments.answers // GROUP, "per_prompt": GROUP, "max_new_tokens": arguments.tokens},
        "objective": {"alpha": alpha, "divergence": {"kind": "gjsd", "beta": 0.5}, "advantage": {"kind": "grpo"}},
        "optimizer": {"lr": 1e-6},
        "engine": {"micro_batch_tokens": 8192},
        "evaluation": {"examples": 2, "teacher": False},
        "log_rollouts_every": 0,
    }
    settings["rollout"]["overlap"] = arguments.overlap
    path = folder / "config.yaml"
    path.write_text(json.dumps(settings, default=str))
    train(load_config(path))
    lines = [json.loads(line) for line in (run_dir / "timings.jsonl").read_text().splitlines()]
    totals = [sum(value for name, value in line.items() if name in PHASES) for line in lines]
    return [after - before for before, after in pairwise(totals)]


def trl(folder: Path, distils: bool, arguments: argparse.Namespace) -> list[float]:
    """Seconds of each step of TRL's trainer, the first left out."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.trainer.distillation_config import DistillationConfig
    from trl.trainer.distillation_trainer import DistillationTrainer
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    task = Prompts(arguments.vocabulary)
    rows = Dataset.from_list([{"prompt": task.text(i)} for i in range(arguments.answers * (arguments.steps + 1))])
    common = {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": arguments.answers,
        "max_steps": arguments.steps,
        "max_completion_length": arguments.tokens,
        "learning_rate": 1e-6,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": False,
    }
    weights = {"dtype": arguments.dtype}
    if distils:
        options = DistillationConfig(beta=0.5, model_init_kwargs=weights, teacher_model_init_kwargs=weights, **common)
        trainer = DistillationTrainer(str(folder / "student"), str(folder / "teacher"), options, rows, callbacks=[Clock()])
    else:
        options = GRPOConfig(num_generations=GROUP, beta=0.0, model_init_kwargs=weights, **common)
        trainer = GRPOTrainer(str(folder / "student"), even_share, options, rows, callbacks=[Clock()])
    trainer.train()
    return [after - before for before, after in pairwise(times)]


def measure(name: str, folder: Path, arguments: argparse.Namespace) -> float:
    """Median seconds of a step of one contender, in this process."""
    if name.startswith("ours"):
        seconds = ours(folder, {"1": 1.0, "0": 0.0, "½": 0.5}[name[-1]], arguments)
    else:
        seconds = trl(folder, "distillation" in name, arguments)
    return statistics.median(seconds[WARM_UP - 1 :])


def measured_apart(name: str, folder: Path) -> float:
    """The same in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(folder), "--contender", name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure and print."""
    quiet_libraries()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=16, help="answers per step")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens per answer")
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--overlap", action="store_true", help="have ours sample a step ahead")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(measure(arguments.contender, arguments.folder, arguments))
        return
    with tempfile.TemporaryDirectory() as name:
        save_models(Path(name), arguments.vocabulary)
        seconds = {contender: measured_apart(contender, Path(name)) for contender in CONTENDERS}
    figures = {
        "vs_trl_distillation": seconds["TRL distillation"] / seconds["ours, α=1"],
        "vs_trl_grpo": seconds["TRL GRPO"] / seconds["ours, α=0"],
        "joint_vs_dearer": seconds["ours, α=½"] / max(seconds["ours, α=1"], seconds["ours, α=0"]),
        "seconds": seconds,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        **{key: getattr(arguments, key) for key in ("answers", "tokens", "vocabulary", "dtype", "overlap")},
    }
    if arguments.json:
        print(json.dumps(figures))
        return
    table = Table(title=f"one step of {arguments.answers} answers of up to {arguments.tokens} tokens, {figures['device']}")
    for column in ("", "seconds", "tokens/s"):
        table.add_column(column, justify="right" if column else "left")
    for contender, spent in seconds.items():
        table.add_row(contender, f"{spent:.2f}", f"{arguments.answers * arguments.tokens / spent:,.0f}")
    console = Console()
    console.print(table)
    console.print(
        f"{figures['vs_trl_distillation']:.1f} times TRL's distillation, {figures['vs_trl_grpo']:.1f} times its GRPO; "
        f"the joint run costs {figures['joint_vs_dearer']:.2f} of the dearer of the two alone"
    )


if __name__ == "__main__":
    main()
