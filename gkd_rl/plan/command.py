"""``gkd-rl train CONFIG --dry-run``: the plan as tables or as one JSON object."""

from __future__ import annotations

import json
import os
import time

import torch

from gkd_rl.config.run import Config
from gkd_rl.console import Terminal
from gkd_rl.models.language_model import DTYPES
from gkd_rl.plan.memory import total
from gkd_rl.plan.plan import Plan, plan
from gkd_rl.processes import quiet_libraries

_LARGEST = 8192
_LONG_ENOUGH = 0.05
"""Seconds of a product that is measured."""


def dry_run(config: Config, as_json: bool, ranks: int | None, flops_per_second: float | None) -> Plan:
    """Plan ``config`` and print it. ``ranks``: by default as many as were launched; ``flops_per_second``: by default measured here."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    quiet_libraries()
    ranks = ranks if ranks is not None else int(os.environ.get("WORLD_SIZE", "1"))
    name = torch.cuda.get_device_name() if device.type == "cuda" else "this CPU"
    rate = f"a matrix product in {config.student.dtype} on {name}" if flops_per_second is None else "--flops-per-second"
    given = measured_rate(device, DTYPES[config.student.dtype]) if flops_per_second is None else flops_per_second
    made = plan(config, ranks, given, rate)
    if int(os.environ.get("RANK", "0")) == 0:
        _print(made, config, as_json)
    return made


def measured_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs per second of one product of square matrices, the smallest that takes a twentieth of a second: 2·n³ / time."""
    size = 128
    while True:
        left, right = torch.randn(2, size, size, device=device).to(dtype)
        seconds = min(_seconds(left, right, device) for _ in range(2))
        if seconds >= _LONG_ENOUGH or size >= _LARGEST:
            return 2.0 * size**3 / seconds
        size *= 2


def _seconds(left: torch.Tensor, right: torch.Tensor, device: torch.device) -> float:
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    started = time.perf_counter()
    torch.mm(left, right)
    synchronize()
    return time.perf_counter() - started


def _print(made: Plan, config: Config, as_json: bool) -> None:
    if as_json:
        print(json.dumps(made.as_json()))
        return
    terminal = Terminal()
    sizes = {"student": made.student, **made.teachers}
    rows = [[key, size.path, _short(size.parameters), _short(size.trained), size.source] for key, size in sizes.items()]
    terminal.table("models", ["", "path", "parameters", "trained", "known from"], rows)
    terminal.table("work", ["", "a step", "the run"], _work(made))
    stage = f"ZeRO {max(config.engine.zero_stage, int(config.student.dtype == 'bfloat16'))}"
    known = total({name: size for name, size in made.memory.items() if size is not None})
    sizes = [[name, _bytes(size)] for name, size in made.memory.items()]
    whole = ["all of these", _bytes(known) if None not in made.memory.values() else f"at least {_bytes(known)}"]
    terminal.table(f"memory per rank of {made.ranks}, {stage}", ["sampling and training take turns", ""], [*sizes, whole])
    epochs = "" if made.epochs is None else f", {made.epochs:.2f} epochs of {made.data.examples:,} examples"
    terminal.say(f"data       {made.data.said}{epochs}")
    terminal.say(f"lengths    {made.data.prompt:.0f} + {made.data.completion:.0f} tokens a row, {made.data.lengths}")
    terminal.say(f"rate       {_short(made.flops_per_second)}FLOP/s per rank, from {made.rate}")
    seconds = made.step_seconds
    if seconds is None:
        terminal.say("time       unknown, as the size of a model is")
    else:
        terminal.say(f"time       {_duration(seconds)} a step, {_duration(seconds * made.steps)} in all, of arithmetic alone")


def _work(made: Plan) -> list[list[str]]:
    counts = {
        "prompts": made.prompts,
        "completions": made.completions,
        "  of them sampled": made.sampled_completions,
        "tokens": made.tokens,
        **{f"FLOPs, {name.removeprefix('flops_')}": value for name, value in made.flops.items()},
        "FLOPs": made.step_flops,
    }
    rows = [[name, _short(value), _short(None if value is None else value * made.steps)] for name, value in counts.items()]
    return [["steps", "1", f"{made.steps:,}"], ["updates", f"{made.updates // made.steps}", f"{made.updates:,}"], *rows]


def _short(value: float | None) -> str:
    """Three digits and a sign for thousands, millions, ... ; whole numbers below a thousand as they are."""
    if value is None:
        return "unknown"
    for power, sign in ((24, "Y"), (21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power:
            return f"{value / 10**power:.3g} {sign}"
    return f"{value:.4g} "


def _bytes(size: float | None) -> str:
    return f"{_short(size)}B" if size is not None else "unknown"


def _duration(seconds: float) -> str:
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s"
