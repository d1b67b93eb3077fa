"""Translation and summarization with small encoder-decoder models made from scratch: what a teacher, a reward and both are worth.

    python scripts/evidence_text.py                                   # whatever is missing, then docs/evidence-text.md's tables (hours)
    python scripts/evidence_text.py --task translation --seeds 0 --methods sft joint_0.5
    python scripts/evidence_text.py --report                          # tables and picture alone, from the runs that are there

It reads the data folder that GKD_RL_DATA names. For each task it fits a tokenizer, a teacher and a student (``text_models.py``), continues
the student by each method with each seed as ``gkd-rl train`` does, and evaluates all of them on held-out rows. Each run has as many steps
as its plan says that the budget pays for. What is there is not made again; a run that was cut off continues.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import text_models
import text_page
import text_results
import text_rows
import torch
import yaml
from transformers import PreTrainedTokenizerBase

from gkd_rl.config.load import load_config
from gkd_rl.config.run import Config
from gkd_rl.models.language_model import LanguageModel, load_language_model
from gkd_rl.models.tokenizers import completion_tokens, load_tokenizer, prompt_tokens
from gkd_rl.plan.plan import plan
from gkd_rl.tasks.base import make_task
from gkd_rl.training import train

ROOT = Path(__file__).resolve().parent.parent


WATCHED = 200
"""Training rows that teacher and initial student do not see: their loss is printed."""


@dataclass(frozen=True)
class Study:
    """One task: its data, its models and the budget of a run."""

    name: str
    path: str
    """of the task's class"""
    options: dict[str, Any]
    rows: Callable[[Path], dict[str, list[text_rows.Row]]]
    tests: tuple[str, ...]
    """parts of ``rows`` that are held out; the first is what methods are compared on"""
    long_prompts: str
    prompt: int
    """tokens at most, like the next"""
    answer: int
    reward: str
    """a metric of ``reward_models.TextMetric``"""
    teacher_steps: int
    student_steps: int
    teraflops: float
    """of one run, generation, teacher and student together"""
    easier: Callable[[list[text_rows.Row]], list[text_rows.Row]]
    """from training rows those on which a decoder learns to copy what it attends to"""
    easier_steps: tuple[int, int]
    """of teacher and student on these, before those on the task's rows"""


TRANSLATION = Study(
    name="translation",
    path="gkd_rl.tasks.translation.TranslationTask",
    options={"template": "{text}", "detokenise_train": False},
    rows=text_rows.translation_rows,
    tests=("test", "ntrex"),
    long_prompts="drop",
    prompt=40,
    answer=40,
    reward="chrf",
    teacher_steps=4500,
    student_steps=2000,
    teraflops=2.0,
    easier=text_rows.with_copied_targets,
    easier_steps=(3000, 0),
)
SUMMARIZATION = Study(
    name="summarization",
    path="gkd_rl.tasks.summarization.SummarizationTask",
    options={"template": "{text}"},
    rows=text_rows.summarization_rows,
    tests=("test",),
    long_prompts="truncate",
    prompt=96,
    answer=40,
    reward="rouge2",
    teacher_steps=600,
    student_steps=100,
    teraflops=1.0,
    easier=text_rows.leading_sentences,
    easier_steps=(2000, 300),
)
STUDIES = {study.name: study for study in (TRANSLATION, SUMMARIZATION)}

_ROWS = ["rollout.on_policy_share=0", "rollout.prompts_per_step=64", "rollout.per_prompt=1"]
METHODS: dict[str, list[str]] = {
    "sft": [*_ROWS, "teacher.path=null", "objective.reward_weight=0", "objective.divergence_weight=0", "objective.cross_entropy_weight=1"],
    "supervised_kd": [*_ROWS, "objective.alpha=1", "objective.divergence.kind=forward_kl", "objective.divergence.rescale=false"],
    "on_policy_gkd": ["objective.alpha=1"],
    "joint_0.5": ["objective.alpha=0.5"],
    "joint_0.1": ["objective.alpha=0.1"],
    "reward": ["objective.alpha=0", "teacher.path=null"],
}
"""Settings over those of ``settings``. ``joint_A``: equation 5 with α = A."""


