"""From ``ablation.grid`` to the runs that it asks for: lists, and ranges that are spaced evenly on a linear or logarithmic scale."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkd_rl.config.run import Config
from gkd_rl.errors import UserError

_RANGE = "{log: [0.01, 1], points: 5} or {linear: [0, 1], points: 5}"


@dataclass(frozen=True)
class Point:
    """One run of the grid."""

    settings: dict[str, Any]
    seed: int
    folder: Path
    first_batch: str | None = None
    """``rollout.first_batch``, where runs with one seed share it"""

    @property
    def label(self) -> str:
        return "  ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in self.settings.items())

    @property
    def overrides(self) -> list[str]:
        values = [f"{key}={json.dumps(value)}" for key, value in self.settings.items()]
        shared = [] if self.first_batch is None else [f"rollout.first_batch={self.first_batch}"]
        return [*values, *shared, f"seed={self.seed}", f"run_dir={self.folder}", "resume=auto"]


def points_of(config: Config) -> list[Point]:
    """Every combination of the grid's values with every seed. Raises ``UserError`` for an empty grid, and a run named twice."""
    grid, seeds = config.ablation.grid, config.ablation.seeds
    if not grid or not seeds:
        raise UserError("ablation.grid and ablation.seeds must not be empty; for example ablation.grid={objective.alpha: [0, 0.5, 1]}")
    points = list(_points(config, {key: values_of(key, value) for key, value in grid.items()}))
    _require_own_folders(points)
    return points


def values_of(key: str, value: Any) -> list[Any]:
    """The values of one key: a list, a single value, or the ``points`` of a range, both ends included.

    ``{linear: [a, b], points: n}`` is a + i·(b − a)/(n − 1), ``{log: [a, b], points: n}`` is a·(b/a)^(i/(n − 1)), rounded to 4 digits.
    """
    if not isinstance(value, dict):
        return list(value) if isinstance(value, list) else [value]
    kind = "log" if "log" in value else "linear"
    ends, count = value.get(kind), value.get("points")
    if set(value) != {kind, "points"} or not _is_pair(ends) or not isinstance(count, int) or count < 2:
        raise UserError(f"ablation.grid: the range of {key} is {json.dumps(value)}; write it as {_RANGE}, with 2 points or more")
    assert ends is not None
    low, high = ends
    if kind == "log" and (low <= 0 or high <= 0):
        raise UserError(f"ablation.grid: the logarithmic range of {key} goes from {low:g} to {high:g}; both must be above 0")
    shares = [i / (count - 1) for i in range(count)]
    values = [low + share * (high - low) if kind == "linear" else low * (high / low) ** share for share in shares]
    return [_rounded(one) for one in values]


def _is_pair(ends: Any) -> bool:
    numbers = isinstance(ends, list) and all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in ends)
    return numbers and len(ends) == 2 and all(map(math.isfinite, ends))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _points(config: Config, lists: Mapping[str, Sequence[Any]]) -> Iterator[Point]:
    for values in itertools.product(*lists.values()):
        settings = dict(zip(lists, values, strict=True))
        name = _folder_name(settings)
        for seed in config.ablation.seeds:
            yield Point(settings, seed, Path(config.run_dir) / f"{name}_seed-{seed}")


def _require_own_folders(points: Sequence[Point]) -> None:
    seen: set[Path] = set()
    for point in points:
        if point.folder in seen:
            raise UserError(f"ablation.grid and ablation.seeds name a run twice, which both would write to {point.folder}; remove one")
        seen.add(point.folder)


def _folder_name(settings: Mapping[str, Any]) -> str:
    """Names and values, with what a file name should not have replaced: ``alpha-0.25_path-runs.sft.model``."""
    words = (f"{key.rsplit('.', 1)[-1]}-{value}" for key, value in settings.items())
    return "_".join(re.sub(r"[^\w.+=-]+", ".", word) for word in words)
