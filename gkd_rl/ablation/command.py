"""``gkd-rl ablate``: a grid of settings, each run with each seed in a process of its own, and what came of them.

Runs share the initial student, the held-out examples and, per seed, the prompts. A run that is there already is not repeated, one that
was cut off goes on from its newest checkpoint, and one that fails is reported at the end and does not stop the others.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gkd_rl.ablation.comparison import differences, paired_bootstrap, pareto, read_judged
from gkd_rl.ablation.frontier import draw_frontier
from gkd_rl.ablation.grid import Point, points_of
from gkd_rl.ablation.processes import last_words, run_all
from gkd_rl.ablation.sharing import sharing
from gkd_rl.config.load import config_to_yaml, load_config, with_overrides
from gkd_rl.config.load import differences as differing_keys
from gkd_rl.config.run import AblationConfig, Config
from gkd_rl.config.validate import validate
from gkd_rl.console import Terminal
from gkd_rl.errors import UserError
from gkd_rl.evaluation.statistics import mean_interval
from gkd_rl.run_folder import RunFolder

FIGURES = ("accuracy", "reward", "divergence", "reverse_kl", "length")
"""Columns of ``results.csv``, beside the task's metrics."""

SHOWN = {"accuracy": "accuracy", "reward": "reward", "reverse_kl": "KL to teacher"}
"""Those that a terminal of 80 columns has room for, and what they are called there."""

Rows = list[dict[str, Any]]


def ablate(config: Config, config_path: str, overrides: Sequence[str], share_rollouts: bool = False) -> tuple[Rows, int]:
    """Run the grid of ``config.ablation``; returns the rows of ``results.csv`` and how many runs failed.

    ``share_rollouts``: runs with the same seed begin with the same sampled answers (``rollout.first_batch``).
    Writes into ``run_dir``: ``results.csv`` and ``.parquet``, ``frontier.png``, and ``best.yaml``, the configuration of the setting whose
    mean ``evaluation.score`` is highest. Raises ``UserError`` where every run failed.
    """
    points = points_of(config)
    for point in points:  # every point is checked before the first one runs
        validate(with_overrides(config, point.overrides))
    if share_rollouts:
        points = sharing(config, points)
    terminal = Terminal()
    sweep = RunFolder(Path(config.run_dir))
    sweep.open("auto")
    failed = _run(terminal, config, points, config_path, overrides)
    rows = [row for point in points if point not in failed and (row := _row(point)) is not None]
    if not rows:
        raise UserError(f"every run failed; the first one ended with '{last_words(points[0])}' (see {points[0].folder / 'output.log'})")
    _write_tables(sweep.path, rows)
    by_label = _by_label(points, rows)
    best = best_label(by_label, config.evaluation.score)
    _show(terminal, by_label, best, failed)
    picture = draw_frontier(sweep.path / "frontier.png", rows, list(config.ablation.grid))
    terminal.say(f"results    {sweep.path / 'results.csv'} and .parquet\npicture    {picture}")
    settings = next(point.settings for point in points if point.label == best)
    sweep.write("best.yaml", config_to_yaml(best_config(config, settings)))
    terminal.say(f"best       {best} by {config.evaluation.score}: gkd-rl train {sweep.path / 'best.yaml'}")
    return rows, len(failed)


