"""Read rows of JSONL, CSV and Parquet files one by one, and say exactly where a file is broken."""

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from reward_models.errors import InputError, nearest_hint

EXTENSIONS = (".jsonl", ".ndjson", ".csv", ".parquet")
_LONGEST_CSV_FIELD = 2**30


@dataclass(frozen=True)
class Record:
    """One row: its fields, where it stands ("line 3"), and how much of the file is read with it (in the file's `total`)."""

    fields: Mapping[str, Any]
    where: str
    done: int


@dataclass(frozen=True)
class RecordFile:
    """A file of rows. `total` is its size in the unit of `Record.done`: bytes, or rows of a Parquet file."""

    path: Path
    total: int

    def __iter__(self) -> Iterator[Record]:
        """Yield the rows.

        Raises:
            InputError: the file is malformed, is not UTF-8, or has no rows.
        """
        readers = {".csv": _csv_records, ".parquet": _parquet_records}
        record = None
        for record in readers.get(self.path.suffix.lower(), _jsonl_records)(self.path):
            yield record
        if record is None:
            raise InputError(f"{self.path} has no rows")


def open_records(path: str | Path) -> RecordFile:
    """Return the file at `path`, whose format is known by its extension.

    Raises:
        InputError: the file is missing (the nearest existing name is given), is a folder, has another extension, is empty or
            cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a {', '.join(EXTENSIONS[:-1])} or {EXTENSIONS[-1]} file")
    if not path.is_file():
        names = [str(other) for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"there is no file {path}{nearest_hint(str(path), names)}")
    if path.suffix.lower() not in EXTENSIONS:
        raise InputError(f"{path}: the format '{path.suffix}' is unknown; use {', '.join(EXTENSIONS[:-1])} or {EXTENSIONS[-1]}")
    size = path.stat().st_size
    if size == 0:
        raise InputError(f"{path} is empty")
    return RecordFile(path, _parquet_rows(path) if path.suffix.lower() == ".parquet" else size)


def field(record: Record, name: str, path: Path) -> Any:
    """Return a field of a row.

    Raises:
        InputError: the row has no such field; the nearest one is named.
    """
    if name not in record.fields:
        known = ", ".join(map(str, list(record.fields)[:20])) or "none"
        hint = nearest_hint(name, map(str, record.fields))
        raise InputError(f"{path}, {record.where}: there is no field '{name}'{hint} (fields: {known})")
    return record.fields[name]


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        yield file


def _lines(path: Path, file: IO[bytes]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            column = error.start + 1
            raise InputError(f"{path}, line {number}: byte {column} is not UTF-8; save the file as UTF-8") from error


def _jsonl_records(path: Path) -> Iterator[Record]:
    with _opened(path) as file:
        for number, line in enumerate(_lines(path, file), 1):
            if line.strip():
                yield Record(_json_object(path, number, line), f"line {number}", file.tell())


def _json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "too large or too deep"
        raise InputError(f"{path}, line {number} is not JSON: {reason}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path}, line {number}: each line must be a JSON object, not {type(fields).__name__}")
    return fields


def _csv_records(path: Path) -> Iterator[Record]:
    csv.field_size_limit(_LONGEST_CSV_FIELD)
    with _opened(path) as file:
        reader = csv.reader(_lines(path, file), strict=True)
        try:
            names = next(reader, [])
            if len(set(names)) < len(names):
                raise InputError(f"{path}, line 1: the header names a field twice")
            for row in reader:
                if len(row) != len(names) and row:
                    raise InputError(f"{path}, line {reader.line_num}: {len(row)} fields, but the header has {len(names)}")
                if row:
                    yield Record(dict(zip(names, row, strict=True)), f"line {reader.line_num}", file.tell())
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num} is not CSV: {error}") from error


def _parquet_rows(path: Path) -> int:
    with _parquet_file(path) as file:
        return file.metadata.num_rows


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a Parquet file that can be read: {str(error).splitlines()[0]}") from error
    with file:
        yield file


def _parquet_records(path: Path) -> Iterator[Record]:
    number = 0
    with _parquet_file(path) as file:
        for batch in file.iter_batches(batch_size=256):
            for fields in batch.to_pylist():
                number += 1
                yield Record(fields, f"row {number}", number)
