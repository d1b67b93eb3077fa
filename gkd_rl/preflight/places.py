"""Checks of what a run reads and where it writes: models' files, data, folders, room on the disk and in memory. No model is loaded."""

from __future__ import annotations

import json
import math
import os
import shutil
from math import ceil
from pathlib import Path

import torch

from gkd_rl.config.run import Config
from gkd_rl.config.teachers import model_of, teacher_configs
from gkd_rl.errors import UserError
from gkd_rl.models.source import resolve
from gkd_rl.models.trained import check_trained
from gkd_rl.plan.memory import rank_memory
from gkd_rl.plan.sizes import student_size, teacher_sizes
from gkd_rl.preflight.finding import Finding
from gkd_rl.preflight.trial import Trial
from gkd_rl.run_folder import RunFolder, nearest_folder

_LESS_MEMORY = "raise engine.zero_stage or the number of ranks, lower rollout.sampling_rows, or offload"
MOST = 0.8
"""Share of what is free that may be needed without a warning."""


def model_files(trial: Trial) -> Finding:
    """Whether each model's folder is there with all the files of its weights."""
    config = trial.config
    said = [f"student.path {_weights(trial.source, 'student.path')}"]
    check_trained(config.student, trial.source, "student.path")
    for key, teacher in teacher_configs(config).items():
        path, url = model_of(teacher)
        if path is not None and url is None:
            said.append(f"{key}.path {_weights(resolve(path, f'{key}.path'), f'{key}.path')}")
    return Finding("pass", ", ".join(said))


def _weights(source: str, where: str) -> str:
    """Size of the weights, in words. Raises ``UserError`` where files of them are missing."""
    folder = Path(source)
    if not folder.is_dir():
        return f"is {source} of the hub"
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    named = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()
    missing = sorted(named - {file.name for file in files})
    if missing or not files:
        what = f"lacks {missing[0]}, which its index names" if missing else "holds no *.safetensors"
        raise UserError(f"{where}: {source} {what}; copy the whole folder, or save the model with save_pretrained")
    return f"has {gib(sum(file.stat().st_size for file in files))}"


def data(trial: Trial) -> Finding:
    """Whether the task's data can be read, and how much there is."""
    size, held_out = trial.task.train_size, trial.held_out
    trial.training  # noqa: B018 (reads them)
    many = "training examples without end" if size is None else f"{size:,} training examples"
    detail = f"{many}, {len(held_out):,} held out"
    if size is not None and size < trial.config.rollout.prompts_per_step:
        fix = "give more data, or lower rollout.prompts_per_step"
        return Finding("warn", f"{detail}: fewer than the {trial.config.rollout.prompts_per_step} prompts of one step", fix)
    return Finding("pass", detail)


def folders(trial: Trial) -> Finding:
    """Whether the run's folder is free, and all that is written can be."""
    config = trial.config
    RunFolder(Path(config.run_dir)).examine(config.resume)
    named = {"rollout.completions_dir": config.rollout.completions_dir, "engine.nvme_path": config.engine.nvme_path}
    named |= {f"rewards[{n}].cache": one.cache for n, one in enumerate(config.rewards or []) if isinstance(one.cache, str)}
    for key, place in named.items():
        if place is not None and not _writable(nearest_folder(Path(place))):
            raise UserError(f"{key} {place} cannot be written to; choose another folder, or change its permissions")
    return Finding("pass", f"{config.run_dir} is free" if config.resume == "never" else f"{config.run_dir}, resume={config.resume}")


def _writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def disk_space(trial: Trial) -> Finding:
    """Room for the checkpoints that are kept, the one that is being written, and the final model."""
    config = trial.config
    one = checkpoint_bytes(config)
    model = student_size(config.student)
    if one is None or model.parameters is None:
        return Finding("warn", "unknown, as the size of the student is", "set student.parameters")
    kept = kept_checkpoints(config)
    present = _size(Path(config.run_dir) / "checkpoints") if config.resume == "auto" else 0
    needed = (kept + 1) * one + model.parameters * model.bytes_per_weight - present
    place = nearest_folder(Path(config.run_dir))
    disk = shutil.disk_usage(place)
    if disk.total == 0:
        return Finding("skip", f"{place} is on no disk")
    free = disk.free
    detail = f"{gib(max(needed, 0))} for {kept} + 1 checkpoints of {gib(one)} and the model; {gib(free)} free at {place}"
    return _room(detail, needed, free, "free some, choose another run_dir, or lower checkpoint.keep")


def checkpoint_bytes(config: Config) -> float | None:
    """Bytes of one checkpoint over all ranks: trained weights, and the optimiser's states (with the fp32 weights that ZeRO keeps apart).

    None: unknown. Left out: rows that wait in the buffer, and what Adafactor keeps, which are small.
    """
    size = student_size(config.student)
    if size.trained is None:
        return None
    half = config.student.dtype == "bfloat16"
    moments = 0.0 if config.optimizer.kind == "adafactor" else 8.0
    apart = 4.0 if half or config.engine.zero_stage else 0.0
    averages = sum(4.0 * (size.parameters or 0) for teacher in teacher_configs(config).values() if teacher.kind == "ema")
    return ((2.0 if half else 4.0) + moments + apart) * size.trained + averages


def kept_checkpoints(config: Config) -> int:
    """Checkpoints on the disk at the end of the run."""
    written = ceil(config.max_steps / config.checkpoint.every) if config.checkpoint.every else 1
    return min(written, config.checkpoint.keep + int(config.checkpoint.keep_best))


def memory(trial: Trial) -> Finding:
    """The planned memory of a rank against what its device has."""
    config = trial.config
    student = student_size(config.student)
    rows = ceil(config.rollout.prompts_per_step * config.rollout.per_prompt / trial.ranks)
    parts = rank_memory(config, student, teacher_sizes(config, student), trial.ranks, rows)
    needed = sum(size for size in parts.values() if size is not None)
    unknown = [name for name, size in parts.items() if size is None]
    room, where = _device_memory(trial.ranks)
    least = "at least " if unknown else ""
    found = _room(f"{least}{gib(needed)} a rank without activations; {gib(room)} {where}", needed, room, _LESS_MEMORY)
    if found.status != "fail" and unknown:
        said = f"{found.detail}; unknown: {', '.join(unknown)}"
        return Finding("warn", said, "set student.parameters or teacher.parameters, or give folders that are here")
    return found


def _device_memory(ranks: int) -> tuple[float, str]:
    """Bytes that one rank may have, and of what."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[1]), f"on {torch.cuda.get_device_name()}"
    local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    shared = "" if local == 1 else f" for each of {local} ranks on this machine"
    return min(_available(), _left_to_container()) / local, f"of memory available{shared}"


def _available() -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return 1024.0 * int(lines["MemAvailable"].split()[0])


def _left_to_container(control: Path = Path("/sys/fs/cgroup")) -> float:
    """What a container's limit leaves, of which ``/proc/meminfo`` says nothing."""
    try:
        most, used = ((control / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return math.inf
    return math.inf if most == "max" else float(int(most) - int(used))


def _room(detail: str, needed: float, free: float, fix: str) -> Finding:
    if needed > free:
        return Finding("fail", detail, fix)
    return Finding("warn", f"{detail}: little is left", fix) if needed > MOST * free else Finding("pass", detail)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def gib(size: float) -> str:
    """Bytes in words, with three digits."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} B"
