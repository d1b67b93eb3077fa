"""A run and its life: opened, assembled, resumed or evaluated for a start, finished. The loop between is in ``training.py``."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gkd_rl.build import Parts, build_engine, build_parts
from gkd_rl.checkpoint import Checkpoints, look_on_main
from gkd_rl.config.run import Config
from gkd_rl.console import PhaseTimes, Terminal
from gkd_rl.engine import Engine
from gkd_rl.errors import UserError
from gkd_rl.evaluation.dataset_loss import dataset_loss
from gkd_rl.evaluation.evaluate import Evaluation
from gkd_rl.learner import Learner
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.models.lora import has_lora, merged, save_adapter
from gkd_rl.objective.schedule import ScoreHistory
from gkd_rl.processes import Processes
from gkd_rl.rollout.ahead import Ahead
from gkd_rl.rollout.buffer import SamplingBuffer
from gkd_rl.rollout.sampler import InProcessSampler
from gkd_rl.run_folder import RunFolder
from gkd_rl.scoring import reward_usage
from gkd_rl.tracking.trackers import Trackers
from gkd_rl.watch import Watch


@dataclass
class Run:
    """What the loop works with."""

    config: Config
    processes: Processes
    parts: Parts
    engine: Engine
    learner: Learner
    buffer: SamplingBuffer
    history: ScoreHistory
    watch: Watch
    folder: RunFolder | None
    """None on all but the main process"""
    terminal: Terminal
    trackers: Trackers
    times: PhaseTimes
    ahead: Ahead | None = None
    """Samples the next step's answers meanwhile, where that is asked for."""
    load: dict[str, float] = field(default_factory=dict)
    """Of the last step on this rank: share of padding in its micro-batches, and MiB of the buffer."""
    micro_batch_tokens: int = 0
    """``engine.micro_batch_tokens``, or what is left of it once memory has run out."""
    most_rewarded: list[dict[str, Any]] = field(default_factory=list)
    """This rank's answers of the last step that were rewarded most."""
    bad_updates: int = 0
    """Updates in a row, up to now, that were skipped because they were not finite."""


def open_folder(config: Config, processes: Processes) -> RunFolder | None:
    """The main process opens the folder; all ranks learn whether that failed, and fail together."""
    folder, problem = None, None
    if processes.is_main:
        folder = RunFolder(Path(config.run_dir))
        try:
            folder.open(config.resume)
        except UserError as error:
            problem = str(error)
    problem = processes.gather(problem)[0]
    if problem:
        raise UserError(problem)
    _require_shared(config, processes, folder)
    return folder


def _require_shared(config: Config, processes: Processes, folder: RunFolder | None) -> None:
    """Raise ``UserError`` unless all ranks see the main process's folder: every one of them writes its part of a checkpoint there."""
    if processes.count == 1:
        return
    mark = processes.gather(None if folder is None else folder.mark())[0]
    blind = processes.gather(None if RunFolder.mark_in(Path(config.run_dir)) == mark else platform.node())
    if any(blind):
        if folder is not None:
            folder.abandon()
        rank = next(number for number, host in enumerate(blind) if host)
        raise UserError(
            f"run_dir {config.run_dir} of rank {rank} on {blind[rank]} is not that of the main process on another host; put it on a file "
            "system that all hosts share"
        )


def parts_of(config: Config, processes: Processes, folder: RunFolder | None) -> Parts:
    """The parts of the run; where they cannot be made, the folder that was opened for it is given up."""
    try:
        return build_parts(config, processes)
    except BaseException:
        if folder is not None:
            folder.abandon()
        raise


def finished(config: Config) -> dict[str, Any] | None:
    """The summary of a run that is to be continued but has nothing left to do."""
    path = Path(config.run_dir) / "summary.json"
    if config.resume != "auto" or not path.is_file():
        return None
    summary = json.loads(path.read_text())
    return summary if summary["steps"] == config.max_steps else None


