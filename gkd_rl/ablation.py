"""``gkd-rl ablate``: a grid of settings, each run with each seed in a process of its own, and what came of them.

Runs share the initial student, the held-out examples and, per seed, the prompts. A run that is there already is not repeated; one
that fails is reported at the end and does not stop the others.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkd_rl.config.load import differences, load_config, with_overrides
from gkd_rl.config.run import Config
from gkd_rl.config.validate import validate
from gkd_rl.console import Terminal
from gkd_rl.errors import UserError
from gkd_rl.evaluation.statistics import mean_interval
from gkd_rl.run_folder import RunFolder

FIGURES = ("accuracy", "reward", "divergence", "reverse_kl", "length")
"""Columns of ``results.csv``, beside the task's metrics."""

SHOWN = {"accuracy": "accuracy", "reward": "reward", "reverse_kl": "KL to teacher"}
"""Those that a terminal of 80 columns has room for, and what they are called there."""


@dataclass(frozen=True)
class Point:
    """One run of the grid."""

    settings: dict[str, Any]
    seed: int
    folder: Path

    @property
    def label(self) -> str:
        return "  ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in self.settings.items())

    @property
    def overrides(self) -> list[str]:
        values = [f"{key}={json.dumps(value)}" for key, value in self.settings.items()]
        return [*values, f"seed={self.seed}", f"run_dir={self.folder}", "resume=auto"]


def ablate(config: Config, config_path: str, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Run the grid of ``config.ablation``; writes ``results.csv`` and ``frontier.png`` into ``run_dir`` and returns the rows."""
    points = list(_points(config))
    _require_own_folders(points)
    for point in points:  # every point is checked before the first one runs
        validate(with_overrides(config, point.overrides))
    terminal = Terminal()
    sweep = RunFolder(Path(config.run_dir))
    sweep.open("auto")
    failed: list[Point] = []
    with terminal.bar("runs", len(points)) as bar:
        for point in points:
            if not _finished(config, point) and not _run(point, config_path, overrides):
                failed.append(point)
            bar.advance(1)
    rows = [row for point in points if point not in failed and (row := _row(point)) is not None]
    if not rows:
        raise UserError(f"every run failed; the first one ended with '{_last_words(points[0])}' (see {points[0].folder / 'output.log'})")
    _write_csv(sweep.path / "results.csv", rows)
    _show(terminal, points, rows, failed)
    picture = draw_frontier(sweep.path / "frontier.png", rows, list(config.ablation.grid))
    terminal.say(f"results    {sweep.path / 'results.csv'}\npicture    {picture}")
    return rows


def _points(config: Config) -> Iterator[Point]:
    grid, seeds = config.ablation.grid, config.ablation.seeds
    if not grid or not seeds:
        raise UserError("ablation.grid and ablation.seeds must not be empty; for example ablation.grid={objective.alpha: [0, 0.5, 1]}")
    lists = {key: value if isinstance(value, list) else [value] for key, value in grid.items()}
    for values in itertools.product(*lists.values()):
        settings = dict(zip(lists, values, strict=True))
        name = _folder_name(settings)
        for seed in seeds:
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


def _finished(config: Config, point: Point) -> bool:
    """Whether the point's run is there already, made with the very settings it would be made with now."""
    if not (point.folder / "summary.json").is_file():
        return False
    before = load_config(point.folder / "config.yaml")
    differing = differences(before, with_overrides(config, point.overrides))
    return all(key == "run_dir" or key.startswith("ablation.") for key in differing)


def _run(point: Point, config_path: str, overrides: Sequence[str]) -> bool:
    """One training run in a process of its own; its output goes to the run's folder."""
    try:
        point.folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{point.folder}, where a run of the grid belongs, is not a folder; move it away") from None
    command = [sys.executable, "-m", "gkd_rl", "train", config_path, *overrides, *point.overrides]
    with (point.folder / "output.log").open("w") as log:
        run = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            return run.wait() == 0
        finally:  # whatever ends the sweep ends its run: nothing goes on unseen
            if run.poll() is None:
                run.terminate()
                run.wait()


def _last_words(point: Point) -> str:
    lines = (point.folder / "output.log").read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


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


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _show(terminal: Terminal, points: Sequence[Point], rows: Sequence[dict[str, Any]], failed: Sequence[Point]) -> None:
    by_label: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        by_label.setdefault(point.label, []).extend(row for row in rows if row["run_dir"] == str(point.folder))
    table = [[label, str(len(found)), *(_interval(found, name) for name in SHOWN)] for label, found in by_label.items()]
    terminal.table("mean over seeds, 95% interval", ["", "seeds", *SHOWN.values()], table)
    for point in failed:
        terminal.say(f"failed     {point.label} seed={point.seed}: {_last_words(point)} (see {point.folder / 'output.log'})")


def _interval(rows: Sequence[dict[str, Any]], name: str) -> str:
    values = [row[name] for row in rows if row[name] is not None]
    if not values:
        return "–"
    mean, low, high = mean_interval(values)
    return f"{mean:.3f}" if len(values) < 2 else f"{mean:.3f} ±{(high - low) / 2:.3f}"


def draw_frontier(path: Path, rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> Path:
    """Accuracy and reward against the divergence to the teacher: one mark per setting, bars over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["reverse_kl"] is not None:
            groups.setdefault(", ".join(f"{key.rsplit('.', 1)[-1]}={row[key]}" for key in keys), []).append(row)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, name in zip(axes, ("accuracy", "reward"), strict=True):
        for label, found in groups.items():
            x, y = ([row[column] for row in found] for column in ("reverse_kl", name))
            centre = sum(x) / len(x), sum(y) / len(y)
            line = axis.plot(*centre, "o", label=label)[0]
            axis.plot(x, y, ".", color=line.get_color(), alpha=0.5)
        axis.set_xscale("log")  # a policy that has collapsed is tens of times as far from the teacher as the others
        axis.set_xlabel("KL(student‖teacher) per token")
        axis.legend(fontsize=8)
        axis.set_ylabel(name)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
