"""Checkpoints of a run: written aside, hashed, flushed, renamed; the newest intact one is found again.

A checkpoint holds DeepSpeed's state (weights, optimiser) and, per rank, the sampling buffer; ``state.json`` closes it and holds what
is left: the step, the validation scores and the positions of the logs. Everything random is a function of seed and step.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from gkd_rl.config.load import differences, load_config, value_at
from gkd_rl.config.run import Config, VllmConfig
from gkd_rl.engine import Engine
from gkd_rl.errors import UserError
from gkd_rl.intact import CLOSING, closed, digests
from gkd_rl.processes import Processes
from gkd_rl.rollout.ahead import Ahead
from gkd_rl.rollout.buffer import SamplingBuffer
from gkd_rl.run_folder import RunFolder, remove_tree, write_atomically
from gkd_rl.types import Heads

CHANGEABLE = (
    *("run_dir", "max_steps", "resume", "data_dir", "model", "log_rollouts_every", "log_top_choices"),
    *("log_completions", "log_completions_every", "trackers"),
    *("engine.micro_batch_tokens", "engine.threads", "engine.timeout", "engine.max_bad_updates"),
    *("evaluation.every", "evaluation.during_examples", "evaluation.samples"),
    *(f"rollout.vllm.{item.name}" for item in fields(VllmConfig)),
    *("teacher.url", "teacher.rows_per_request", "teacher.concurrency", "teacher.retries", "teacher.retry_seconds", "teacher.timeout"),
    *("teacher.api_key_env", "teacher.cache"),
)
"""Settings that may differ where a run is continued."""


class Checkpoints:
    """The ``checkpoints/`` of a run's folder."""

    def __init__(self, folder: Path, keep: int, keep_best: bool = False) -> None:
        self.folder = folder / "checkpoints"
        self.keep = keep
        self.keep_best = keep_best
        self._latest = -1

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

        ``teachers`` are the weights of those that change in the course of the run, alike on all ranks. ``state["score"]`` is the
        validation score of the step, where it has one. Raises ``UserError`` where the disk of any rank takes no more, on every rank, with
        the number of that rank: earlier checkpoints are left as they were.
        """
        processes = engine.processes
        if step == self._latest:
            return
        aside, place = self.folder / f".step-{step:08d}", self.folder / f"step-{step:08d}"
        try:
            processes.together(lambda: _writing(aside, lambda: _make_anew(aside) if processes.is_main else None))
            processes.together(lambda: _writing(aside, lambda: _write(aside, engine, buffer, ahead, teachers)))
            files = digests(aside, processes)
            whole = {**state, "step": step, "ranks": processes.count, "files": files}
            processes.together(lambda: _writing(aside, lambda: None if run is None else _close(aside, place, whole, run)))
        except Exception:
            if processes.is_main:
                remove_tree(aside)
            raise
        self._latest = step
        if processes.is_main:
            self._rotate()

    def _rotate(self) -> None:
        """Leave the newest ``keep``, and the one with the best score (of equals the newest), where that is asked for."""
        steps = self._steps()
        kept = set(steps[-self.keep :])
        if self.keep_best:
            scored = [(score, place) for place in steps if (score := _score(place)) is not None]
            kept |= {max(scored)[1]} if scored else set()
        for old in steps:
            if old not in kept:
                remove_tree(old)

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that is intact, and its ``state.json``."""
        found, _ = self.look()
        return found

    def glimpse(self) -> dict[str, Any] | None:
        """The ``state.json`` of the newest checkpoint that was closed, its files unread."""
        for place in reversed(self._steps()):
            try:
                return json.loads((place / CLOSING).read_text())
            except (OSError, ValueError):
                continue
        return None

    def look(self) -> tuple[tuple[Path, dict[str, Any]] | None, list[str]]:
        """The same, and a sentence for each newer one that was passed over."""
        passed = []
        for place in reversed(self._steps()):
            state, problem = closed(place)
            if state is not None:
                return (place, state), passed
            passed.append(f"the checkpoint {place} is passed over: {problem}")
        return None, passed

    def restore(
        self,
        place: Path,
        engine: Engine,
        buffer: SamplingBuffer,
        ahead: Ahead | None,
        teacher: Heads | None,
        reference: Heads | None,
        ranks: int,
    ) -> None:
        """Load weights, optimiser and this rank's buffer and sampling ahead. Both hold tensors and plain values only.

        Of a checkpoint of another number of ``ranks`` weights and optimiser are taken alone: rows are sampled anew.
        """
        rank, device = engine.processes.rank, engine.processes.device
        try:
            if ranks != engine.processes.count:
                return engine.load_of(place, ranks)
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
        if key not in CHANGEABLE and not key.startswith(("checkpoint.", "tracking.", "ablation.", "sft.")):
            raise UserError(
                f"run_dir {folder} holds a run with {key}={value_at(began, key)}, not {value_at(config, key)}; "
                "resume=new sets it aside first, or choose another run_dir"
            )
    state = Checkpoints(folder, config.checkpoint.keep).glimpse() or {"step": 0, "ranks": ranks}
    if state["step"] > config.max_steps:
        raise UserError(f"run_dir {folder} holds a run of {state['step']} steps, more than max_steps={config.max_steps}; raise max_steps")
    if state["ranks"] != ranks and state["step"] < config.max_steps and (why := _bound_to_ranks(config)):
        raise UserError(f"run_dir {folder} holds a run of {state['ranks']} processes, not {ranks}, and {why}; start as many to continue it")


