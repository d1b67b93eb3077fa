"""Every baseline with several seeds at equal arithmetic, and a page of what came of it.

    python scripts/evidence.py                       # runs what is missing (hours), then writes docs/evidence.md and evidence.png
    python scripts/evidence.py --only joint rl --seeds 0 1 --teraflops 2 --out runs/try
    python scripts/evidence.py --report              # the page alone, from the runs that are there

Each run gets as many steps as its plan (``gkd-rl train --dry-run``) says the budget pays for; the page gives what the runs themselves
counted of generation, teacher and student. A run that is there is not repeated, one that was cut off continues. Completions of the teacher
that seqkd and f_distill learn from are sampled once and shared by the seeds; their arithmetic is not counted.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkd_rl.config.load import load_config
from gkd_rl.plan.plan import plan

ROOT = Path(__file__).resolve().parent.parent
BASELINES = ROOT / "configs" / "baselines"
PHASES = ("flops_generation", "flops_teacher", "flops_student")
DRAWS = 10_000


@dataclass(frozen=True)
class Result:
    """One finished run."""

    name: str
    seed: int
    steps: int
    flops: dict[str, float]
    """by phase, as the run counted them"""
    before: float
    accuracy: float
    examples: int
    reverse_kl: float | None


def steps_for(name: str, flops: float) -> int:
    """Steps of a baseline that ``flops`` pay for, by its plan; at least 1."""
    made = plan(load_config(BASELINES / f"{name}.yaml"), 1, 1.0, "")
    assert made.step_flops, "embedded models have known sizes"
    return max(1, round(flops / made.step_flops))


def run(name: str, seed: int, steps: int, folder: Path) -> bool:
    """Train, or go on training, in a process of its own; its output goes to ``folder``. Returns whether it reached its end."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = [
        *(f"run_dir={folder / 'run'}", f"seed={seed}", f"max_steps={steps}", "resume=auto", "log_rollouts_every=0"),
        *("evaluation.teacher=false", "evaluation.examples=500"),
    ]
    if load_config(BASELINES / f"{name}.yaml").rollout.completions == "teacher":
        settings.append(f"rollout.completions_dir={folder.parent / f'{name}-completions'}")
    command = [sys.executable, "-m", "gkd_rl", "train", str(BASELINES / f"{name}.yaml"), *settings]
    with (folder / "output.log").open("a") as log:
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT).returncode == 0


def read(name: str, seed: int, folder: Path) -> Result | None:
    """What a run left, None where it is not finished."""
    path = folder / "run" / "summary.json"
    if not path.is_file():
        return None
    summary: dict[str, Any] = json.loads(path.read_text())
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    after = summary["after"]
    flops = {phase: sum((float(row.get(phase, 0.0)) for row in rows), 0.0) for phase in PHASES}
    return Result(
        name, seed, summary["steps"], flops, summary["accuracy_before"], after["accuracy"], after["examples"], after.get("reverse_kl")
    )


def interval(results: Sequence[Result], seed: int = 0) -> tuple[float, float]:
    """95% bootstrap interval of the mean accuracy: runs are drawn with replacement, and each run's right answers from the binomial
    distribution of its own accuracy, so that few runs and few examples both count."""
    rng = random.Random(seed)
    means = sorted(
        sum(_drawn(rng.choice(results), rng) for _ in results) / len(results) for _ in range(DRAWS)
    )  # fmt: skip
    return means[int(0.025 * DRAWS)], means[int(0.975 * DRAWS)]


def _drawn(result: Result, rng: random.Random) -> float:
    """A binomial share by its normal approximation, within 0 and 1."""
    deviation = (result.accuracy * (1 - result.accuracy) / result.examples) ** 0.5
    return min(1.0, max(0.0, rng.gauss(result.accuracy, deviation)))


