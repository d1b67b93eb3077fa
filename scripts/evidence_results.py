"""What the runs of ``evidence.py`` left, as numbers: read from their own files, kept as a table, with intervals."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from gkd_rl.ablation.comparison import paired_bootstrap

EVALUATED = "evaluation.json"
TEMPERATURES = "temperatures.json"
"""The same problems answered at several temperatures; of the methods that the divergences are compared by."""
UNCOUNTED = "uncounted.json"
"""Work of the teacher that runs do not count themselves."""
PHASES = ("generation", "teacher", "student")


@dataclass(frozen=True)
class Result:
    """One run, or a model that was only evaluated (``student``, ``teacher``: no seed, no steps)."""

    name: str
    seed: int | None
    steps: int
    generation: float
    teacher: float
    student: float
    """TFLOP in each phase, as the run counted them; with what the teacher wrote"""
    accuracy: float
    """of greedy answers, problems like those of the training"""
    harder: float
    longer: float
    """of greedy answers, problems of three and of four operations"""
    sampled: float
    """share of right answers sampled at temperature 1"""
    pass_at_4: float
    majority: float
    self_bleu: float
    """of four samples to each of fewer problems; Self-BLEU from 0 to 100: higher is less diverse"""
    reverse_kl: float
    """KL(student‖teacher) per token of samples, in nats; the embedded teacher's, whichever taught"""
    length: float
    judged: tuple[int, ...] = field(default=(), repr=False)
    """which held-out problems were answered rightly"""
    curve: tuple[tuple[float, float], ...] = field(default=(), repr=False)
    """TFLOP spent, accuracy of the first 200 held-out problems"""
    temperatures: tuple[tuple[float, float, float], ...] = field(default=(), repr=False)
    """sampling temperature, share of right answers at it, their Self-BLEU"""


def read_results(out: Path, teraflops: float, names: Sequence[str], seeds: Sequence[int]) -> list[Result]:
    """The finished runs among those named, after the student and the teacher."""
    wanted = [("student", None, out / "student"), ("teacher", None, out / "teacher")]
    wanted += [(name, seed, out / f"{name}-{teraflops:g}-seed-{seed}") for name in names for seed in seeds]
    return [read(name, seed, folder / "run") for name, seed, folder in wanted if (folder / "run" / EVALUATED).is_file()]


def read(name: str, seed: int | None, folder: Path) -> Result:
    """What a finished run left in ``folder``."""
    figures: dict[str, Any] = json.loads((folder / EVALUATED).read_text())
    rows = [] if seed is None else _rows(folder)
    spent = {phase: math.fsum(row[f"flops_{phase}"] for row in rows) / 1e12 for phase in PHASES}
    own, diverse = figures["in_domain"], figures["diversity"]
    return Result(
        name=name,
        seed=seed,
        steps=len(rows),
        **spent,
        accuracy=own["accuracy"],
        harder=figures["harder"]["accuracy"],
        longer=figures["longer"]["accuracy"],
        sampled=own["reward"],
        pass_at_4=diverse["pass_at"]["4"],
        majority=diverse["metrics"]["majority_vote"],
        self_bleu=diverse["metrics"]["self_bleu"],
        reverse_kl=own["reverse_kl"],
        length=own["length"],
        judged=tuple(own["judged"]),
        curve=_curve(folder, rows),
        temperatures=_temperatures(folder / TEMPERATURES),
    )


def _temperatures(path: Path) -> tuple[tuple[float, float, float], ...]:
    found = json.loads(path.read_text()) if path.is_file() else []
    return tuple((at["temperature"], at["reward"], at["metrics"]["self_bleu"]) for at in found)


def _rows(folder: Path) -> list[dict[str, float]]:
    """A row for each step, with the whole work of each phase."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    more = json.loads((folder / UNCOUNTED).read_text())["teacher_flops_per_step"]
    phases = [{f"flops_{phase}": row.get(f"flops_{phase}", 0.0) + more * (phase == "teacher") for phase in PHASES} for row in rows]
    return [row | work for row, work in zip(rows, phases, strict=True)]


def _curve(folder: Path, rows: Sequence[dict[str, Any]]) -> tuple[tuple[float, float], ...]:
    if not rows:
        return ()
    summary = json.loads((folder / "summary.json").read_text())
    spent, points = 0.0, [(0.0, summary["accuracy_before"])]
    for row in rows:
        spent += sum(row[f"flops_{phase}"] for phase in PHASES) / 1e12
        if "eval_accuracy" in row:
            points.append((spent, row["eval_accuracy"]))
    return (*points, (spent, summary["accuracy_after"]))


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """All figures of all runs, a line each; ``judged`` as digits, ``curve`` and ``temperatures`` as numbers joined by colons."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([column.name for column in fields(Result)])
        for result in results:
            row = {
                **asdict(result),
                "judged": "".join(map(str, result.judged)),
                "curve": " ".join(f"{x:.4f}:{y:g}" for x, y in result.curve),
                "temperatures": " ".join(f"{x:g}:{y:.4f}:{z:.4f}" for x, y, z in result.temperatures),
            }
            writer.writerow([f"{value:.5g}" if isinstance(value, float) else value for value in row.values()])


def read_csv(path: Path) -> list[Result]:
    """What ``write_csv`` wrote."""
    with path.open(encoding="utf-8") as file:
        return [_of_row(row) for row in csv.DictReader(file)]


def _of_row(row: dict[str, str]) -> Result:
    curve, temperatures = ([list(map(float, point.split(":"))) for point in row[key].split()] for key in ("curve", "temperatures"))
    others = ("name", "seed", "steps", "judged", "curve", "temperatures")
    numbers = {key: float(value) for key, value in row.items() if key not in others}
    seed = int(row["seed"]) if row["seed"] else None
    return Result(
        row["name"],
        seed,
        int(row["steps"]),
        **numbers,
        judged=tuple(map(int, row["judged"])),
        curve=tuple((x, y) for x, y in curve),
        temperatures=tuple((x, y, z) for x, y, z in temperatures),
    )


def of(results: Sequence[Result], name: str) -> list[Result]:
    return [result for result in results if result.name == name]


def mean(results: Sequence[Result], figure: str) -> float:
    return sum(getattr(result, figure) for result in results) / len(results)


def interval(results: Sequence[Result]) -> tuple[float, float]:
    """95% bootstrap interval of the mean accuracy: seeds and problems are both drawn anew, with replacement."""
    return paired_bootstrap(np.array([result.judged for result in results], dtype=float))[1:]


def difference(one: Sequence[Result], other: Sequence[Result]) -> tuple[float, float, float]:
    """Accuracy of ``one`` less that of ``other`` with its 95% interval, paired: the same seeds and the same problems."""
    pairs = [(a, b) for a in one for b in other if a.seed == b.seed]
    return paired_bootstrap(np.array([np.subtract(a.judged, b.judged) for a, b in pairs], dtype=float))
