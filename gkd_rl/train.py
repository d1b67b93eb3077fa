"""The loop: sample, score, update, evaluate, keep. One step of it is one screen.

One run: ``train(config)``. The student's samples are judged once by the rewards and once by the teacher; the objective turns both
into one gradient. (GKD with RL, Agarwal et al. 2024, eq. 5.)
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gkd_rl.build import Parts, build_engine, build_parts
from gkd_rl.checkpoint import Checkpoints, require_same_run, state_on_main
from gkd_rl.config.load import config_to_yaml
from gkd_rl.config.run import Config, OptimizerConfig
from gkd_rl.config.validate import needs_teacher, validate
from gkd_rl.console import PhaseTimes, Terminal
from gkd_rl.engine import Engine, Processes
from gkd_rl.errors import UserError
from gkd_rl.evaluation.evaluate import Evaluation
from gkd_rl.learner import Learner, local_counts
from gkd_rl.models.tokenizers import prompt_tokens
from gkd_rl.objective.gate import row_gates
from gkd_rl.objective.schedule import ScoreHistory, weights_at
from gkd_rl.objective.telemetry import summarise
from gkd_rl.rollout.buffer import SamplingBuffer
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.rows import join, micro_batches
from gkd_rl.rollout.sampler import InProcessSampler, dataset_rollouts
from gkd_rl.run_folder import RunFolder, environment
from gkd_rl.run_log import rollout_health, rollout_rows
from gkd_rl.scoring import global_advantages, score_rollouts
from gkd_rl.tasks.base import stream_example
from gkd_rl.types import Example, Experience, GlobalCounts, Rollouts


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
    folder: RunFolder | None
    """None on all but the main process"""
    terminal: Terminal
    times: PhaseTimes


def train(config: Config) -> dict[str, Any]:
    """Run ``config`` to its end; returns what ``RUN_DIR/summary.json`` holds. Raises ``UserError`` for what a user can mend."""
    validate(config)
    processes = Processes(config.engine.threads)
    folder = _open_folder(config, processes)
    try:
        require_same_run(config, processes.count)
        return _train(config, processes, folder)
    finally:
        if folder is not None:
            folder.close()


def _train(config: Config, processes: Processes, folder: RunFolder | None) -> dict[str, Any]:
    """The run itself, in the folder that the main process holds."""
    started = time.perf_counter()
    terminal = Terminal(processes.is_main)
    if (done := _finished(config)) is not None:
        terminal.say(f"run_dir {config.run_dir} holds this run, finished after {done['steps']} steps; a larger max_steps continues it")
        processes.close()
        return done
    parts = _parts(config, processes, folder)
    run = _assemble(config, processes, parts, folder, terminal)
    if folder is not None:
        if note := folder.begin(config.resume):
            terminal.say(note)
        folder.write("config.yaml", config_to_yaml(config))
        folder.write("environment.json", json.dumps(environment(), indent=2))
    first, summary = _start_or_resume(run)
    checkpoints = Checkpoints(Path(config.run_dir), config.checkpoint.keep)
    with terminal.bar("training", config.max_steps) as bar:
        bar.advance(first)
        for step in range(first, config.max_steps):
            figures = _step(run, step)
            done = step + 1
            if config.evaluation.every and done % config.evaluation.every == 0 and done < config.max_steps:
                figures |= _evaluate_during(run)
            _log(run, figures)
            if (config.checkpoint.every and done % config.checkpoint.every == 0) or done == config.max_steps:
                with run.times.phase("checkpoint"):
                    checkpoints.save(
                        done, run.engine, run.buffer, folder, {"history": run.history.state_dict(), "summary": summary}
                    )
            bar.advance(1, _live(figures))
    return _finish(run, summary, started)


def _step(run: Run, step: int) -> dict[str, float]:
    """One step: a batch of rollouts, judged and trained on."""
    config, learner = run.config, run.learner
    experience, figures = _collect(run, step)
    run.buffer.add(experience, step, config.rollout.per_prompt)
    learner.weights = weights_at(config.objective, step, config.max_steps, run.history)
    lr = learning_rate(config.optimizer, step, config.max_steps)
    record = run.config.log_rollouts_every and step % run.config.log_rollouts_every == 0
    learner.sums, learner.records, norms = {}, [] if record else None, []
    with run.times.phase("update"):
        for number, part in enumerate(run.buffer.updates(config.rollout.passes, config.rollout.updates_per_pass, step)):
            if number == config.rollout.updates_per_pass:
                learner.records, kept = None, learner.records
                _write_rollouts(run, step, kept)
            cuts = micro_batches(part, config.engine.micro_batch_tokens) if len(part.rewards) else []
            learner.counts = GlobalCounts(**run.processes.sum(local_counts(cuts, config.objective)))
            norms.append(run.engine.update(cuts, learner.loss, lr))
    if learner.records is not None:
        _write_rollouts(run, step, learner.records)
    run.parts.sampler.sync(step + 1)
    sums = run.processes.sum({name: learner.sums[name] for name in sorted(learner.sums)})
    return {
        "step": step + 1,
        "lr": lr,
        "reward_weight": learner.weights.reward,
        "divergence_weight": learner.weights.divergence,
        "grad_norm": sum(norms) / len(norms),
        **figures,
        **summarise(sums),
    }


def _collect(run: Run, step: int) -> tuple[Experience, dict[str, float]]:
    """This rank's rollouts of ``step`` with rewards, advantages and the teacher's scores."""
    config, parts, times = run.config, run.parts, run.times
    with times.phase("sample"), run.engine.gathered():
        rollouts = _rollouts(run, _examples(run, step))
    with times.phase("reward"):
        rewards, components = score_rollouts(parts.rewards, rollouts)
        advantages = global_advantages(rewards, rollouts.group, config.objective.advantage, run.processes)
    with times.phase("teacher"):
        teacher = parts.teacher.score(rollouts) if parts.teacher is not None and needs_teacher(config) else None
        reference = parts.reference.score(rollouts) if parts.reference is not None else None
    gates = row_gates(rewards, rollouts.group, config.objective.gate)
    experience = Experience(rollouts, rewards, components, advantages, teacher, reference, gates)
    figures = rollout_health(experience, config.rollout.max_new_tokens, run.processes)
    return experience, figures


def _examples(run: Run, step: int) -> list[Example]:
    """This rank's examples of ``step``; the cut over ranks changes nothing of what is drawn."""
    config = run.config
    count = config.rollout.prompts_per_step
    places = range(step * count, (step + 1) * count)
    examples = [stream_example(run.parts.task, i, config.seed, config.task.train_examples) for i in places]
    tokenizer, limit = run.parts.student.tokenizer, config.task.max_prompt_tokens
    kept = [e for e in examples if len(prompt_tokens(tokenizer, e.prompt)) <= limit]
    if (len(kept) < len(examples) and config.task.long_prompts == "error") or not kept:
        raise UserError(
            f"a prompt of step {step + 1} is over task.max_prompt_tokens={limit}; raise it, or set task.long_prompts=drop"
        )
    return run.processes.share(kept)


