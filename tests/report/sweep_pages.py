"""Pages of sweeps written by hand."""

from __future__ import annotations

from pathlib import Path

from run_folders import write_sweep

from gkd_rl.ablation.page import write_sweep_report
from gkd_rl.ablation.processes import last_words
from gkd_rl.ablation.results import compare, row_of


def sweep_page(folder: Path, grid: str, *overrides: str) -> Path:
    """The page of ``write_sweep``'s sweep."""
    config, points = write_sweep(folder, grid, *overrides)
    rows = [row for point in points[:-1] if (row := row_of(point)) is not None]
    return write_sweep_report(folder, config, compare(points, rows, "accuracy"), [(points[-1], last_words(points[-1]))])