def settings(study: Study, folder: Path, test: str) -> dict[str, Any]:
    """Configuration that the runs of a task have in common; the four on-policy methods differ in α alone."""
    options = {**study.options, "train": "train.jsonl", "test": f"{test}.jsonl"}
    return {
        "data_dir": str(folder / "data"),
        "student": {"path": str(folder / "student")},
        "teacher": {"path": str(folder / "teacher")},
        "task": {"path": study.path, "options": options, "max_prompt_tokens": study.prompt, "long_prompts": study.long_prompts},
        "rewards": [{"path": "reward_models.TextMetric", "name": study.reward, "options": {"metric": study.reward}}],
        "rollout": {"prompts_per_step": 16, "per_prompt": 4, "max_new_tokens": study.answer, "updates_per_pass": 4},
        "objective": {"divergence": {"kind": "gjsd", "beta": 0.5, "rescale": True}, "advantage": {"kind": "grpo"}},
        "optimizer": {"kind": "muon", "lr": 2e-3, "schedule": "linear", "warmup_steps": 5},
        "engine": {"micro_batch_tokens": 8192},
        "evaluation": {"examples": 2, "teacher": False, "metrics": []},
        "checkpoint": {"every": 50, "keep": 1},
        "log_rollouts_every": 0,
        "resume": "auto",
    }


def configuration(study: Study, folder: Path, test: str = "test") -> Path:
    """The file that holds them."""
    path = folder / f"{test}.yaml"
    path.write_text(yaml.safe_dump(settings(study, folder, test)))
    return path


def prepare(study: Study, folder: Path, data: Path, shorten: float) -> None:
    """Rows, tokenizer, teacher and initial student, whichever are missing. ``shorten`` multiplies the steps."""
    if not (folder / "data").is_dir():
        rows = study.rows(data)
        text_rows.write(rows, folder / "all")
        text_models.fit_tokenizer(text_rows.texts(rows["train"]), text_models.VOCABULARY).save_pretrained(folder / "tokenizer")
        fitting = {number for number, _ in _pairs(study, folder, "all/train")}
        rows["train"] = [row for number, row in enumerate(rows["train"]) if number in fitting]
        rows["easier"] = study.easier(rows["train"][WATCHED:])
        text_rows.write(rows, folder / "data")
    tokenizer = load_tokenizer(str(folder / "tokenizer"), "tokenizer")
    pairs = [pair for _, pair in _pairs(study, folder, "data/train")]
    for number, (kind, steps) in enumerate({"teacher": study.teacher_steps, "student": study.student_steps}.items(), 1):
        if not (folder / kind / "config.json").is_file():
            print(f"{study.name}: {kind}, {len(pairs) - WATCHED} training rows", flush=True)
            model = _unfitted(kind, folder, tokenizer)
            if first := round(study.easier_steps[number - 1] * shorten):
                easier = [pair for _, pair in _pairs(study, folder, "data/easier")]
                text_models.fit(model, easier, first, seed=number, watched=pairs[:WATCHED])
            text_models.fit(model, pairs[WATCHED:], max(1, round(steps * shorten)), seed=number, watched=pairs[:WATCHED])
            text_models.save(model, folder / kind)


