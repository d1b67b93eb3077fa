"""Where rows come from: JSONL, CSV, Parquet and text files, gzipped or not, or a data set of the hub (``hub:NAME[:CONFIG]:SPLIT``)."""

from __future__ import annotations

import difflib
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkd_rl.errors import UserError
from reward_models.errors import nearest_hint
from reward_models.records import open_records

HUB = "hub:"


@dataclass(frozen=True)
class Row:
    """One row of a data set, and where it stands, for errors about it."""

    fields: Mapping[str, Any]
    where: str

    def value(self, name: str) -> Any:
        """What the field holds. Raises ``UserError`` where there is no such field."""
        if name not in self.fields:
            near = difflib.get_close_matches(name, list(map(str, self.fields)), n=1, cutoff=0.0)
            raise UserError(f"{self.where}: has no field '{name}'" + (f"; the nearest is '{near[0]}'" if near else ""))
        return self.fields[name]

    def text(self, name: str) -> str:
        """The field's text; a list of sentences is joined by spaces. Raises ``UserError`` for anything else, and for no text at all."""
        value = self.value(name)
        if isinstance(value, (list, tuple)) and value and all(isinstance(part, str) for part in value):
            value = " ".join(part.strip() for part in value)
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{self.where}: field '{name}' is empty or not text")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise UserError(f"{self.where}: field '{name}' holds half of a surrogate pair, which is no character; remove it")
        return value

    def texts(self, name: str) -> list[str]:
        """The field's text, or its several texts. Raises ``UserError`` for anything else, and where one of them is empty."""
        value = self.value(name)
        several = value if isinstance(value, (list, tuple)) else [value]
        if not several or not all(isinstance(text, str) and text.strip() for text in several):
            raise UserError(f"{self.where}: field '{name}' is neither a text nor a list of texts, or one of them is empty")
        return list(several)


@dataclass(frozen=True)
class HubRows(Sequence[Row]):
    """Rows of a hub data set, read as they are asked for."""

    table: Any
    name: str

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return Row(self.table[index], f"{self.name}, row {index + 1}")


def open_rows(source: Any, option: str, data_dir: str | None) -> Sequence[Row]:
    """The rows of ``source``: a path below ``data_dir`` (or absolute), ``hub:NAME[:CONFIG]:SPLIT``, or a list of such.

    ``option`` is the task's option that names it, for errors' text. Raises ``UserError`` for what is missing or malformed.
    """
    if isinstance(source, (list, tuple)) and source:
        return [row for part in source for row in open_rows(part, option, data_dir)]
    if not isinstance(source, str) or not source:
        raise UserError(f"task.options.{option} is {source!r}; give a file's path, {HUB}NAME[:CONFIG]:SPLIT, or a list of them")
    return _hub_rows(source, option) if source.startswith(HUB) else _file_rows(located(source, option, data_dir))


def located(source: str, option: str, data_dir: str | None) -> Path:
    """The file that ``source`` names. Raises ``UserError`` where it does not exist."""
    path = Path(source).expanduser()
    if not path.is_absolute():
        if data_dir is None:
            raise UserError(f"task.options.{option}={source} lies below data_dir, which is not set; set data_dir (or GKD_RL_DATA)")
        path = Path(data_dir).expanduser() / path
    if not path.is_file():
        near = [str(other) for other in path.parent.iterdir()] if path.parent.is_dir() else []
        where = f"set data_dir (or GKD_RL_DATA) to the folder that holds it, or task.options.{option} to its path"
        raise UserError(f"data file {path} does not exist; {where}{nearest_hint(str(path), near)}")
    return path


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, gzipped or not. Raises ``UserError`` for one that is not UTF-8, and for one without lines."""
    try:
        text = _bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    lines = text.removesuffix("\n").split("\n")
    if lines == [""]:
        raise UserError(f"{path} holds no lines")
    return [line.removesuffix("\r") for line in lines]


def _bytes(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except PermissionError:
        raise UserError(f"data file {path} may not be read; change its permissions") from None
    except (OSError, EOFError) as error:
        raise UserError(f"data file {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _file_rows(path: Path) -> list[Row]:
    kind = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    readers: dict[str, Callable[[Path], list[Row]]] = {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json}
    if kind in readers:
        rows = readers[kind](path)
    elif path.suffix.lower() in (".csv", ".parquet"):
        rows = [Row(record.fields, f"{path}, {record.where}") for record in open_records(path)]
    else:
        raise UserError(f"{path}: rows are read from .jsonl, .ndjson and .json (also .gz), .csv and .parquet")
    if not rows:
        raise UserError(f"data file {path} holds no rows")
    return rows


def _jsonl(path: Path) -> list[Row]:
    lines = enumerate(_bytes(path).split(b"\n"), 1)
    return [Row(_parsed(line, where), where) for number, line in lines if line.strip() and (where := f"{path}, line {number}")]


def _json(path: Path) -> list[Row]:
    try:
        rows = json.loads(_bytes(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: a .json file is a list of objects; one object per line has the extension .jsonl")
    return [Row(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)]


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    """The JSON object in ``line``. Raises ``UserError``, which begins with ``where``, for anything else."""
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
    return row


def _hub_rows(source: str, option: str) -> Sequence[Row]:
    name, *more = source.removeprefix(HUB).split(":")
    if not name or not 1 <= len(more) <= 2 or not all(more):
        raise UserError(f"task.options.{option} is '{source}'; write {HUB}NAME:SPLIT, or {HUB}NAME:CONFIG:SPLIT")
    *config, split = more
    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(name, *config, split=split)
    except (ValueError, OSError, HfHubHTTPError, DatasetsError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"task.options.{option}: {source} could not be loaded from the hub: {reason}") from None
    return HubRows(table, source)