def _rollouts(run: Run, examples: list[Example]) -> Rollouts:
    """Sampled rows for a share λ of the examples, dataset rows for the others (one coin per example, the same in every rerun)."""
    config, rollout = run.config, run.config.rollout
    sampled = [e for e in examples if _coin(config.seed, e.key) < rollout.on_policy_share]
    others = [e for e in examples if _coin(config.seed, e.key) >= rollout.on_policy_share]
    parts: list[Rollouts] = []
    if sampled or not others:  # a rank may have no examples at all
        params = SamplingParams(rollout.max_new_tokens, rollout.temperature, rollout.top_k, rollout.top_p)
        parts.append(run.parts.sampler.sample(sampled, rollout.per_prompt, params, config.seed))
    if others:
        rows = [example for example in others for _ in range(rollout.per_prompt)]
        parts.append(dataset_rollouts(run.parts.student, rows, rollout.max_new_tokens, run.parts.sampler.version))
    return join(parts, int(run.parts.student.tokenizer.pad_token_id))  # pyright: ignore[reportArgumentType]


def _coin(seed: int, key: int) -> float:
    digest = hashlib.blake2b(f"lambda/{seed}/{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def learning_rate(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """Rate of update ``step`` (from 0): linear warm-up, then constant, linear or cosine down to ``end_share``·lr."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / (config.warmup_steps + 1)
    share = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
    fall = {"constant": 1.0, "linear": 1.0 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}[config.schedule]
    return config.lr * (config.end_share + (1 - config.end_share) * fall)


def _open_folder(config: Config, processes: Processes) -> RunFolder | None:
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
    return folder


def _parts(config: Config, processes: Processes, folder: RunFolder | None) -> Parts:
    """The parts of the run; where they cannot be made, the folder that was opened for it is given up."""
    try:
        return build_parts(config, processes)
    except BaseException:
        if folder is not None:
            folder.abandon()
        raise


def _finished(config: Config) -> dict[str, Any] | None:
    """The summary of a run that is to be continued but has nothing left to do."""
    path = Path(config.run_dir) / "summary.json"
    if config.resume != "auto" or not path.is_file():
        return None
    summary = json.loads(path.read_text())
    return summary if summary["steps"] == config.max_steps else None


def _assemble(config: Config, processes: Processes, parts: Parts, folder: RunFolder | None, terminal: Terminal) -> Run:
    torch.manual_seed(config.seed)
    return Run(
        config=config,
        processes=processes,
        parts=parts,
        engine=build_engine(config, processes, parts.student),
        learner=Learner(parts.student, config.objective),
        buffer=SamplingBuffer(config.rollout.max_staleness, int(parts.student.tokenizer.pad_token_id)),  # pyright: ignore[reportArgumentType]
        history=ScoreHistory(),
        folder=folder,
        terminal=terminal,
        times=PhaseTimes(),
    )


def _start_or_resume(run: Run) -> tuple[int, dict[str, Any]]:
    """Number of finished steps, and what the summary holds so far."""
    checkpoints = Checkpoints(Path(run.config.run_dir), run.config.checkpoint.keep)
    found = state_on_main(checkpoints, run.processes) if run.config.resume == "auto" else None
    if found is not None:
        place, state = found
        heads = [None if part is None else part.head for part in (run.parts.teacher, run.parts.reference)]
        checkpoints.restore(place, run.engine, run.buffer, *heads)
        run.history.load_state_dict(state["history"])
        run.parts.sampler.sync(state["step"])
        if run.folder is not None:
            run.folder.rewind(state["positions"])
        run.terminal.say(f"resumed from {place} ({state['step']} of {run.config.max_steps} steps done)")
        return state["step"], state["summary"]
    if run.folder is not None:
        run.folder.rewind({})
    return 0, _evaluate_before(run)


def _evaluate_before(run: Run) -> dict[str, Any]:
    parts, summary = run.parts, {}
    with run.times.phase("evaluate"), run.engine.gathered(), run.terminal.bar("evaluating before", 2) as bar:
        if parts.teacher is not None and run.config.evaluation.teacher:
            sampler = InProcessSampler(parts.teacher.model, run.config.rollout.sampling_rows)
            summary["teacher"] = _row(parts.evaluator(parts.teacher.model, sampler, parts.held_out))
            summary["teacher"]["parameters"] = parts.teacher.model.parameters
        bar.advance()
        summary["before"] = _row(parts.evaluator(parts.student, parts.sampler, parts.held_out, parts.teacher))
        bar.advance()
    run.history.observe(summary["before"]["accuracy"])
    return summary


def _evaluate_during(run: Run) -> dict[str, float]:
    with run.times.phase("evaluate"), run.engine.gathered():
        examples = run.parts.held_out[: run.config.evaluation.during_examples]
        result = run.parts.evaluator(run.parts.student, run.parts.sampler, examples, run.parts.teacher)
    run.history.observe(result.accuracy)
    figures = {name: getattr(result, name) for name in ("accuracy", "reward", "divergence", "reverse_kl", "length")}
    return {f"eval_{name}": value for name, value in figures.items() if value is not None}


def _row(evaluation: Evaluation) -> dict[str, Any]:
    return {**evaluation.as_row(), "tokens_per_second": evaluation.tokens / evaluation.seconds}


def _log(run: Run, figures: dict[str, float]) -> None:
    if run.folder is not None:
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        run.folder.append("metrics.jsonl", [finite])
        run.folder.append("timings.jsonl", [{"step": figures["step"], **run.times.seconds}])


def _live(figures: dict[str, float]) -> dict[str, float]:
    names = {"reward": "reward", "divergence": "divergence", "eval_accuracy": "accuracy", "length": "length"}
    return {short: figures[name] for name, short in names.items() if name in figures}


def _write_rollouts(run: Run, step: int, records) -> None:
    rows = [row for part in run.processes.gather(rollout_rows(step + 1, records or [])) for row in part]
    if run.folder is not None:
        run.folder.append("rollouts.jsonl", sorted(rows, key=lambda row: row["example"]))


def _finish(run: Run, summary: dict[str, Any], started: float) -> dict[str, Any]:
    """Final evaluation, model, summary, picture."""
    config, parts = run.config, run.parts
    with run.times.phase("evaluate"), run.engine.gathered():
        after = parts.evaluator(parts.student, parts.sampler, parts.held_out, parts.teacher)
        if run.folder is not None:
            parts.student.module.save_pretrained(run.folder.path / "model")
            parts.student.tokenizer.save_pretrained(run.folder.path / "model")
    whole = {
        "accuracy_before": summary["before"]["accuracy"],
        "accuracy_after": after.accuracy,
        "accuracy_teacher": summary.get("teacher", {}).get("accuracy"),
        "seconds": time.perf_counter() - started,
        "steps": config.max_steps,
        "alpha": config.objective.alpha,
        "parameters": parts.student.parameters,
        "phase_seconds": run.times.seconds,
        **summary,
        "after": _row(after),
    }
    if run.folder is not None:
        run.folder.write("summary.json", json.dumps(whole, indent=2))
    run.processes.close()
    return whole
