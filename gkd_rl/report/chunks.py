"""Rollouts as a page can open them by the hundred thousand: chunks, each in compressed parts that are read when they are looked at."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

CHUNK = 1000
"""Rollouts of one chunk."""
_HEAD = 90
"""Characters of a completion that the list shows."""

Row = Mapping[str, Any]
Reading = Callable[[Row], dict[str, Any] | None]
"""What a verifier reads in a row; None where there is none."""


def chunks(rows: Iterable[Row], reading: Reading, size: int = CHUNK) -> Iterator[tuple[dict[str, Any], list[Row]]]:
    """``(chunk, its rows)``: ``{rows, index, texts, tokens}``, of which the last three are JSON in gzip in base64.

    ``index`` holds the columns by which rows are listed, filtered and sorted, ``texts`` what was said, ``tokens`` each token's figures.
    """
    rows = iter(rows)
    while part := list(islice(rows, size)):
        readings = [reading(row) for row in part]
        yield (
            {
                "rows": len(part),
                "index": packed(_index(part, readings)),
                "texts": packed(_texts(part, readings)),
                "tokens": packed(_tokens(part)),
            },
            part,
        )


def packed(value: Any) -> str:
    """JSON in gzip in base64: the same for the same value."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(text, 6, mtime=0)).decode()


def unpacked(text: str) -> Any:
    """What ``packed`` was given."""
    return json.loads(gzip.decompress(base64.b64decode(text)))


def _index(rows: Sequence[Row], readings: Sequence[dict[str, Any] | None]) -> dict[str, list[Any]]:
    return {
        "step": [row["step"] for row in rows],
        "example": [row["example"] for row in rows],
        "on_policy": [int(row["on_policy"]) for row in rows],
        "reward": [row["reward"] for row in rows],
        "right": [_right(row) for row in rows],
        "advantage": [row["advantage"] for row in rows],
        "length": [len(row["tokens"]) for row in rows],
        "divergence": [_mean(row["divergence"]) for row in rows],
        "reading": [reading and reading["status"] for reading in readings],
        "head": [" ".join(row["completion"].split())[:_HEAD] for row in rows],
    }


def _texts(rows: Sequence[Row], readings: Sequence[dict[str, Any] | None]) -> dict[str, list[Any]]:
    """Prompts once each: the rows of a group share theirs."""
    keys = [json.dumps(row["prompt"], ensure_ascii=False) for row in rows]
    places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    return {
        "prompts": [json.loads(key) for key in places],
        "prompt": [places[key] for key in keys],
        **{name: [row[name] for row in rows] for name in ("completion", "columns", "rewards", "version")},
        "reading": list(readings),
    }


def _tokens(rows: Sequence[Row]) -> dict[str, list[Any]]:
    names = ("tokens", "logprobs", "divergence", "student_top", "teacher_top")
    return {name: [row.get(name) for row in rows] for name in names if any(name in row for row in rows)}


def _right(row: Row) -> int | None:
    """Whether the first reward, which decides accuracy, gave 1; None where it did not judge."""
    first = next(iter(row["rewards"].values()), None)
    return None if first is None else int(first == 1)


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return round(sum(numbers) / len(numbers), 4) if numbers else None
