"""Reading data files row by row, with errors that name the file, the line and the fix."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from gkd_rl.errors import UserError


def read_jsonl(path: Path, required: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of a JSONL file, each with non-empty text in the ``required`` fields.

    Raises ``UserError`` for a missing or empty file, a line that is not a JSON object, and a missing or empty field.
    """
    if not path.is_file():
        raise UserError(f"data file {path} does not exist; set data_dir (or GKD_RL_DATA) to the folder that holds it")
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                rows.append(_row(line, f"{path}, line {number}", required))
    if not rows:
        raise UserError(f"data file {path} holds no rows")
    return rows


def _row(line: str, where: str, required: tuple[str, ...]) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: a row is a JSON object, not {type(row).__name__}")
    for field in required:
        if field not in row:
            near = difflib.get_close_matches(field, list(row), n=1, cutoff=0.0)
            raise UserError(f"{where}: has no field '{field}'" + (f"; the nearest is '{near[0]}'" if near else ""))
        if not isinstance(row[field], str) or not row[field].strip():
            raise UserError(f"{where}: field '{field}' is empty or not text")
    return row
