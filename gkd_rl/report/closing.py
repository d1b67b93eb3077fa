"""The end of a run: the table, the picture, and what to do next."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gkd_rl.console import Terminal
from gkd_rl.report.page import has_plotly, write_report


def close_run(folder: Path, summary: Mapping[str, Any]) -> None:
    """Print the tables of ``summary`` and of the phases' times, draw ``curves.png``, write ``report.html`` where plotly is, and name
    the next commands."""
    terminal = Terminal()
    picture = draw_curves(folder, summary)
    columns = [("student before", summary["before"]), ("teacher", summary.get("teacher")), ("student after", summary["after"])]
    shown = [(name, values) for name, values in columns if values]
    terminal.table(
        f"{folder}: {summary['steps']} steps in {summary['seconds']:.0f} s",
        ["", *(name for name, _ in shown)],
        [
            [label, *(_cell(kind, values, summary) for _, values in shown)]
            for label, kind in (*_ROWS[:3], *_metric_rows(summary), *_ROWS[3:])
        ],
    )
    terminal.table("where the time went", ["phase", "seconds", "share", "TFLOP"], _phases(summary["phase_seconds"], read_metrics(folder)))
    if has_plotly():
        terminal.say(f"report     {write_report([folder], folder / 'report.html')}   (open it in a browser)")
    terminal.say(f"picture    {picture}")
    terminal.say(f"model      {folder / 'model'}   (AutoModelForCausalLM.from_pretrained or its encoder-decoder twin)")
    terminal.say(f"next       gkd-rl evaluate {folder / 'config.yaml'} model={folder / 'model'} evaluation.samples=8")
    terminal.say("           gkd-rl ablate configs/ablate_alpha.yaml          reward against distillation, α from 0 to 1")
    if not has_plotly():
        terminal.say(f"           pip install 'gkd-rl[report]' && gkd-rl report {folder}          curves and every rollout on one page")
    terminal.say("           gkd-rl grade FILE.jsonl --reference-field answer --completion-field completion")


def _metric_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), f"metrics.{name}") for name in summary["after"].get("metrics", {})]


_ROWS = (
    ("greedy accuracy", "accuracy"),
    ("  95% interval", "interval"),
    ("mean reward of samples", "reward"),
    ("divergence to teacher", "divergence"),
    ("  KL(student‖teacher)", "reverse_kl"),
    ("tokens per answer", "length"),
    ("parameters", "parameters"),
    ("tokens/s sampled", "tokens_per_second"),
)


_WORK = {"sample": "flops_generation", "teacher": "flops_teacher", "student": "flops_student"}


def _phases(seconds: Mapping[str, float], metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Name, seconds, share and arithmetic of each phase, largest first."""
    total = sum(seconds.values()) or 1.0
    rows = []
    for name, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        work = f"{sum(row.get(_WORK[name], 0.0) for row in metrics) / 1e12:.3g}" if name in _WORK else ""
        rows.append((name, f"{spent:.1f}", f"{spent / total:.0%}", work))
    return rows


def _cell(kind: str, values: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    if kind == "interval":
        return f"{values['accuracy_low']:.3f} to {values['accuracy_high']:.3f}"
    if kind == "parameters":
        return f"{values.get('parameters', summary['parameters']):,}"
    value = values.get("metrics", {}).get(kind.removeprefix("metrics.")) if kind.startswith("metrics.") else values.get(kind)
    if value is None:
        return "–"
    return f"{value:,.0f}" if kind == "tokens_per_second" else f"{value:.3f}"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.jsonl``."""
    with (folder / "metrics.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def draw_curves(folder: Path, summary: Mapping[str, Any]) -> Path:
    """``curves.png``: reward and accuracy, divergence, length and entropy over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_metrics(folder)
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    _panel(axes[0], rows, {"reward": "reward of samples"}, "reward and accuracy")
    evaluations = [(0, summary["accuracy_before"])]
    evaluations += [(row["step"], row["eval_accuracy"]) for row in rows if "eval_accuracy" in row]
    evaluations += [(summary["steps"], summary["accuracy_after"])]
    axes[0].plot(*zip(*evaluations, strict=True), "o-", color="tab:green", label="greedy accuracy, held out")
    if summary["accuracy_teacher"] is not None:
        axes[0].axhline(summary["accuracy_teacher"], color="grey", linestyle="--", label="teacher")
    _panel(axes[1], rows, {"divergence": "divergence", "reverse_kl": "KL(student‖teacher)"}, "divergence to the teacher, per token")
    _panel(axes[2], rows, {"entropy": "entropy per token (nats)"}, "entropy and length")
    length = axes[2].twinx()
    length.plot([r["step"] for r in rows], [r.get("length") for r in rows], color="tab:orange", alpha=0.6, label="tokens per answer")
    for axis in (*axes, length):
        handles, _ = axis.get_legend_handles_labels()
        if handles:
            axis.legend(fontsize=8, loc="lower left" if axis is length else "best")
    path = folder / "curves.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _panel(axis: Any, rows: list[dict[str, Any]], names: Mapping[str, str], title: str) -> None:
    steps = [row["step"] for row in rows]
    for name, label in names.items():
        values = [row.get(name) for row in rows]
        if any(value is not None for value in values):
            axis.plot(steps, values, alpha=0.3 if len(rows) > 20 else 1.0, label=None if len(rows) > 20 else label)
            if len(rows) > 20:
                axis.plot(steps, _smooth(values), color=axis.lines[-1].get_color(), label=label)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("step")


def _smooth(values: list[float | None], weight: float = 0.9) -> list[float | None]:
    """Exponential moving average, bias-corrected; gaps stay gaps."""
    smoothed: list[float | None] = []
    mean, mass = 0.0, 0.0
    for value in values:
        if value is None:
            smoothed.append(None)
            continue
        mean, mass = weight * mean + (1 - weight) * value, weight * mass + (1 - weight)
        smoothed.append(mean / mass)
    return smoothed
