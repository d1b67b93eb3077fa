"""The frontier: what settings gain against how far they are from the teacher, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gkd_rl.ablation.comparison import pareto


def draw_frontier(path: Path, rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> Path:
    """Accuracy and reward against the divergence to the teacher: a large mark for each setting's mean, small ones for its seeds.

    Settings that no other one dominates (as near to the teacher, and better) are ringed and joined.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["reverse_kl"] is not None and row["reward"] is not None:
            groups.setdefault(", ".join(f"{key.rsplit('.', 1)[-1]}={row[key]}" for key in keys), []).append(row)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, name in zip(axes, ("accuracy", "reward"), strict=True):
        centres = [(_mean(found, "reverse_kl"), _mean(found, name)) for found in groups.values()]
        best = sorted(point for point, is_best in zip(centres, pareto(centres), strict=True) if is_best)
        axis.plot(*zip(*best, strict=True), "o--", color="0.4", markersize=12, fillstyle="none", linewidth=1, label="Pareto")
        for label, found in groups.items():
            x, y = ([row[column] for row in found] for column in ("reverse_kl", name))
            line = axis.plot(_mean(found, "reverse_kl"), _mean(found, name), "o", label=label)[0]
            axis.plot(x, y, ".", color=line.get_color(), alpha=0.5)
        axis.set_xscale("log")  # a policy that has collapsed is tens of times as far from the teacher as the others
        axis.set_xlabel("KL(student‖teacher) per token")
        axis.legend(fontsize=8)
        axis.set_ylabel(name)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)
