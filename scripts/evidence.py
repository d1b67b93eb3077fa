"""Methods against each other on the embedded task, with several seeds, at equal arithmetic; and a page of what came of it.

    python scripts/evidence.py                       # runs what is missing, then writes docs/evidence.md and .csv, and pictures
    python scripts/evidence.py --only joint rl --seeds 0 1 --teraflops 1 --out runs/try --page runs/try/evidence.md
    python scripts/evidence.py --report              # the page alone, from the runs that are there

Every run begins from the same student, which is made first (minutes). Each gets as many steps as its plan (``gkd-rl train --dry-run``)
says the budget pays for; the page gives what the runs themselves counted of generation, teacher and student. A run that is there is not
repeated, one that was cut off continues. The work of writing the teacher's answers, which ``seqkd`` and ``f_distill`` learn from, is part
of their budget.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence_arms import ARMS, BY_NAME, COMMON, ROOT, SOLVED, Arm
from evidence_page import write_page
from evidence_results import EVALUATED, TEMPERATURES, UNCOUNTED, read_results, write_csv
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gkd_rl.config.load import load_config
from gkd_rl.plan.plan import plan

REFERENCE = BY_NAME["on_policy_gkd"]
BUILD = ROOT / "scripts" / "build_embedded_models.py"
PRETRAINING = ("--student-problems", "60000", "--student-steps", "600")
"""Problems of one to three operations, each met about once."""
FITTING = (*COMMON[1:], *SOLVED, "sft.examples=1500", "sft.epochs=8", "sft.lr=2e-3")
"""Then those whose solutions are known, until more does not help: 8 and 24 epochs give the same accuracy (docs/experiments.md)."""
EVALUATIONS = {"in_domain": ([1, 2], 500, 1), "diversity": ([1, 2], 125, 4), "harder": ([3], 200, 1), "longer": ([4], 200, 1)}
"""Operations of the held-out problems, how many problems, how many answers sampled to each (one more is greedy). Three operations: what
the student met before it was fitted, and these runs never show; four: what it has never seen."""
AT = (0.25, 0.5, 0.75, 1.0)
"""Temperatures at which four answers to each of 125 problems are sampled."""


@dataclass(frozen=True)
class Place:
    """Where runs are, and with what they are made."""

    out: Path
    teraflops: float
    threads: int

    @property
    def student(self) -> Path:
        return self.out / "student" / "run" / "model"

    def folder(self, arm: str, seed: int) -> Path:
        return self.out / f"{arm}-{self.teraflops:g}-seed-{seed}"

    def lacks(self, arm: Arm, seed: int) -> list[str]:
        """Files of figures that are still to be made."""
        wanted = [EVALUATED, *([TEMPERATURES] if "divergence" in arm.studies else [])]
        return [name for name in wanted if not (self.folder(arm.name, seed) / "run" / name).is_file()]

    def peer(self, arm: Arm) -> str:
        return str(self.folder(arm.needs, 0) / "run" / "model") if arm.needs else ""


def steps_for(arm: Arm, place: Place) -> int:
    """Steps of ``arm`` that the budget pays for, by its plan; at least 1."""
    made = plan(load_config(arm.path, arm.overrides(str(place.student), place.peer(arm))), 1, 1.0, "")
    assert made.step_flops, "all sizes are known"
    return max(1, round(arm.budget * place.teraflops * 1e12 / (made.step_flops + arm.taught * teacher_flops(place))))


def teacher_flops(place: Place) -> float:
    """Of writing one step's rows: with a cache, as many as of reading them, which is what on-policy GKD's teacher does."""
    found = plan(load_config(REFERENCE.path, REFERENCE.overrides(str(place.student), "")), 1, 1.0, "").flops["flops_teacher"]
    assert found, "all sizes are known"
    return found


def run(arm: Arm, seed: int, place: Place) -> bool:
    """Train, or go on training, and evaluate, in processes of their own. Returns whether they reached their end."""
    folder = place.folder(arm.name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "run" / "summary.json").is_file():
        settings = [*arm.overrides(str(place.student), place.peer(arm), steps_for(arm, place)), f"seed={seed}", "resume=auto"]
        settings += [f"run_dir={folder / 'run'}", f"engine.threads={place.threads}"]
        if load_config(arm.path).rollout.completions == "teacher":
            settings.append(f"rollout.completions_dir={folder / 'completions'}")
        if not _call(folder, "-m", "gkd_rl", "train", str(arm.path), *settings):
            return False
    (folder / "run" / UNCOUNTED).write_text(json.dumps({"teacher_flops_per_step": arm.taught * teacher_flops(place)}) + "\n")
    return _evaluate(folder, folder / "run" / "model", place.threads, place.lacks(arm, seed))


def _evaluate(folder: Path, model: Path, threads: int, wanted: list[str]) -> bool:
    return all(_call(folder, __file__, "--evaluate", str(model), "--figures", name, "--threads", str(threads)) for name in wanted)


def _call(folder: Path, *command: str) -> bool:
    with (folder / "output.log").open("a") as log:
        done = subprocess.run([sys.executable, *command], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT)
    return done.returncode == 0


def evaluate_model(model: Path, figures: str, threads: int) -> None:
    """The file ``figures`` beside the folder of ``model``: the same evaluation for every method, whatever it was trained on."""
    if figures == TEMPERATURES:
        found = [{"temperature": at, **_evaluated(model, threads, *EVALUATIONS["diversity"], at)} for at in AT]
    else:
        found = {name: _evaluated(model, threads, *asked) for name, asked in EVALUATIONS.items()}
    partial = model.parent / f"{figures}.part"
    partial.write_text(json.dumps(found) + "\n")
    partial.replace(model.parent / figures)


def _evaluated(model: Path, threads: int, levels: list[int], examples: int, samples: int, temperature: float = 1.0) -> dict[str, Any]:
    import gkd_rl

    settings = [f"task.options={{levels: {levels}}}", f"evaluation.examples={examples}", f"evaluation.samples={samples}"]
    settings += ["evaluation.metrics=[majority_vote, self_bleu, distinct]", f"evaluation.temperature={temperature}"]
    settings += [f"engine.threads={threads}", f"model={model}", f"run_dir={model.parent}", "rollout.max_new_tokens=72"]
    result = gkd_rl.evaluate(load_config(ROOT / "configs" / "arithmetic.yaml", settings))
    return {**result.as_row(), "judged": [int(row["right"]) for row in result.judged]}


def make_student(place: Place) -> None:
    """The student that all runs begin from, fitted to what they train on; it and the teacher are evaluated like the others."""
    out, threads, pretrained = place.out / "student", f"engine.threads={place.threads}", place.out / "student" / "arithmetic-student"
    teacher = place.out / "teacher" / "run"
    for folder in (out, teacher):
        folder.mkdir(parents=True, exist_ok=True)
    if not (teacher / "model").exists():
        (teacher / "model").symlink_to(ROOT / "gkd_rl" / "assets" / "arithmetic-teacher")
    fit = ("-m", "gkd_rl", "sft", str(ROOT / "configs" / "arithmetic.yaml"), f"student.path={pretrained}", *FITTING, threads, "resume=auto")
    evaluate = (__file__, "--threads", str(place.threads), "--figures", EVALUATED, "--evaluate")
    for made, command in (
        (pretrained / "config.json", (str(BUILD), "--only", "student", "--out", str(out), *PRETRAINING)),
        (place.student / "config.json", (*fit, f"run_dir={out / 'run'}")),
        (out / "run" / EVALUATED, (*evaluate, str(place.student))),
        (out / "run" / TEMPERATURES, (*evaluate, str(place.student), "--figures", TEMPERATURES)),
        (teacher / EVALUATED, (*evaluate, str(teacher / "model"))),
    ):
        if not made.is_file() and not _call(out, *command):
            sys.exit(f"{made} was not made; {out / 'output.log'} says why")


def run_all(arms: list[Arm], seeds: list[int], place: Place, jobs: int) -> list[str]:
    """All methods with one seed first: a page is possible early. Returns what failed."""
    missing = [(arm, seed) for seed in seeds for arm in arms if place.lacks(arm, seed)]
    failed: list[str] = []
    columns = (
        TextColumn("runs"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar, ThreadPoolExecutor(jobs) as pool:
        task = bar.add_task("", total=len(missing))

        def one(arm: Arm, seed: int) -> None:
            while arm.needs and not (place.folder(arm.needs, 0) / "run" / EVALUATED).is_file():
                if (BY_NAME[arm.needs], 0) not in missing or f"{arm.needs} seed 0" in failed:
                    break
                time.sleep(1)
            if not run(arm, seed, place):
                failed.append(f"{arm.name} seed {seed}")
            bar.update(task, advance=1, description=f"{arm.name}, seed {seed}")

        for future in [pool.submit(one, arm, seed) for arm, seed in missing]:
            future.result()
    return failed


def main() -> None:
    names = [arm.name for arm in ARMS]
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help="methods (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--teraflops", type=float, default=2.0, help="budget of one run (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=cores, help="runs at once (default: the cores)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "evidence", help="folder of the runs")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "evidence.md")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--evaluate", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--figures", default=EVALUATED, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=0, help="of one run (default: the cores, shared out)")
    arguments = parser.parse_args()
    threads = arguments.threads or max(1, cores // arguments.jobs)
    if arguments.evaluate:
        evaluate_model(arguments.evaluate.absolute(), arguments.figures, threads)
        return
    place = Place(arguments.out.absolute(), arguments.teraflops, threads)
    arms = [BY_NAME[name] for name in arguments.only]
    failed: list[str] = []
    if not arguments.report:
        make_student(place)
        failed = run_all(arms, arguments.seeds, place, arguments.jobs)
    results = read_results(place.out, place.teraflops, [arm.name for arm in arms], arguments.seeds)
    write_csv(arguments.page.with_suffix(".csv"), results)
    write_page(arguments.page, results, place.teraflops)
    print(f"{len(results)} runs in {arguments.page}" + (f"; failed: {', '.join(failed)} (output.log in their folders)" if failed else ""))


if __name__ == "__main__":
    main()