def page(results: Sequence[Result], teraflops: float, missing: Sequence[str]) -> str:
    """The page in Markdown."""
    by_name: dict[str, list[Result]] = {}
    for result in results:
        by_name.setdefault(result.name, []).append(result)
    order = sorted(by_name, key=lambda name: -_mean([r.accuracy for r in by_name[name]]))
    rows = [_row(name, by_name[name]) for name in order]
    lines = [
        "# Evidence",
        "",
        f"Written by `python scripts/evidence.py --teraflops {teraflops:g}` from the runs' own files. Each run has a budget of",
        f"{teraflops:g} TFLOP of generation, teacher and student together, from which its steps follow; the table has what was counted.",
        "Accuracy is greedy, on held-out problems; the interval is a 95% bootstrap over seeds and problems. Settings are those of",
        "`configs/baselines/`, none of them tuned for this comparison. Sampling the teacher's completions (`seqkd`, `f_distill`) is not",
        "counted.",
        "",
        "| method | runs | steps | TFLOP: generation, teacher, student | accuracy | 95% interval | by seed | KL to teacher |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]
    if results:
        lines += [
            f"All begin from the same student, at {_mean([r.before for r in results]):.3f}.",
            "",
            "![accuracy by method](evidence.png)",
            "",
        ]
    if missing:
        lines += [f"Not finished: {', '.join(missing)}.", ""]
    return "\n".join(lines)


def _row(name: str, runs: Sequence[Result]) -> str:
    low, high = interval(runs)
    work = ", ".join(f"{_mean([r.flops[phase] for r in runs]) / 1e12:.2f}" for phase in PHASES)
    known = [r.reverse_kl for r in runs if r.reverse_kl is not None]
    seeds = " ".join(f"{r.accuracy:.3f}" for r in runs)
    divergence = f"{_mean(known):.3f}" if known else "–"
    accuracy = f"{_mean([r.accuracy for r in runs]):.3f} | {low:.3f} to {high:.3f}"
    return f"| `{name}` | {len(runs)} | {runs[0].steps} | {work} | {accuracy} | {seeds} | {divergence} |"


def draw(results: Sequence[Result], path: Path) -> None:
    """Accuracy by method, with intervals; points are seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = sorted({r.name for r in results}, key=lambda name: _mean([r.accuracy for r in results if r.name == name]))
    figure, axis = plt.subplots(figsize=(8, 0.4 * len(names) + 1.2), layout="constrained")
    for place, name in enumerate(names):
        runs = [r for r in results if r.name == name]
        axis.plot(interval(runs), [place, place], color="tab:blue", linewidth=3, alpha=0.4)
        axis.plot([r.accuracy for r in runs], [place] * len(runs), "o", color="tab:blue", markersize=4)
    axis.axvline(_mean([r.before for r in results]), color="grey", linestyle="--", label="before")
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("greedy accuracy, held out")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    names = sorted(path.stem for path in BASELINES.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help="baselines (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--teraflops", type=float, default=10.0, help="budget of one run (default: %(default)s, the quickstart's)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "evidence", help="folder of the runs")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "evidence.md")
    parser.add_argument("--report", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    results, missing = [], []
    for seed in arguments.seeds:  # all methods with one seed first: a page is possible early
        for name in arguments.only:
            folder = arguments.out / f"{name}-{arguments.teraflops:g}-seed-{seed}"
            if not arguments.report and read(name, seed, folder) is None:
                steps = steps_for(name, arguments.teraflops * 1e12)
                print(f"{name} seed {seed}: {steps} steps", flush=True)
                run(name, seed, steps, folder)
            found = read(name, seed, folder)
            if found is None:
                missing.append(f"{name} seed {seed}")
            else:
                results.append(found)
    arguments.page.write_text(page(results, arguments.teraflops, missing), encoding="utf-8")
    if results:
        draw(results, arguments.page.with_name("evidence.png"))
    print(f"{len(results)} runs in {arguments.page}" + (f"; not finished: {', '.join(missing)}" if missing else ""))


if __name__ == "__main__":
    main()
