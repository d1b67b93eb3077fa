"""``gkd-rl ablate``: a grid of settings, each run with each seed in a process of its own, and what came of them.

Runs share the initial student, the held-out examples and, per seed, the prompts. A run that is there already is not repeated, one that
was cut off goes on from its newest checkpoint, and one that fails is reported at the end and does not stop the others.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gkd_rl.ablation.frontier import draw_frontier
from gkd_rl.ablation.grid import Point, points_of
from gkd_rl.ablation.jobs import make_executor, parse_slurm, run_jobs
from gkd_rl.ablation.page import write_sweep_report
from gkd_rl.ablation.processes import last_words, run_all
from gkd_rl.ablation.results import Interval, Rows, Setting, compare, row_of, write_tables
from gkd_rl.ablation.sharing import sharing
from gkd_rl.config.load import config_to_yaml, load_config, with_overrides
from gkd_rl.config.load import differences as differing_keys
from gkd_rl.config.run import AblationConfig, Config
from gkd_rl.config.validate import validate
from gkd_rl.console import Terminal
from gkd_rl.errors import UserError
from gkd_rl.report.page import has_plotly
from gkd_rl.run_folder import RunFolder

SHOWN = {"accuracy": "accuracy", "reward": "reward", "reverse_kl": "KL to teacher"}
"""Figures that a terminal of 80 columns has room for, and what they are called there."""

JOBS = "jobs"
"""Folder of what belongs to submitted jobs."""


def ablate(
    config: Config, config_path: str, overrides: Sequence[str], share_rollouts: bool = False, slurm: str | None = None
) -> tuple[Rows, int]:
    """Run the grid of ``config.ablation``; returns the rows of ``results.csv`` and how many runs failed.

    ``share_rollouts``: runs with the same seed begin with the same sampled answers (``rollout.first_batch``); ``slurm``: how they are
    submitted as jobs of a cluster (``ablation/jobs.py``), instead of run on this machine.
    Writes into ``run_dir``: ``results.csv`` and ``.parquet``, ``frontier.png``, ``report.html`` where plotly is, and ``best.yaml``, the
    configuration of the setting whose mean ``evaluation.score`` is highest. Raises ``UserError`` where every run failed.
    """
    points = points_of(config)
    for point in points:  # every point is checked before the first one runs
        validate(with_overrides(config, point.overrides))
    if share_rollouts:
        points = sharing(config, points)
    jobs = None if slurm is None else parse_slurm(slurm)
    terminal = Terminal()
    sweep = RunFolder(Path(config.run_dir))
    sweep.open("auto")
    if jobs is not None:
        _try_executor(jobs, sweep)
    failed = _run(terminal, config, points, config_path, overrides, jobs)
    rows = [row for point in points if point not in failed and (row := row_of(point)) is not None]
    if not rows:
        raise UserError(f"every run failed; the first one ended with '{last_words(points[0])}' (see {points[0].folder / 'output.log'})")
    write_tables(sweep.path, rows)
    settings = compare(points, rows, config.evaluation.score)
    reasons = [(point, last_words(point)) for point in failed]
    _show(terminal, settings, reasons)
    picture = draw_frontier(sweep.path / "frontier.png", rows, list(config.ablation.grid))
    terminal.say(f"results    {sweep.path / 'results.csv'} and .parquet\npicture    {picture}")
    if has_plotly():
        terminal.say(f"report     {write_sweep_report(sweep.path, config, settings, reasons)}   (open it in a browser)")
    else:
        terminal.say("report     left out, since plotly is not installed; pip install 'gkd-rl[report]' and repeat the command")
    best = next(setting for setting in settings if setting.best)
    sweep.write("best.yaml", config_to_yaml(best_config(config, best.values)))
    terminal.say(f"best       {best.label} by {config.evaluation.score}: gkd-rl train {sweep.path / 'best.yaml'}")
    return rows, len(failed)


def _try_executor(jobs: Mapping[str, Any], sweep: RunFolder) -> None:
    """Raise ``UserError``, and leave no new folder, where no jobs can be submitted as ``jobs`` says."""
    try:
        make_executor(jobs, sweep.path / JOBS)
    except UserError:
        sweep.abandon()
        raise


def _run(
    terminal: Terminal,
    config: Config,
    points: Sequence[Point],
    config_path: str,
    overrides: Sequence[str],
    jobs: Mapping[str, Any] | None,
) -> list[Point]:
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

        if jobs is None:
            run_all(missing, config_path, overrides, max(1, at_once), threads, ended)
        else:
            run_jobs(missing, config_path, overrides, jobs, Path(config.run_dir) / JOBS, ended)
    return [point for point in points if point in failed]


def _figures_of(point: Point) -> str:
    row = row_of(point) or {}
    return "  ".join(f"{title} {row[name]:.3f}" for name, title in SHOWN.items() if row.get(name) is not None)


def _finished(config: Config, point: Point) -> bool:
    """Whether the point's run is there already, made with the very settings it would be made with now."""
    if not (point.folder / "summary.json").is_file():
        return False
    before = load_config(point.folder / "config.yaml")
    differing = differing_keys(before, with_overrides(config, point.overrides))
    return all(key == "run_dir" or key.startswith("ablation.") for key in differing)


def best_config(config: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration of one setting as a run of its own, in a folder beside those of the grid."""
    overrides = [*(f"{key}={json.dumps(value)}" for key, value in settings.items()), f"run_dir={Path(config.run_dir) / 'best'}"]
    return replace(with_overrides(config, overrides), ablation=AblationConfig())


def _show(terminal: Terminal, settings: Sequence[Setting], reasons: Sequence[tuple[Point, str]]) -> None:
    table = [
        [
            f"{setting.label} *" if setting.front["accuracy"] else setting.label,
            str(len(setting.rows)),
            *(_interval(setting.interval(name)) for name in SHOWN),
            "the best" if setting.best else _difference(*setting.difference),
        ]
        for setting in settings
    ]
    terminal.table("mean over seeds, 95% interval", ["", "seeds", *SHOWN.values(), "accuracy less the best's"], table)
    terminal.say("* no other setting is as near to the teacher and as accurate; differences: paired bootstrap over examples and seeds, 95%")
    for point, said in reasons:
        terminal.say(f"failed     {point.label} seed={point.seed}: {said} (see {point.folder / 'output.log'})")


def _difference(mean: float, low: float, high: float) -> str:
    return "–" if math.isnan(mean) else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def _interval(interval: Interval) -> str:
    mean, low, high = interval
    if math.isnan(mean):
        return "–"
    return f"{mean:.3f}" if math.isnan(low) else f"{mean:.3f} ±{(high - low) / 2:.3f}"
