"""Rows that ``scripts/evidence_text.py`` trains and evaluates on, read from the data folder and written below the folder of its runs.

Translation: the pairs of opennmt_ende10k (news, debates, web pages) and the post-edited ones of MLQE-PE (Wikipedia), both detokenised;
500 of the former, drawn by a hash of their source, are held out, and NTREX's sentences are a second test of another domain.
Summarization: SciTLDR's abstracts, train and test.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gkd_rl.tasks.translation import detokenised

Row = dict[str, Any]

HELD_OUT = 500
LONGEST = 20
"""Words of either side of a pair at most."""


def translation_rows(data: Path) -> dict[str, list[Row]]:
    """``train``, ``test`` and ``ntrex``: pairs ``{"en", "de"}``. No training pair shares its source or its target with a held-out one."""
    folder = data / "opennmt_ende10k"
    ours = _pairs(*(gzip.decompress((folder / f"{side}-train.txt.gz").read_bytes()).decode().split("\n") for side in ("src", "tgt")))
    ours.sort(key=lambda pair: hashlib.sha256(pair["en"].encode()).digest())
    held_out = ours[:HELD_OUT]
    edited = [pair for part in ("train", "dev", "test") for pair in _post_edited(data / "mlqe_pe_ende" / f"pe_en-de-{part}.tar.gz")]
    ntrex = [(data / "ntrex_ende" / f"newstest2019-{side}.txt").read_text("utf-8").split("\n") for side in ("src.eng", "ref.deu")]
    tests = {"test": held_out, "ntrex": _pairs(*ntrex)}
    known = {text for pairs in tests.values() for pair in pairs for text in pair.values()}
    seen: set[str] = set()
    train = [p for p in (*ours[HELD_OUT:], *edited) if not known & set(p.values()) and not (p["en"] in seen or seen.add(p["en"]))]
    return {"train": train, **tests}


def summarization_rows(data: Path) -> dict[str, list[Row]]:
    """``train`` and ``test``: ``{"source": [sentence, ...], "target": [reference, ...]}``."""
    return {
        part: [
            {"source": row["source"], "target": row["target"]}
            for line in gzip.decompress((data / "scitldr" / f"{part}.jsonl.gz").read_bytes()).splitlines()
            if (row := json.loads(line))["target"]
        ]
        for part in ("train", "test")
    }


def leading_sentences(rows: Sequence[Row]) -> list[Row]:
    """From summarization rows many easier ones: what is left of a document from each of its sentences on, with that sentence as summary."""
    return [
        {"source": row["source"][start:], "target": [sentence]}
        for row in rows
        for start, sentence in enumerate(row["source"])
        if len(sentence.split()) > 3
    ]


def with_copied_targets(rows: Sequence[Row]) -> list[Row]:
    """Translation rows, and of each another whose source is its target (Currey et al. 2017, W17-4715): copying it teaches the decoder where
    to look, and names and numbers."""
    return [*rows, *({"en": row["de"], "de": row["de"]} for row in rows)]


def write(rows: dict[str, list[Row]], folder: Path) -> None:
    """One JSONL file for each part."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, of_part in rows.items():
        (folder / f"{part}.jsonl").write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in of_part), encoding="utf-8")


def texts(rows: Iterable[Row]) -> list[str]:
    """Every text in ``rows``."""
    return [text for row in rows for value in row.values() for text in ([value] if isinstance(value, str) else value)]


def _pairs(source: Sequence[str], target: Sequence[str]) -> list[Row]:
    """Detokenised pairs of which neither side is empty or has over ``LONGEST`` words."""
    assert len(source) == len(target), "line by line, the two files are translations of each other"
    both = ({"en": detokenised(one.strip()), "de": detokenised(other.strip())} for one, other in zip(source, target, strict=True))
    return [pair for pair in both if all(0 < len(text.split()) <= LONGEST for text in pair.values())]


def _post_edited(archive: Path) -> list[Row]:
    """Sources and human post-edits of one part of MLQE-PE."""
    with tarfile.open(archive) as files:
        lines = {Path(member.name).suffix: member for member in files.getmembers() if Path(member.name).suffix in (".src", ".pe")}
        sides = [files.extractfile(lines[side]) for side in (".src", ".pe")]
        return _pairs(*(side.read().decode("utf-8").split("\n") for side in sides if side is not None))
