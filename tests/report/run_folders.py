"""Folders of runs, written by hand: what a run leaves, without the run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from gkd_rl.ablation.grid import Point, points_of
from gkd_rl.config.load import config_to_yaml, with_overrides
from gkd_rl.config.run import Config

HOSTILE = "</script><img src=x onerror=\"document.title='broken in'\"><script>document.title='broken in'</script>"


def evaluation(accuracy: float) -> dict[str, Any]:
    return {
        **{"examples": 100, "accuracy": accuracy, "accuracy_low": accuracy - 0.05, "accuracy_high": accuracy + 0.05, "reward": accuracy},
        **{"divergence": 0.2, "reverse_kl": 0.9, "length": 12.0, "truncated": 0.0, "tokens_per_second": 900.0},
    }


def metrics_row(step: int) -> dict[str, Any]:
    rng = random.Random(step)
    figures = {"loss": 0.5, "reward": 0.3, "divergence": 0.2, "entropy": 0.4, "length": 12.0, "grad_norm": 1.0, "distinct_2": 0.8}
    work = {"flops_generation": 1e9, "flops_teacher": 2e9, "flops_student": 3e9}
    row = {"step": step, **{name: value * (1 + 0.1 * rng.random()) for name, value in figures.items()}, **work}
    return row | ({"eval_accuracy": 0.2 + step / 100} if step % 5 == 0 else {})


def rollout(step: int, example: int, number: int, completion: str | None = None, **changes: Any) -> dict[str, Any]:
    """A row of five tokens of the embedded vocabulary; the ``number``-th answer of its group, the even ones right."""
    right = number % 2 == 0
    text = completion if completion is not None else f"{step}+{example}={number}\n#### {step + example if right else 999}"
    return {
        **{"step": step, "example": example, "prompt": f"What is {step} and {example}?\n", "completion": text},
        **{"columns": {"reference": str(step + example), "level": 1}, "on_policy": True, "version": step - 1},
        **{"reward": float(right), "rewards": {"correct": float(right)}, "advantage": 0.5 if right else -0.5},
        "tokens": [21, 7, 22, 18, 1][: 3 + number % 3],
        "logprobs": [-0.1, -0.7, -0.0, -2.3, -0.2][: 3 + number % 3],
        "divergence": [0.01, 0.4, 0.0, 1.9, 0.05][: 3 + number % 3],
        "student_top": [[[21, 0.9], [22, 0.08]]] * (3 + number % 3),
        "teacher_top": [[[22, 0.75], [21, 0.2]]] * (3 + number % 3),
        **changes,
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_run(folder: Path, *overrides: str, steps: int = 30, finished: bool = True, rollouts: list[dict[str, Any]] | None = None) -> Path:
    """A folder as ``steps`` steps leave it, with two groups of four rollouts every fifth step."""
    folder.mkdir(parents=True)
    config = with_overrides(Config(), [f"run_dir={folder}", f"max_steps={30}", *overrides])
    (folder / "config.yaml").write_text(config_to_yaml(config))
    (folder / "environment.json").write_text(json.dumps({"device": "cpu", "python": "3.11"}))
    write_rows(folder / "metrics.jsonl", [metrics_row(step) for step in range(1, steps + 1)])
    phases = {"sample": 0.5, "teacher": 0.2, "student": 1.0}
    timings = [{"step": s, **{name: s * value for name, value in phases.items()}, "padding_share": 0.1} for s in range(1, steps + 1)]
    write_rows(folder / "timings.jsonl", timings)
    groups = [(step, example) for step in range(5, steps + 1, 5) for example in (2 * step, 2 * step + 1)]
    write_rows(folder / "rollouts.jsonl", rollouts or [rollout(step, example, i) for step, example in groups for i in range(4)])
    if finished:
        summary = {"steps": steps, "seconds": 50.0, "parameters": 10, "trained_parameters": 10, "phase_seconds": phases}
        summary |= {"before": evaluation(0.2), "after": evaluation(0.6), "teacher": evaluation(0.9)}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def write_answers(folder: Path, before: list[int], after: list[int], text: str = "x") -> None:
    """The greedy answers to held-out examples before and after, each with whether it was right."""
    for when, right in (("before", before), ("after", after)):
        rows = [
            {"example": i, "right": bool(r), "prompt": f"What is {i}? {text}", "completion": f"{when} {i} {text}"}
            for i, r in enumerate(right)
        ]
        write_rows(folder / f"evaluation-{when}.jsonl", [{**row, "reference": f"reference {row['example']}"} for row in rows])


def write_sweep(folder: Path, grid: str, *overrides: str, steps: int = 6) -> tuple[Config, list[Point]]:
    """The runs of a sweep as they end, but the last one, which failed: the n-th point (from 0) with accuracy 0.2 + n/50, nearer to the
    teacher the later it comes, of ten held-out examples."""
    config = with_overrides(Config(), [f"run_dir={folder}", "max_steps=30", f"ablation.grid={grid}", "ablation.seeds=[0, 1]", *overrides])
    points = points_of(config)
    for number, point in enumerate(points):
        write_run(point.folder, steps=steps)
        figures = {**evaluation(0.2 + number / 50), "reverse_kl": 0.9 - number / 50, "metrics": {"rougeL": 0.5}}
        summary = {"steps": steps, "seconds": 50.0, "accuracy_before": 0.1, "before": evaluation(0.1), "after": figures}
        (point.folder / "summary.json").write_text(json.dumps(summary))
        write_rows(point.folder / "evaluation-after.jsonl", [{"example": i, "right": i <= number} for i in range(10)])
    (points[-1].folder / "summary.json").unlink()
    (points[-1].folder / "output.log").write_text("one\ngkd-rl: " + HOSTILE + "\n")
    return config, points
