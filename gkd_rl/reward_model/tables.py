"""Rows of a file of any format, and of a table in a packed archive."""

from __future__ import annotations

import tarfile
from pathlib import Path

from gkd_rl.errors import UserError
from gkd_rl.tasks.sources import Row
from reward_models.errors import nearest_hint
from reward_models.records import open_records

PACKED = ".tar.gz/"


def read_table(path: Path) -> list[Row]:
    """The rows of a JSONL, CSV, TSV or Parquet file, or of a TSV file in an archive (``ARCHIVE.tar.gz/MEMBER.tsv``).

    TSV has no quoting: a tab ends a field, a line break a row. Raises ``UserError`` (or ``InputError``) for what cannot be read.
    """
    if PACKED in str(path):
        return _tsv(_member(path), str(path))
    if path.suffix.lower() == ".tsv":
        try:
            return _tsv(path.read_bytes(), str(path))
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); name a file that is there") from None
    return [Row(record.fields, f"{path}, {record.where}") for record in open_records(path)]


def _member(path: Path) -> bytes:
    archive, _, name = str(path).partition(PACKED)
    archive += PACKED.rstrip("/")
    if not Path(archive).is_file():
        raise UserError(f"there is no archive {archive}; set data_dir (or GKD_RL_DATA) to the folder that holds it")
    try:
        with tarfile.open(archive) as packed:
            if name not in packed.getnames():
                raise UserError(f"{archive} holds no '{name}'{nearest_hint(name, packed.getnames())}")
            member = packed.extractfile(name)
            if member is None or not name.endswith(".tsv"):
                raise UserError(f"{archive}: '{name}' is no .tsv file, and only these are read from archives; unpack it first")
            return member.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{archive} cannot be read as an archive ({error}); fetch it again") from None


def _tsv(content: bytes, where: str) -> list[Row]:
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    names, rows = lines[0].rstrip("\r").split("\t"), []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        fields = line.rstrip("\r").split("\t")
        if len(fields) != len(names):
            raise UserError(f"{where}, line {number}: {len(fields)} fields, but the header has {len(names)}")
        rows.append(Row(dict(zip(names, fields, strict=True)), f"{where}, line {number}"))
    if not rows:
        raise UserError(f"{where} has no rows")
    return rows
