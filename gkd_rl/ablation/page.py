"""The page of a sweep: its settings against each other, the frontier, what the swept keys do, curves over the seeds, and what failed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gkd_rl.ablation.grid import Point
from gkd_rl.ablation.results import FIGURES, Setting
from gkd_rl.config.run import Config
from gkd_rl.report.logs import columns, new_rows
from gkd_rl.report.page import whole_page
from gkd_rl.run_folder import write_atomically

SCRIPTS = ("page.js", "plots.js", "sweep.js")
CURVES = ("reward", "eval_accuracy", "divergence", "reverse_kl", "entropy", "length", "loss", "grad_norm")
POINTS = 500
"""Most points of one setting's curve."""


def write_sweep_report(folder: Path, config: Config, settings: Sequence[Setting], failed: Sequence[tuple[Point, str]]) -> Path:
    """Write ``report.html`` into the sweep's ``folder``: one file that needs no network. ``failed`` are points and what they ended with."""
    grid, names = config.ablation.grid, [*FIGURES, *_metrics(settings)]
    data = {
        "live": False,
        "folder": str(folder),
        "score": config.evaluation.score,
        "figures": names,
        "keys": [key for key in (_key(key, spec, settings) for key, spec in grid.items()) if key is not None],
        "settings": [_setting(setting, names, folder) for setting in settings],
        "failed": [{"label": point.label, "seed": point.seed, "said": said, "folder": point.folder.name} for point, said in failed],
    }
    path = folder / "report.html"
    write_atomically(path, whole_page(folder.resolve().name, "sweep.html", SCRIPTS, data))
    return path


def is_logarithmic(spec: Any, values: Sequence[float]) -> bool:
    """Whether values are spaced by ratios: by a ``log`` range, or three or more whose ratios differ by less than half and whose
    distances do not."""
    if isinstance(spec, dict):
        return "log" in spec
    ordered = sorted(values)
    if len(ordered) < 3 or ordered[0] <= 0:
        return False
    pairs = list(itertools.pairwise(ordered))
    ratios, steps = [b / a for a, b in pairs], [b - a for a, b in pairs]
    return max(ratios) < 1.5 * min(ratios) and max(steps) >= 1.5 * min(steps)


def _key(key: str, spec: Any, settings: Sequence[Setting]) -> dict[str, Any] | None:
    """A swept key whose values are numbers, of which there are several; None for others, which have no axis."""
    values = [setting.values[key] for setting in settings]
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values) or len(set(values)) < 2:
        return None
    return {"key": key, "log": is_logarithmic(spec, list(set(values)))}


def _metrics(settings: Sequence[Setting]) -> list[str]:
    own = {*FIGURES, "seed", "accuracy_before", "seconds", "run_dir"}
    return [name for name in settings[0].rows[0] if name not in own and name not in settings[0].values]


def _setting(setting: Setting, names: Sequence[str], folder: Path) -> dict[str, Any]:
    return {
        "label": setting.label,
        "values": setting.values,
        "best": setting.best,
        "front": setting.front,
        "difference": _plain(setting.difference),
        "figures": {name: _plain(setting.interval(name)) for name in names},
        "runs": [_run(row, names, folder) for row in setting.rows],
        "curves": _curves(setting),
    }


def _run(row: Mapping[str, Any], names: Sequence[str], folder: Path) -> dict[str, Any]:
    place = Path(row["run_dir"])
    page = place / "report.html"
    figures = {name: _plain([row.get(name)])[0] for name in names}
    report = page.relative_to(folder).as_posix() if page.is_file() else None
    return {"seed": row["seed"], "folder": place.name, "seconds": row["seconds"], "report": report, **figures}


def _curves(setting: Setting) -> dict[str, dict[str, Any]]:
    """Figure → ``{step, mean, low, high}``: over the seeds at each step that all have, the mean and the lowest and highest."""
    runs = [columns(list(_metrics_rows(row)), POINTS) for row in setting.rows]
    found: dict[str, dict[str, Any]] = {}
    for name in CURVES:
        by_step: dict[int, list[float]] = {}
        for run in runs:
            for step, value in zip(run["step"], run["values"].get(name, []), strict=False):
                if value is not None:
                    by_step.setdefault(step, []).append(value)
        steps = sorted(step for step, values in by_step.items() if len(values) == len(runs))
        if steps:
            means = [float(f"{sum(by_step[step]) / len(runs):.6g}") for step in steps]
            ends = {end: [pick(by_step[step]) for step in steps] for end, pick in (("low", min), ("high", max))}
            found[name] = {"step": steps, "mean": means, **ends}
    return found


def _metrics_rows(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The run's metrics, its held-out accuracy before and after as that of steps 0 and last."""
    yield {"step": 0, "eval_accuracy": row["accuracy_before"]}
    last = 0
    for metrics, _ in new_rows(Path(row["run_dir"]) / "metrics.jsonl", 0):
        last = metrics["step"]
        yield metrics
    yield {"step": last, "eval_accuracy": row["accuracy"]}


def _plain(values: Sequence[float | None]) -> list[float | None]:
    """NaN as None, which JSON has."""
    return [None if value is None or math.isnan(value) else value for value in values]