def assemble(config: Config, processes: Processes, parts: Parts, folder: RunFolder | None, terminal: Terminal, trackers: Trackers) -> Run:
    torch.manual_seed(config.seed)
    for note in parts.notes:
        terminal.say(note)
    times = PhaseTimes(torch.cuda.synchronize if processes.device.type == "cuda" else lambda: None)
    return Run(
        config=config,
        processes=processes,
        parts=parts,
        engine=build_engine(config, processes, parts.student, times),
        learner=Learner(parts.student, config.objective, logged_choices=config.log_top_choices),
        buffer=SamplingBuffer(
            config.rollout.max_staleness,
            int(parts.student.tokenizer.pad_token_id),  # pyright: ignore[reportArgumentType]
            device=torch.device("cpu") if config.rollout.buffer_device == "cpu" else None,
            most_bytes=config.rollout.buffer_gib * 2**30,
        ),
        history=ScoreHistory(),
        watch=Watch(config.watch, min(config.evaluation.during_examples, len(parts.held_out))),
        folder=folder,
        terminal=terminal,
        trackers=trackers,
        times=times,
        micro_batch_tokens=config.engine.micro_batch_tokens,
    )


def start_or_resume(run: Run) -> tuple[int, dict[str, Any]]:
    """Number of finished steps, and what the summary holds so far."""
    checkpoints = Checkpoints(Path(run.config.run_dir), run.config.checkpoint.keep)
    found, passed = look_on_main(checkpoints, run.processes) if run.config.resume == "auto" else (None, [])
    for sentence in passed:
        run.terminal.say(sentence)
    if found is not None:
        place, state = found
        heads = [None if part is None else part.head for part in (run.parts.teaching.teacher, run.parts.reference)]
        checkpoints.restore(place, run.engine, run.buffer, run.ahead, *heads, ranks=state["ranks"])
        if run.parts.teaching.averages:
            run.parts.teaching.load_state_dict(checkpoints.teachers(place, run.engine))
        run.history.load_state_dict(state["history"])
        run.watch.load_state_dict(state["watch"])
        with run.engine.gathered():
            run.parts.sampler.sync(state["step"])
        if run.folder is not None:
            run.folder.rewind(state["positions"])
        run.terminal.say(f"resumed from {place} ({state['step']} of {run.config.max_steps} steps done)")
        if state["ranks"] != run.processes.count:
            run.terminal.say(
                f"it was written by {state['ranks']} processes, and there are {run.processes.count} now: sums are taken in another order, "
                "so the last digits will differ from those of a run that was not cut off"
            )
        step, summary = state["step"], state["summary"]
        run.processes.together(lambda: run.trackers.start(step, continued=True))
    else:
        if run.folder is not None:
            run.folder.rewind({})
        run.processes.together(lambda: run.trackers.start(0, continued=False))
        step, summary = 0, evaluate_before(run)
    run.trackers.log_evaluation(0, evaluation_figures(summary["before"]))
    return step, summary


def evaluate_before(run: Run) -> dict[str, Any]:
    parts, summary = run.parts, {}
    with run.times.phase("evaluate"), run.engine.gathered(), run.terminal.bar("evaluating before", 2) as bar:
        if (model := parts.teaching.model) is not None and run.config.evaluation.teacher:
            sampler = InProcessSampler(model, run.config.rollout.sampling_rows, run.processes.device)
            summary["teacher"] = _row(parts.evaluator(model, sampler, parts.held_out))
            summary["teacher"]["parameters"] = model.parameters
        bar.advance()
        parts.sampler.sync(0)
        before = parts.evaluator(parts.student, parts.evaluation_sampler, parts.held_out, parts.teaching.judge)
        summary["before"] = _row(before)
        _observe_loss(run)
        bar.advance()
    if run.folder is not None:
        _keep_answers(run.folder, "evaluation-before.jsonl", before)
    run.history.observe(before.score(run.config.evaluation.score))
    run.watch.accuracies.append(before.accuracy)
    return summary


