"""What came of a grid: a row for each run, and its settings against each other."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkd_rl.ablation.comparison import differences, paired_bootstrap, pareto, read_judged
from gkd_rl.ablation.grid import Point
from gkd_rl.errors import UserError
from gkd_rl.evaluation.statistics import mean_interval

FIGURES = ("accuracy", "reward", "divergence", "reverse_kl", "length")
"""Columns of ``results.csv``, beside the task's metrics."""

Rows = list[dict[str, Any]]
Interval = tuple[float, float, float]
"""A mean and the ends of its 95% interval; NaN where there is none."""


@dataclass(frozen=True)
class Setting:
    """One combination of the grid's values."""

    label: str
    values: dict[str, Any]
    rows: Rows
    """of its runs, one for each seed that did not fail"""
    best: bool
    """the mean of ``evaluation.score`` is the highest"""
    front: dict[str, bool]
    """``accuracy``, ``reward`` → whether no other setting is as near to the teacher and as good in this"""
    difference: Interval
    """accuracy less that of the best setting, of the same seeds and examples"""

    def interval(self, name: str) -> Interval:
        """The mean of a figure over the seeds, by Student's t."""
        values = [row[name] for row in self.rows if row.get(name) is not None]
        return mean_interval(values) if values else (math.nan, math.nan, math.nan)


def row_of(point: Point) -> dict[str, Any] | None:
    """The point's row of ``results.csv``; None where its run has not come to its end."""
    path = point.folder / "summary.json"
    if not path.is_file():
        return None
    summary = json.loads(path.read_text())
    figures = {name: summary["after"][name] for name in FIGURES} | summary["after"].get("metrics", {})
    return {
        **point.settings,
        "seed": point.seed,
        "accuracy_before": summary["accuracy_before"],
        **figures,
        "seconds": summary["seconds"],
        "run_dir": str(point.folder),
    }


def write_tables(folder: Path, rows: Rows) -> None:
    """``results.csv`` and ``results.parquet``; values of the grid that are no numbers or texts are JSON in the second."""
    import pyarrow as pa
    from pyarrow import parquet

    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    plain = [
        {key: value if value is None or isinstance(value, (int, float, str)) else json.dumps(value) for key, value in row.items()}
        for row in rows
    ]
    mixed = {key for key in plain[0] if len({isinstance(row[key], str) for row in plain if row[key] is not None}) > 1}
    plain = [{key: str(value) if key in mixed and value is not None else value for key, value in row.items()} for row in plain]
    parquet.write_table(pa.Table.from_pylist(plain), folder / "results.parquet")


def compare(points: Sequence[Point], rows: Rows, score: str) -> list[Setting]:
    """The settings in the grid's order, those without a row left out. Raises ``UserError`` if no run has the figure ``score``."""
    by_label = _by_label(points, rows)
    values = {point.label: point.settings for point in points}
    best = best_label(by_label, score)
    judged = {label: {row["seed"]: read_judged(Path(row["run_dir"])) for row in found} for label, found in by_label.items()}
    fronts = {name: _front(by_label, name) for name in ("accuracy", "reward")}
    return [
        Setting(
            label,
            values[label],
            found,
            best=label == best,
            front={name: label in front for name, front in fronts.items()},
            difference=paired_bootstrap(differences(judged[label], judged[best])),
        )
        for label, found in by_label.items()
    ]


def best_label(by_label: Mapping[str, Rows], score: str) -> str:
    """The setting with the highest mean of ``score`` over its seeds; of equals the first."""
    known = {label: mean for label, rows in by_label.items() if not math.isnan(mean := _mean(rows, score))}
    if not known:
        raise UserError(f"no run has a figure '{score}', which evaluation.score names; name accuracy, reward or a metric")
    return max(known, key=lambda label: known[label])


def _by_label(points: Sequence[Point], rows: Rows) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    for point in points:
        found.setdefault(point.label, []).extend(row for row in rows if row["run_dir"] == str(point.folder))
    return {label: those for label, those in found.items() if those}


def _front(by_label: Mapping[str, Rows], name: str) -> set[str]:
    centres = {label: (_mean(rows, "reverse_kl"), _mean(rows, name)) for label, rows in by_label.items()}
    placed = [label for label, centre in centres.items() if not math.isnan(sum(centre))]
    return {label for label, is_best in zip(placed, pareto([centres[label] for label in placed]), strict=True) if is_best}


def _mean(rows: Rows, name: str) -> float:
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values) if values else math.nan