def _bound_to_ranks(config: Config) -> str | None:
    """Why only as many processes as before can go on from a checkpoint; None: any number can."""
    engine = config.engine
    if config.rollout.max_staleness:
        return "rollout.max_staleness keeps rows by it"
    if engine.zero_stage == 1 and config.student.dtype == "bfloat16":
        return "the optimiser of a bfloat16 student at engine.zero_stage=1 is cut up by it"
    if "nvme" in (engine.offload_optimizer, engine.offload_parameters):
        return "states on NVMe are cut up by it"
    return None


Found = tuple[tuple[Path, dict[str, Any]] | None, list[str]]
"""What ``Checkpoints.look`` returns."""


def look_on_main(checkpoints: Checkpoints, processes: Processes) -> Found:
    """What the main process finds, told to all: ranks must not decide apart."""
    return processes.gather(checkpoints.look() if processes.is_main else None)[0]


def _make_anew(aside: Path) -> None:
    remove_tree(aside)
    aside.mkdir(parents=True)


def _write(aside: Path, engine: Engine, buffer: SamplingBuffer, ahead: Ahead | None, teachers: Sequence[Mapping[str, Tensor]]) -> None:
    """This rank's part, and what the main one alone writes."""
    rank = engine.processes.rank
    engine.save(aside)
    torch.save(buffer.state_dict(), aside / f"buffer-{rank}.pt")
    if ahead is not None:
        torch.save(ahead.state_dict(), aside / f"ahead-{rank}.pt")
    if engine.processes.is_main and teachers:
        torch.save([dict(weights) for weights in teachers], aside / "teachers.pt")


def _close(aside: Path, place: Path, state: Mapping[str, Any], run: RunFolder) -> None:
    """With what closes it, flush the checkpoint and give it its name."""
    write_atomically(aside / CLOSING, json.dumps({**state, "positions": run.positions()}, indent=2))
    _flush(aside)
    remove_tree(place)
    aside.rename(place)
    _flush_folder(place.parent)


def _writing(aside: Path, work: Callable[[], None]) -> None:
    """Do ``work``. Raises ``UserError`` where the disk takes no more."""
    try:
        work()
    except (OSError, RuntimeError) as error:  # torch's writer has no error of its own for a full disk
        raise UserError(_why_not_written(error, aside)) from error


def _score(place: Path) -> float | None:
    try:
        return json.loads((place / CLOSING).read_text()).get("score")
    except (OSError, ValueError):
        return None


def _why_not_written(error: Exception, aside: Path) -> str:
    """What a user reads of a failure to write; other failures are raised as they are."""
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
    elif "PytorchStreamWriter" in str(error) or "inline_container" in str(error) or "Parent directory" in str(error):
        reason = f"{shutil.disk_usage(aside.parent).free / 2**20:,.0f} MiB are free"
    else:
        raise error
    return (
        f"the checkpoint {aside.with_name(aside.name[1:])} could not be written ({reason}); make room on the disk; resume=auto continues "
        "from the one before it"
    )


def _flush_folder(folder: Path) -> None:
    """So that a renamed entry outlives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