def evaluate_during(run: Run) -> dict[str, float]:
    with run.times.phase("evaluate"), run.engine.gathered():
        examples = run.parts.held_out[: run.config.evaluation.during_examples]
        result = run.parts.evaluator(run.parts.student, run.parts.evaluation_sampler, examples, run.parts.teaching.judge)
        losses = _observe_loss(run)
    run.history.observe(result.score(run.config.evaluation.score))
    return {f"eval_{name}": value for name, value in {**evaluation_figures(result.as_row()), **losses}.items()}


def _observe_loss(run: Run) -> dict[str, float]:
    """Where the share of sampled rows goes by it: the loss on the dataset's completions of the examples of evaluations during training."""
    config = run.config
    if config.rollout.on_policy_schedule.kind != "adaptive":
        return {}
    examples, budget = run.parts.held_out[: config.evaluation.during_examples], 4 * config.engine.micro_batch_tokens
    loss = dataset_loss(run.parts.student, examples, config.rollout.max_new_tokens, budget, run.processes)
    run.history.losses.append(loss)
    return {"dataset_loss": loss}


def evaluation_figures(row: Mapping[str, Any]) -> dict[str, float]:
    """What of an evaluation is drawn over the steps."""
    figures = {name: row[name] for name in ("accuracy", "reward", "divergence", "reverse_kl", "length")} | row["metrics"]
    return {name: value for name, value in figures.items() if value is not None}


def finish(run: Run, summary: dict[str, Any], started: float) -> dict[str, Any]:
    """Final evaluation, model, summary, picture."""
    config, parts = run.config, run.parts
    with run.times.phase("evaluate"), run.engine.gathered():
        after = parts.evaluator(parts.student, parts.evaluation_sampler, parts.held_out, parts.teaching.judge)
        if run.folder is not None:
            save_student(parts.student, run.folder.path)
    whole = {
        "accuracy_before": summary["before"]["accuracy"],
        "accuracy_after": after.accuracy,
        "accuracy_teacher": summary.get("teacher", {}).get("accuracy"),
        "seconds": time.perf_counter() - started,
        "steps": config.max_steps,
        "alpha": config.objective.alpha,
        "parameters": parts.student.parameters,
        "trained_parameters": parts.student.trained_parameters,
        "phase_seconds": run.times.seconds,
        **summary,
        "after": _row(after),
    }
    if asked := reward_usage(parts.rewards, run.processes):
        whole["judges"] = asked
    if run.folder is not None:
        _keep_answers(run.folder, "evaluation-after.jsonl", after)
        run.folder.write("summary.json", json.dumps(whole, indent=2))
    run.trackers.log_evaluation(config.max_steps, evaluation_figures(whole["after"]))
    run.processes.close()
    return whole


def save_student(student: LanguageModel, folder: Path) -> None:
    """``model/`` in Hugging Face form, an adapter merged into it, and ``adapter/`` in peft's form where there is one."""
    save_model(student, folder / "model", folder / "adapter")


def save_model(student: LanguageModel, folder: Path, adapter: Path) -> None:
    """The student in Hugging Face form, an adapter merged into it, in ``folder``; the adapter alone, where there is one, in ``adapter``."""
    with merged(student.module):
        student.module.save_pretrained(folder)
    student.tokenizer.save_pretrained(folder)
    if has_lora(student.module):
        save_adapter(student.module, adapter)


def _keep_answers(folder: RunFolder, name: str, evaluation: Evaluation) -> None:
    """The greedy answer to each held-out example, and whether it was right."""
    folder.write(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in evaluation.judged))


def _row(evaluation: Evaluation) -> dict[str, Any]:
    return {**evaluation.as_row(), "tokens_per_second": evaluation.tokens / evaluation.seconds}