def _run(terminal: Terminal, config: Config, points: Sequence[Point], config_path: str, overrides: Sequence[str]) -> list[Point]:
    """Run what is not there yet; returns the points that failed, in the grid's order."""
    missing = [point for point in points if not _finished(config, point)]
    at_once = min(config.ablation.parallel, len(missing))
    threads = max(1, (os.cpu_count() or 1) // at_once) if at_once > 1 and not config.engine.threads else 0
    failed: list[Point] = []
    with terminal.bar("runs", len(points)) as bar:
        bar.advance(len(points) - len(missing))

        def ended(point: Point, status: int, seconds: float) -> None:
            if status:
                failed.append(point)
            said = f"failed: {last_words(point)}" if status else _figures_of(point)
            terminal.say(f"{point.label}  seed={point.seed}  {seconds:.0f} s  {said}")
            bar.advance(1)

        run_all(missing, config_path, overrides, max(1, at_once), threads, ended)
    return [point for point in points if point in failed]


def _figures_of(point: Point) -> str:
    row = _row(point) or {}
    return "  ".join(f"{title} {row[name]:.3f}" for name, title in SHOWN.items() if row.get(name) is not None)


def _finished(config: Config, point: Point) -> bool:
    """Whether the point's run is there already, made with the very settings it would be made with now."""
    if not (point.folder / "summary.json").is_file():
        return False
    before = load_config(point.folder / "config.yaml")
    differing = differing_keys(before, with_overrides(config, point.overrides))
    return all(key == "run_dir" or key.startswith("ablation.") for key in differing)


def _row(point: Point) -> dict[str, Any] | None:
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


def _write_tables(folder: Path, rows: Rows) -> None:
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


def _by_label(points: Sequence[Point], rows: Rows) -> dict[str, Rows]:
    """Setting → its rows, one for each seed whose run did not fail."""
    found: dict[str, Rows] = {}
    for point in points:
        found.setdefault(point.label, []).extend(row for row in rows if row["run_dir"] == str(point.folder))
    return found


def best_label(by_label: Mapping[str, Rows], score: str) -> str:
    """The setting with the highest mean of ``score`` over its seeds; of equals the first."""
    known = {label: mean for label, rows in by_label.items() if not math.isnan(mean := _mean(rows, score))}
    if not known:
        raise UserError(f"no run has a figure '{score}', which evaluation.score names; name accuracy, reward or a metric")
    return max(known, key=lambda label: known[label])


def best_config(config: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration of one setting as a run of its own, in a folder beside those of the grid."""
    overrides = [*(f"{key}={json.dumps(value)}" for key, value in settings.items()), f"run_dir={Path(config.run_dir) / 'best'}"]
    return replace(with_overrides(config, overrides), ablation=AblationConfig())


def _show(terminal: Terminal, by_label: Mapping[str, Rows], best: str, failed: Sequence[Point]) -> None:
    centres = {label: (_mean(rows, "reverse_kl"), _mean(rows, "accuracy")) for label, rows in by_label.items()}
    placed = [label for label, centre in centres.items() if not math.isnan(sum(centre))]
    front = {label for label, is_best in zip(placed, pareto([centres[label] for label in placed]), strict=True) if is_best}
    judged = {label: {row["seed"]: read_judged(Path(row["run_dir"])) for row in rows} for label, rows in by_label.items()}
    table = [
        [
            f"{label} *" if label in front else label,
            str(len(rows)),
            *(_interval(rows, name) for name in SHOWN),
            "the best" if label == best else _difference(*paired_bootstrap(differences(judged[label], judged[best]))),
        ]
        for label, rows in by_label.items()
    ]
    terminal.table("mean over seeds, 95% interval", ["", "seeds", *SHOWN.values(), "accuracy less the best's"], table)
    terminal.say("* no other setting is as near to the teacher and as accurate; differences: paired bootstrap over examples and seeds, 95%")
    for point in failed:
        terminal.say(f"failed     {point.label} seed={point.seed}: {last_words(point)} (see {point.folder / 'output.log'})")


def _difference(mean: float, low: float, high: float) -> str:
    return "–" if math.isnan(mean) else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def _mean(rows: Rows, name: str) -> float:
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values) if values else math.nan


def _interval(rows: Rows, name: str) -> str:
    values = [row[name] for row in rows if row[name] is not None]
    if not values:
        return "–"
    mean, low, high = mean_interval(values)
    return f"{mean:.3f}" if len(values) < 2 else f"{mean:.3f} ±{(high - low) / 2:.3f}"
