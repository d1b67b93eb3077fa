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
    try:
        lines = path.read_bytes().split(b"\n")
    except PermissionError:
        raise UserError(f"data file {path} may not be read; change its permissions") from None
    rows = [_row(line, f"{path}, line {number}", required) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise UserError(f"data file {path} holds no rows")
    return rows


def _row(line: bytes, where: str, required: tuple[str, ...]) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError):
        raise UserError(f"{where}: a number is too long or the row too deep to be read") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: a row is a JSON object, not {type(row).__name__}")
    for field in required:
        if field not in row:
            near = difflib.get_close_matches(field, list(row), n=1, cutoff=0.0)
            raise UserError(f"{where}: has no field '{field}'" + (f"; the nearest is '{near[0]}'" if near else ""))
        if not isinstance(row[field], str) or not row[field].strip():
            raise UserError(f"{where}: field '{field}' is empty or not text")
        if any("\ud800" <= character <= "\udfff" for character in row[field]):
            raise UserError(f"{where}: field '{field}' holds half of a surrogate pair, which is no character; remove it")
    return row
