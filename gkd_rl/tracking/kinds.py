"""How each of Accelerate's trackers is started, and how it goes on with the run that an earlier process began."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gkd_rl.config.run import Config

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

REWINDS = ("tensorboard",)
"""Trackers that forget the steps after a checkpoint when they are started anew. The others keep what they were given."""

CONTINUES = ("tensorboard", "wandb", "mlflow", "trackio")
"""Trackers whose run an earlier process began can be gone on with; of the others each process begins one, which gets all steps."""


def started(kind: str, config: Config, run: str | None, forget: int | None) -> GeneralTracker:
    """The tracker of a ``kind``, started on the run that it knows as ``run``, or on a new one.

    ``forget``: the first step, of those that an earlier process gave it, that is to be done again (``REWINDS`` alone).
    """
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # without it Accelerate's log messages raise
    arguments = {**_arguments(kind, config, run, forget), **config.tracking.options.get(kind, {})}
    tracker = LOGGER_TYPE_TO_CLASS[kind](kind if kind == "tensorboard" else config.tracking.project, **arguments)
    tracker.start()
    return tracker


def _arguments(kind: str, config: Config, run: str | None, forget: int | None) -> dict[str, Any]:
    """Keyword arguments of the class, over which ``tracking.options`` are laid."""
    folder, name = config.run_dir, run_name(config)
    if kind == "tensorboard":
        return {"logging_dir": folder, "purge_step": forget}
    if kind == "wandb":
        return {"name": name, "dir": folder, "id": run or secrets.token_hex(8), "resume": "allow"}
    if kind == "mlflow":
        return {"run_name": name} if run is None else {"run_id": run}
    if kind == "trackio":  # which knows runs by their names alone
        return {"name": run or f"{name}-{secrets.token_hex(3)}", "resume": "allow"}
    return {"logging_dir": folder} if kind == "aim" else {}


def run_name(config: Config) -> str:
    """What the run is called."""
    return config.tracking.name or Path(config.run_dir).absolute().name


def known_steps(kind: str, tracker: Any) -> int | None:
    """The last step that the tracker itself has, where it says so: W&B loses what it holds in memory when its process is killed, and
    offline each process begins a folder that knows nothing of the others."""
    return tracker.run.starting_step - 1 if kind == "wandb" else None


def identity(kind: str, tracker: Any) -> str | None:
    """By what the tracker's run is found again; None where nothing but the run's folder is needed, or nothing would help."""
    if kind == "wandb":
        return tracker.run.id
    if kind == "mlflow":
        return tracker.active_run.info.run_id
    return tracker.run.name if kind == "trackio" else None
