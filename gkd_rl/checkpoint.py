"""Checkpoints of a run: written aside, flushed, renamed; the newest intact one is found again.

A checkpoint holds DeepSpeed's state (weights, optimiser) and, per rank, the sampling buffer; ``state.json`` closes it and holds what
is left: the step, the validation scores and the positions of the logs. Everything random is a function of seed and step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from gkd_rl.config.load import differences, load_config, value_at
from gkd_rl.config.run import Config, VllmConfig
from gkd_rl.engine import Engine, Processes
from gkd_rl.errors import UserError
from gkd_rl.rollout.ahead import Ahead
from gkd_rl.rollout.buffer import SamplingBuffer
from gkd_rl.run_folder import RunFolder, remove_tree, write_atomically
from gkd_rl.types import Heads

CHANGEABLE = (
    *("run_dir", "max_steps", "resume", "data_dir", "model", "log_rollouts_every", "engine.micro_batch_tokens", "engine.threads"),
    "engine.max_bad_updates",
    *("evaluation.every", "evaluation.during_examples", "evaluation.samples"),
    *(f"rollout.vllm.{item.name}" for item in fields(VllmConfig)),
    *("teacher.url", "teacher.rows_per_request", "teacher.concurrency", "teacher.retries", "teacher.retry_seconds", "teacher.timeout"),
    *("teacher.api_key_env", "teacher.cache"),
)
"""Settings that may differ where a run is continued."""


class Checkpoints:
    """The ``checkpoints/`` of a run's folder."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder / "checkpoints"
        self.keep = keep

    def save(
        self,
        step: int,
        engine: Engine,
        buffer: SamplingBuffer,
        ahead: Ahead | None,
        run: RunFolder | None,
        state: Mapping[str, Any],
        teachers: Sequence[Mapping[str, Tensor]] = (),
    ) -> None:
        """Write the checkpoint of ``step`` finished steps; every rank calls it, the main one has the ``run`` folder.

        ``teachers`` are the weights of those that change in the course of the run, alike on all ranks.
        """
        processes = engine.processes
        aside, place = self.folder / f".step-{step:08d}", self.folder / f"step-{step:08d}"
        if processes.is_main:
            remove_tree(aside)
            aside.mkdir(parents=True)
        processes.barrier()
        engine.save(aside)
        torch.save(buffer.state_dict(), aside / f"buffer-{processes.rank}.pt")
        if ahead is not None:
            torch.save(ahead.state_dict(), aside / f"ahead-{processes.rank}.pt")
        if processes.is_main and teachers:
            torch.save([dict(weights) for weights in teachers], aside / "teachers.pt")
        processes.barrier()
        if run is not None:
            whole = {**state, "step": step, "ranks": processes.count, "positions": run.positions()}
            write_atomically(aside / "state.json", json.dumps(whole, indent=2))
            _flush(aside)
            remove_tree(place)
            aside.rename(place)
            for old in self._steps()[: -self.keep]:
                remove_tree(old)
        processes.barrier()

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that was closed, and its ``state.json``."""
        for place in reversed(self._steps()):
            if (place / "state.json").is_file():
                return place, json.loads((place / "state.json").read_text())
        return None

    def restore(
        self, place: Path, engine: Engine, buffer: SamplingBuffer, ahead: Ahead | None, teacher: Heads | None, reference: Heads | None
    ) -> None:
        """Load weights, optimiser and this rank's buffer and sampling ahead. Both hold tensors and plain values only."""
        rank, device = engine.processes.rank, engine.processes.device
        try:
            engine.load(place)
            state = torch.load(place / f"buffer-{rank}.pt", map_location=device, weights_only=True)
            begun = {} if ahead is None else torch.load(place / f"ahead-{rank}.pt", map_location=device, weights_only=True)
        except (RuntimeError, OSError, EOFError, UnpicklingError) as error:
            reason = str(error).split(". ")[0].splitlines()[0]
            raise UserError(f"the checkpoint {place} cannot be read ({reason}); remove it to continue from an earlier one") from error
        buffer.load_state_dict(state, teacher, reference)
        if ahead is not None:
            ahead.load_state_dict(begun)

    def teachers(self, place: Path, engine: Engine) -> list[dict[str, Tensor]]:
        """The weights of teachers that change, of a checkpoint."""
        file = place / "teachers.pt"
        if not file.is_file():
            raise UserError(f"the checkpoint {place} holds no teachers.pt; remove it to continue from an earlier one")
        return torch.load(file, map_location=engine.processes.device, weights_only=True)

    def _steps(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def require_same_run(config: Config, ranks: int) -> None:
    """Raise ``UserError`` unless ``config`` continues the run in its folder: same settings, same ranks, not fewer steps than done."""
    folder = Path(config.run_dir)
    if config.resume != "auto" or not (folder / "config.yaml").is_file():
        return
    began = load_config(folder / "config.yaml")
    for key in differences(config, began):
        if key not in CHANGEABLE and not key.startswith(("checkpoint.", "ablation.", "sft.")):
            raise UserError(
                f"run_dir {folder} holds a run with {key}={value_at(began, key)}, not {value_at(config, key)}; "
                "resume=new sets it aside first, or choose another run_dir"
            )
    _, state = Checkpoints(folder, config.checkpoint.keep).newest() or (None, {"step": 0, "ranks": ranks})
    if state["step"] > config.max_steps:
        raise UserError(f"run_dir {folder} holds a run of {state['step']} steps, more than max_steps={config.max_steps}; raise max_steps")
    if state["ranks"] != ranks and state["step"] < config.max_steps:
        raise UserError(f"run_dir {folder} holds a run of {state['ranks']} processes, not {ranks}; start as many to continue it")


def state_on_main(checkpoints: Checkpoints, processes: Processes) -> tuple[Path, dict[str, Any]] | None:
    """What the main process finds, told to all: ranks must not decide apart."""
    return processes.gather(checkpoints.newest() if processes.is_main else None)[0]


def _flush(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
