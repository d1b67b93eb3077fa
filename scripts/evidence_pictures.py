"""Pictures of ``evidence.py``: methods, the frontier, accuracy over arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from evidence_results import Result, interval, mean, of

from gkd_rl.ablation.comparison import pareto

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BLUE, ORANGE, GREY = "#2a6fbb", "#d1660f", "0.45"
SCHEDULES = {"alpha_falls": "α 1 → 0", "alpha_rises": "α 0 → 1", "gated_joint": "½, gated", "distil_then_rl": "1, then 0"}
AWAY = {"gated_joint": (6, -11), "on_policy_gkd": (-22, -12), "alpha_falls": (-30, -15)}
"""Where the labels of some marks stand, in points, since those of others are in their way."""
ALPHAS = {"on_policy_gkd": 1.0, "joint": 0.5}


def _names(results: Sequence[Result]) -> list[str]:
    """Methods in the results, in their order."""
    return list(dict.fromkeys(result.name for result in results if result.seed is not None))


def draw_methods(results: Sequence[Result], path: Path) -> None:
    """Accuracy by method with its interval; points are seeds."""
    names = sorted(_names(results), key=lambda name: mean(of(results, name), "accuracy"))
    figure, axis = plt.subplots(figsize=(7, 0.32 * len(names) + 1), layout="constrained")
    for place, name in enumerate(names):
        runs = of(results, name)
        axis.plot(interval(runs), [place, place], color=BLUE, linewidth=5, alpha=0.3, solid_capstyle="butt")
        axis.plot([run.accuracy for run in runs], [place] * len(runs), "o", color=BLUE, markersize=3.5)
    for start in of(results, "student"):
        axis.axvline(start.accuracy, color=GREY, linestyle="--", linewidth=1, label="before")
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("greedy accuracy on held-out problems, 95% interval")
    axis.legend(frameon=False)
    _save(figure, path)


def draw_frontier(results: Sequence[Result], path: Path) -> None:
    """Accuracy against the divergence to the teacher for each α, schedules and gates beside them; the undominated are ringed."""
    figure, axis = plt.subplots(figsize=(7, 4.4), layout="constrained")
    places = {name: (mean(of(results, name), "reverse_kl"), mean(of(results, name), "accuracy")) for name in _names(results)}
    line = sorted((name for name in places if name not in SCHEDULES), key=_alpha)
    if line:
        axis.plot(*zip(*(places[name] for name in line), strict=True), "-", color=BLUE, linewidth=1, alpha=0.6)
    for name, place in places.items():
        colour = ORANGE if name in SCHEDULES else BLUE
        runs = of(results, name)
        axis.plot([run.reverse_kl for run in runs], [run.accuracy for run in runs], ".", color=colour, alpha=0.4, markersize=5)
        axis.plot(*place, "s" if name in SCHEDULES else "o", color=colour, markersize=6)
        label = SCHEDULES[name] if name in SCHEDULES else f"α {_alpha(name):g}"
        axis.annotate(label, place, xytext=AWAY.get(name, (6, 5)), textcoords="offset points", fontsize=8, color=colour)
    for start in of(results, "student"):
        axis.plot(start.reverse_kl, start.accuracy, "x", color=GREY)
        axis.annotate("before", (start.reverse_kl, start.accuracy), xytext=(6, -10), textcoords="offset points", fontsize=8, color=GREY)
    best = [place for place, undominated in zip(places.values(), pareto(list(places.values())), strict=True) if undominated]
    axis.plot(*zip(*best, strict=True), "o", color="black", fillstyle="none", markersize=12, linestyle="", label="undominated")
    axis.set_xlabel("KL(student‖teacher) per token, nats")
    axis.set_ylabel("greedy accuracy on held-out problems")
    axis.legend(frameon=False, loc="upper right")
    _save(figure, path)


def _alpha(name: str) -> float:
    return ALPHAS[name] if name in ALPHAS else float(name.removeprefix("alpha_"))


def draw_curves(results: Sequence[Result], path: Path) -> None:
    """Accuracy over arithmetic spent, mean over the seeds with the range of them."""
    names = sorted(_names(results), key=lambda name: -mean(of(results, name), "accuracy"))
    figure, axis = plt.subplots(figsize=(7, 4.6), layout="constrained")
    colours = plt.get_cmap("tab20")(np.linspace(0, 1, 20))
    for place, name in enumerate(names):
        curves = [run.curve for run in of(results, name)]
        length = min(map(len, curves))
        values = np.array([[accuracy for _, accuracy in curve[:length]] for curve in curves])
        spent = np.mean([[x for x, _ in curve[:length]] for curve in curves], axis=0)
        axis.plot(spent, values.mean(0), "o-", color=colours[place % 20], markersize=2.5, linewidth=1.2, label=name)
        axis.fill_between(spent, values.min(0), values.max(0), color=colours[place % 20], alpha=0.08, linewidth=0)
    axis.set_xlabel("TFLOP of generation, teacher and student")
    axis.set_ylabel("greedy accuracy (200 held-out problems)")
    axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:  # pyright: ignore[reportPrivateImportUsage]
    figure.savefig(path, dpi=110)
    plt.close(figure)
