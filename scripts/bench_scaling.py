"""What more processes cost: time of a step, bytes sent per step and memory per rank by ZeRO stage, and a projection to large models.

    python scripts/bench_scaling.py                # 1, 2 and (with the cores for it) 4 processes of one thread; rows per rank are fixed
    python scripts/bench_scaling.py --rows 16 --tokens 64 --json

Whole steps of ``gkd_rl.training`` run under ``torchrun``; every collective of ``torch.distributed`` is counted by its payload: what a ring
sends through each rank, but for the factor (N-1)/N. The first two steps do not count. The projection comes from formulas
(``scaling_projection.py``) and from the bytes per weight measured here for a bf16 student.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import torch
from bench_step import PHASES, Prompts, save_models
from collective_traffic import Traffic, held_bytes
from rich.console import Console
from rich.table import Table
from scaling_projection import FORMULA, Hardware, Work, project
from transformers import LlamaConfig, LlamaForCausalLM

from gkd_rl import engine
from gkd_rl.engine import Engine, Update
from gkd_rl.processes import quiet_libraries

BUCKET = 50_000_000
"""Gradients in the buffer that stage 3 keeps, whatever the model's size: ``reduce_bucket_size`` of the engine."""
STEPS, FIRST = 5, 2
"""Steps of a run, and the first of those that count."""


class ShortPrompts(Prompts):
    """Prompts of eight words."""

    def text(self, index: int) -> str:
        return " ".join(super().text(index).split()[:8])


