"""The logs of a run that may still be going on: whole lines from a position on, and their columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gkd_rl.errors import UserError

POINTS = 2000
"""Most points of a curve: more are not told apart on a screen."""


def new_rows(path: Path, position: int) -> Iterator[tuple[dict[str, Any], int]]:
    """The rows of a JSONL file from byte ``position`` on, each with the position after it. A last line without its end is left for later.

    Raises ``UserError`` for a line that is no JSON object.
    """
    if not path.is_file():
        return
    with path.open("rb") as log:
        log.seek(position)
        for line in log:
            if not line.endswith(b"\n"):
                return
            position += len(line)
            yield _row(path, line, position), position


def _row(path: Path, line: bytes, end: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError):
        row = None
    if not isinstance(row, dict):
        number = path.read_bytes()[:end].count(b"\n")
        raise UserError(f"{path}, line {number}: not a JSON object; cut the file off before it, or restore it")
    return row


def columns(rows: Sequence[Mapping[str, Any]], most: int = POINTS) -> dict[str, Any]:
    """``{width, step, values}``: of the rows' numbers one column each, at most ``most`` points long.

    A point is the mean over ``width`` consecutive rows (the last one over what is left) and stands at the last one's step; None where none
    of these has a number.
    """
    width = max(1, -(-len(rows) // most))
    parts = [rows[start : start + width] for start in range(0, len(rows), width)]
    names = dict.fromkeys(name for row in rows for name in row if name != "step")
    return {
        "width": width,
        "step": [part[-1]["step"] for part in parts],
        "values": {name: [_mean([row.get(name) for row in part]) for part in parts] for name in names},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return float(f"{sum(numbers) / len(numbers):.6g}") if numbers else None
