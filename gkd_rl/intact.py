"""Whether the files of a folder are what was written: their SHA-256, taken by all ranks and kept in the file that closes the folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gkd_rl.processes import Processes

CLOSING = "state.json"
"""Written last; a folder without it was not finished."""

BLOCK = 2**22


def digests(folder: Path, processes: Processes) -> dict[str, str]:
    """File (relative to ``folder``) → SHA-256 of all files there but the closing one; every rank calls it and reads its share."""
    names = processes.gather(processes.together(lambda: _names(folder)))[0]
    parts = processes.gather(processes.together(lambda: {name: _digest(folder / name) for name in processes.share(names)}))
    return {name: digest for part in parts for name, digest in part.items()}


def closed(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """What closes ``folder``, or None and why there is nothing: it was not finished, or files are missing or not what was written."""
    try:
        state = json.loads((folder / CLOSING).read_text())
    except FileNotFoundError:
        return None, "it was not finished"
    except (OSError, ValueError):
        return None, f"{CLOSING} cannot be read"
    problem = _damage(folder, state.get("files", {}))
    return (None, problem) if problem else (state, "")


def _damage(folder: Path, files: Mapping[str, str]) -> str:
    for name, digest in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _digest(folder / name) != digest:
            return f"{name} is not what was written"
    return ""


def _names(folder: Path) -> Sequence[str]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != CLOSING)
    return sorted(str(file.relative_to(folder)) for file in files)


def _digest(file: Path) -> str:
    found = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(BLOCK):
            found.update(block)
    return found.hexdigest()