def _unfitted(kind: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    if kind == "teacher":
        return text_models.new_teacher(tokenizer, seed=1)
    return text_models.smaller(load_language_model(str(folder / "teacher"), "teacher.path"))


def _pairs(study: Study, folder: Path, rows: str) -> list[tuple[int, text_models.Pair]]:
    """Number and tokens of each row in the file ``rows`` of which both sides fit the study's limits."""
    config = load_config(configuration(study, folder))
    config.task.options |= {"train": str(folder / f"{rows}.jsonl"), "test": str(folder / f"{rows}.jsonl")}
    tokenizer = load_tokenizer(str(folder / "tokenizer"), "tokenizer")
    task = make_task(config)
    assert task.train_size is not None
    found = []
    for number in range(task.train_size):
        example = task.train_example(number)
        prompt, completion = prompt_tokens(tokenizer, example.prompt), completion_tokens(tokenizer, example, None)
        if len(completion) <= study.answer and (len(prompt) <= study.prompt or study.long_prompts == "truncate"):
            found.append((number, (prompt[: study.prompt], completion)))
    return found


def steps_for(config: Config, teraflops: float) -> int:
    """Steps that the budget pays for, by the run's plan; at least 1."""
    work = plan(config, 1, 1.0, "").step_flops
    assert work, "the models are in local folders"
    return max(1, round(teraflops * 1e12 / work))


def run(study: Study, method: str, seed: int, folder: Path, teraflops: float, threads: int) -> Path:
    """Train, or go on training, with what is said on the way in ``output.log``; returns the model's folder."""
    where = folder / f"{method}-seed-{seed}"
    if not (where / "run" / "summary.json").is_file():
        where.mkdir(parents=True, exist_ok=True)
        base = configuration(study, folder)
        given = [*METHODS[method], f"run_dir={where / 'run'}", f"seed={seed}", f"engine.threads={threads}"]
        steps = steps_for(load_config(base, given), teraflops)
        print(f"{study.name}: {method}, seed {seed}, {steps} steps", flush=True)
        with (where / "output.log").open("a") as log, redirect_stdout(log):
            train(load_config(base, [*given, f"max_steps={steps}"]))
    return where / "run" / "model"


def judge(study: Study, model: Path, folder: Path, arguments: argparse.Namespace) -> None:
    """Evaluate ``model`` on every held-out part of the task; the file of each part goes to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for test in study.tests:
        path = folder / f"{test}.json"
        if not path.is_file():
            main_test = test == study.tests[0]
            given = [f"evaluation.samples={arguments.samples if main_test else 1}", f"evaluation.examples={arguments.examples}"]
            config = load_config(
                configuration(study, folder.parent, test), [*given, "evaluation.metrics=null", f"engine.threads={arguments.threads}"]
            )
            text_results.save(text_results.evaluate(config, model, study.reward), path)


def work(study: Study, arguments: argparse.Namespace) -> None:
    """Everything of a task that is not there yet: one seed of all methods first, so that tables are possible early."""
    folder = arguments.out / study.name
    folder.mkdir(parents=True, exist_ok=True)
    prepare(study, folder, Path(os.environ["GKD_RL_DATA"]), arguments.shorten)
    for kind in ("teacher", "student"):
        judge(study, folder / kind, folder / f"{kind}-itself", arguments)
    for seed in arguments.seeds:
        for method in arguments.methods:
            model = run(study, method, seed, folder, study.teraflops * arguments.shorten, arguments.threads)
            judge(study, model, folder / f"{method}-seed-{seed}", arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=STUDIES, default=list(STUDIES), metavar="TASK", help="default: all")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD", help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=3, help="sampled answers to each held-out row (default: %(default)s)")
    parser.add_argument("--examples", type=int, default=300, help="held-out rows of each test (default: %(default)s)")
    parser.add_argument("--shorten", type=float, default=1.0, metavar="SHARE", help="share of all steps, to try the whole")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "evidence-text", help="folder of models and runs")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "evidence-text.md")
    parser.add_argument("--report", action="store_true", help="train and evaluate nothing")
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    if not arguments.report:
        if not os.environ.get("GKD_RL_DATA"):
            parser.error("the data folder is not known; set GKD_RL_DATA to it")
        torch.set_num_threads(arguments.threads)
        for name in arguments.task:
            work(STUDIES[name], arguments)
    table = arguments.page.with_suffix(".csv")
    lines = [line for name in STUDIES for line in text_page.lines_of(arguments.out / name)]
    text_page.write_table(lines, table)
    text_page.write(text_page.read_table(table), arguments.page)
    print(f"{len(lines)} lines in {table}, tables in {arguments.page}")


if __name__ == "__main__":
    main()