def work(folder: Path, arguments: argparse.Namespace) -> None:
    """One process of a run; the first of them prints what was found."""
    from gkd_rl.config.load import load_config
    from gkd_rl.training import train

    traffic, found, done = Traffic(), {}, 0
    traffic.watch()
    update = Engine.update

    def watched(trained: Engine, *given: Any) -> Update:
        """The update, its traffic apart. What counts goes from the end of update FIRST to the end of the last."""
        nonlocal done
        done += 1
        if done == STEPS:
            _before(trained.deepspeed, "step", lambda: found.update(held=held_bytes(trained.deepspeed.module, trained.deepspeed.optimizer)))
        traffic.place = "update"
        taken = update(trained, *given)
        traffic.place = "elsewhere"
        if done == FIRST:
            traffic.sent.clear()
        if done == STEPS:
            found["sent"] = {place: traffic.sent[place] / (STEPS - FIRST) for place in ("update", "elsewhere")}
            found["parameters"] = sum(getattr(p, "ds_numel", p.numel()) for p in trained.deepspeed.module.parameters())
        return taken

    _release_at_once()
    Engine.update = watched  # pyright: ignore[reportAttributeAccessIssue]
    train(load_config(_settings(folder, arguments)))
    if os.environ["RANK"] == "0":
        lines = [json.loads(line) for line in (folder / "run" / "timings.jsonl").read_text().splitlines()]
        totals = [{name: line.get(name, 0.0) for name in PHASES} for line in lines]
        steps = [{name: after[name] - before[name] for name in PHASES} for before, after in pairwise(totals)][FIRST - 1 :]
        found["phases"] = {name: statistics.median(step[name] for step in steps) for name in PHASES}
        found["seconds"] = statistics.median(sum(step.values()) for step in steps)
        found["peak_rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        (folder / "found.json").write_text(json.dumps(found))


def _release_at_once() -> None:
    """Have ZeRO-3 gather weights for each use, as it does with models above its 10⁹ live weights; a small one's it would keep."""
    settings = engine._deepspeed_config

    def releasing(*given: Any) -> dict[str, Any]:
        made = settings(*given)
        made["zero_optimization"] |= {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}
        return made

    engine._deepspeed_config = releasing


def _before(owner: Any, name: str, act: Callable[[], None]) -> None:
    """Have ``owner``'s method act first: just before the optimiser's step gradients are there too."""
    method = getattr(owner, name)

    def both(*given: Any, **named: Any) -> Any:
        act()
        return method(*given, **named)

    setattr(owner, name, both)


def _settings(folder: Path, arguments: argparse.Namespace) -> Path:
    """The run's configuration: distillation and reward over as many rows per rank, whatever their number."""
    ranks = int(os.environ["WORLD_SIZE"])
    path = folder / f"config-{os.environ['RANK']}.yaml"
    models = Path(arguments.models)
    settings: dict[str, Any] = {
        "run_dir": folder / "run",
        "max_steps": STEPS,
        "student": {"path": models / "student", "dtype": arguments.dtype},
        "teacher": {"path": models / "teacher"},
        "task": {
            "path": f"{Path(__file__).resolve()}:ShortPrompts",
            "options": {"vocabulary": arguments.vocabulary},
            "max_prompt_tokens": 64,
        },
        "rollout": {"prompts_per_step": ranks * arguments.rows // 4, "per_prompt": 4, "max_new_tokens": arguments.tokens},
        "objective": {"alpha": 0.5, "divergence": {"kind": "gjsd", "beta": 0.5}, "advantage": {"kind": "grpo"}},
        "optimizer": {"lr": 1e-6},
        "engine": {"zero_stage": arguments.stage, "micro_batch_tokens": 1 << 20, "threads": 1},
        "evaluation": {"examples": 2, "teacher": False},
        "log_rollouts_every": 0,
    }
    path.write_text(json.dumps(settings, default=str))
    return path


def save_pair(folder: Path, vocabulary: int) -> None:
    """A student and a teacher of random weights. All of the student's matrices are large enough for ZeRO-3 to shard (10⁵ weights)."""
    save_models(folder, vocabulary)
    config = LlamaConfig.from_pretrained(folder / "student")
    config.update({"hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 64})
    LlamaForCausalLM(config).save_pretrained(folder / "student")


def measured(count: int, stage: int, dtype: str, models: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """What ``count`` processes at a ZeRO stage find."""
    with tempfile.TemporaryDirectory() as name:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        command = [sys.executable, *launcher, __file__, "--folder", name, "--models", str(models)]
        for key in ("rows", "tokens", "vocabulary"):
            command += [f"--{key}", str(getattr(arguments, key))]
        command += ["--stage", str(stage), "--dtype", dtype]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            sys.exit(f"{count} processes at stage {stage} failed:\n{done.stderr[-3000:]}")
        found = json.loads((Path(name) / "found.json").read_text())
    per_weight = {place: size / found["parameters"] for place, size in found["sent"].items()}
    return {"processes": count, "stage": stage, "dtype": dtype, "bytes_per_weight": per_weight, **found}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything: weak scaling at stage 0, every stage with two processes, and the bytes of a bf16 student."""
    devices = torch.cuda.device_count() if torch.cuda.is_available() else os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as small:
        save_pair(Path(name), arguments.vocabulary)
        save_pair(Path(small), 64)
        weak = [measured(count, 0, "float32", Path(name), arguments) for count in (1, 2, 4) if count <= max(2, devices)]
        two = weak[1:2] + [measured(2, stage, "float32", Path(name), arguments) for stage in (1, 2, 3)]
        little = argparse.Namespace(**{**vars(arguments), "rows": 4, "tokens": 4, "vocabulary": 64})
        half = [measured(2, stage, "bfloat16", Path(small), little) for stage in (1, 2, 3)]
    figures = {"weak": weak, "stages": two, "bf16": half, "cores": os.cpu_count(), "torch": torch.__version__}
    figures["projection"] = project({row["stage"]: row["bytes_per_weight"] for row in half})
    return {**figures, **{key: getattr(arguments, key) for key in ("rows", "tokens", "vocabulary")}}


def show(figures: dict[str, Any]) -> None:
    """The tables."""
    console = Console(width=140)
    first = figures["weak"][0]["seconds"]
    _table(
        console,
        f"measured: {figures['rows']} rows of {figures['tokens']} tokens per process, one thread each, {figures['cores']} cores, ZeRO 0",
        ("processes", "s/step", "efficiency", *PHASES),
        [
            (str(row["processes"]), f"{row['seconds']:.2f}", f"{first / row['seconds']:.0%}", *(f"{row['phases'][p]:.2f}" for p in PHASES))
            for row in figures["weak"]
        ],
    )
    rows = []
    for row in (*figures["stages"], *figures["bf16"]):
        size = 2 if row["dtype"] == "bfloat16" else 4
        held = (row["held"] - (BUCKET * size if row["stage"] == 3 else 0)) / row["parameters"]
        memory = [f"{held:.1f} B", f"{row['peak_rss'] / 2**20:,.0f}"]
        sent = [f"{row['bytes_per_weight'][place] / size:.2f} P" for place in ("update", "elsewhere")]
        rows.append((str(row["stage"]), row["dtype"], f"{row['seconds']:.2f}", f"{FORMULA[row['stage']]:.0f} P", *sent, *memory))
    head = ("stage", "weights", "s/step", "formula", "sent in the update", "sent elsewhere", "held per weight", "MiB peak RSS")
    _table(console, "measured: 2 processes; P is the size of the weights in their own precision", head, rows)
    _show_projection(console, figures["projection"])


def _show_projection(console: Console, rows: list[dict[str, Any]]) -> None:
    hardware, load = Hardware(), Work()
    title = (
        f"PROJECTION, not measured: 7B ← 70B in bf16 on {hardware.name}, {load.rows_per_gpu} rows of {load.prompt} + {load.completion} "
        f"tokens per GPU; {hardware.compute_share:.0%} of {hardware.flops / 1e12:.0f} TFLOP/s, {hardware.memory_share:.0%} of "
        f"{hardware.memory_bandwidth / 1e12:.2f} TB/s, {hardware.link_share:.0%} of the links"
    )
    lines = []
    for (gpus, teacher), group in groupby(rows, lambda row: (row["gpus"], row["teacher"])):
        stages = list(group)
        memory = [f"{row['gb']:.0f}" + ("" if row["fits"] else " ✗") for row in stages]
        phases = [f"{seconds:.1f}" for seconds in stages[0]["phases"].values()]
        sent = [f"{sum(row['communication'].values()):.2f}" for row in stages]
        quickest = min((row for row in stages if row["fits"]), key=lambda row: row["seconds"], default=None)
        best = "-" if quickest is None else f"{quickest['seconds']:.1f} ({quickest['stage']})"
        lines.append((str(gpus), teacher, *memory, *phases, *sent, best))
    numbers = [str(row["stage"]) for row in rows[:3]]
    head = (
        "GPUs",
        "teacher",
        *(f"GB {n}" for n in numbers),
        "sample",
        "teacher",
        "student",
        *(f"sent {n}" for n in numbers),
        "step (stage)",
    )
    _table(
        console,
        f"{title}\nGB per GPU and seconds sent by ZeRO stage, ✗: does not fit; seconds of phases and of the quickest stage",
        head,
        lines,
    )


def _table(console: Console, title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(title=title, title_justify="left")
    for column in head:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def main() -> None:
    """Measure and print."""
    quiet_libraries()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8, help="rows per process and step, a multiple of 4")
    parser.add_argument("--tokens", type=int, default=32, help="new tokens per row")
    parser.add_argument("--vocabulary", type=int, default=8_000)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--models", help=argparse.SUPPRESS)
    parser.add_argument("--stage", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="float32", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        work(arguments.folder, arguments)
        return
    figures = measure(arguments)
    if arguments.json:
        print(json.dumps(figures))
    else:
        show(figures)


if __name__ == "__main__":
    main()
