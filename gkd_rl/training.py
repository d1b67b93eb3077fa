"""The loop: sample, score, update, evaluate, keep. One step of it is one screen.

One run: ``train(config)``. The student's samples are judged once by the rewards and once by the teacher; the objective turns both
into one gradient. (GKD with RL, Agarwal et al. 2024, eq. 5.)
"""

from __future__ import annotations

import json
import math
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from gkd_rl.checkpoint import Checkpoints, require_same_run
from gkd_rl.collect import collect, judge_step
from gkd_rl.config.load import config_to_yaml
from gkd_rl.config.run import Config, OptimizerConfig
from gkd_rl.config.tracking import require_trackers
from gkd_rl.config.validate import validate
from gkd_rl.console import PhaseTimes, Terminal
from gkd_rl.errors import Stopped, UserError
from gkd_rl.faults import guarded_update
from gkd_rl.objective.schedule import weights_at
from gkd_rl.objective.telemetry import summarise
from gkd_rl.processes import Processes
from gkd_rl.progress import watched_by
from gkd_rl.rollout.ahead import Ahead
from gkd_rl.run import Run, assemble, evaluate_during, finish, finished, open_folder, parts_of, start_or_resume
from gkd_rl.run_folder import RunFolder, environment
from gkd_rl.run_log import rollout_rows
from gkd_rl.samples import show_completions
from gkd_rl.signals import StopRequest
from gkd_rl.tracking.trackers import Trackers
from gkd_rl.watch import SHOWN, most_rewarded


def train(config: Config) -> dict[str, Any]:
    """Run ``config`` to its end; returns what ``RUN_DIR/summary.json`` holds. Raises ``UserError`` for what a user can mend."""
    validate(config)
    require_trackers(config.trackers)
    processes = Processes(config.engine.threads, config.engine.timeout)
    folder, terminal = open_folder(config, processes), Terminal(processes.is_main)
    trackers = Trackers(config, folder, terminal.say)
    try:
        require_same_run(config, processes.count)
        with watched_by(terminal):
            return _train(config, processes, folder, terminal, trackers)
    except RuntimeError as error:
        if lost := processes.lost(error):
            names = " and ".join(map(str, lost))
            raise UserError(f"rank {names} was lost, so the others stop; resume=auto continues from the newest checkpoint") from error
        raise
    finally:
        trackers.finish()
        if folder is not None:
            folder.close()


def _train(config: Config, processes: Processes, folder: RunFolder | None, terminal: Terminal, trackers: Trackers) -> dict[str, Any]:
    """The run itself, in the folder that the main process holds."""
    started = time.perf_counter()
    if (done := finished(config)) is not None:
        terminal.say(f"run_dir {config.run_dir} holds this run, finished after {done['steps']} steps; a larger max_steps continues it")
        processes.close()
        return done
    parts = parts_of(config, processes, folder)
    run = assemble(config, processes, parts, folder, terminal, trackers)
    if folder is not None:
        if note := folder.begin(config.resume):
            terminal.say(note)
        folder.write("config.yaml", config_to_yaml(config))
        folder.write("environment.json", json.dumps(environment(), indent=2))
    if config.rollout.overlap:
        beside = replace(run, times=PhaseTimes())  # the thread's own clock
        run.ahead = Ahead(lambda step: judge_step(beside, step))
    first, summary = start_or_resume(run)
    checkpoints = Checkpoints(Path(config.run_dir), config.checkpoint.keep, config.checkpoint.keep_best)
    live = {"accuracy": summary["before"]["accuracy"]}
    with StopRequest() as request, terminal.bar("training", config.max_steps, first) as bar:
        for step in range(first, config.max_steps):
            begun = time.perf_counter()
            figures = _step(run, step)
            done = step + 1
            if config.evaluation.every and done % config.evaluation.every == 0 and done < config.max_steps:
                figures |= evaluate_during(run)
            _log(run, figures)
            stop = request.agreed(processes)
            suspicion = _watched(run, figures)
            if stop or suspicion or (config.checkpoint.every and done % config.checkpoint.every == 0) or done == config.max_steps:
                with run.times.phase("checkpoint"):
                    if run.ahead is not None:
                        run.processes.together(run.ahead.settle)
                    state: dict[str, Any] = {"history": run.history.state_dict(), "watch": run.watch.state_dict(), "summary": summary}
                    state["score"] = figures.get(f"eval_{config.evaluation.score}")
                    checkpoints.save(done, run.engine, run.buffer, run.ahead, folder, state, run.parts.teaching.state_dict())
            live |= _beside(figures, time.perf_counter() - begun)
            bar.advance(1, _told(figures), live)
            if suspicion and config.watch.action == "stop":
                raise UserError(f"{suspicion}. watch.action=stop ends the run here; the step is kept, and resume=auto goes on from it")
            if stop and done < config.max_steps:
                raise Stopped(stop, f"{signal.Signals(stop).name} after step {done} of {config.max_steps}; resume=auto continues there")
    return finish(run, summary, started)


def _step(run: Run, step: int) -> dict[str, float]:
    """One step: a batch of rollouts, judged and trained on."""
    config, learner = run.config, run.learner
    experience, figures = collect(run, step)
    show_completions(run, step, experience)
    run.processes.together(lambda: run.buffer.add(experience, step, config.rollout.per_prompt))
    run.most_rewarded = most_rewarded(experience)
    learner.weights = run.watch.weights(weights_at(config.objective, step, config.max_steps, run.history))
    lr = learning_rate(config.optimizer, step, config.max_steps)
    record = run.config.log_rollouts_every and step % run.config.log_rollouts_every == 0
    learner.sums, learner.records, updates = {}, [] if record else None, []
    with run.times.phase("batching"):  # and what is not the student's or the optimiser's of an update
        groups = sorted({group for part in run.processes.gather(run.buffer.groups()) for group in part})
        for number, part in enumerate(run.buffer.updates(config.rollout.passes, config.rollout.updates_per_pass, step, groups)):
            if number == config.rollout.updates_per_pass:
                learner.records, kept = None, learner.records
                _write_rollouts(run, step, kept)
            updates.append(guarded_update(run, part, step, number, lr))
    if learner.records is not None:
        _write_rollouts(run, step, learner.records)
    if run.parts.teaching.averages:
        with run.times.phase("teacher"), run.engine.gathered():
            run.parts.teaching.follow(run.parts.student)
    if run.ahead is None:
        with run.times.phase("sync"), run.engine.gathered():
            run.parts.sampler.sync(step + 1)
    run.load = {"padding_share": sum(padding for _, padding in updates) / len(updates), "buffer_mib": run.buffer.bytes / 2**20}
    norms = [norm for norm, _ in updates if norm is not None]
    sums = run.processes.sum({name: learner.sums[name] for name in sorted(learner.sums)})
    sums = {name: value / len(norms) if name.endswith("_loss") else value for name, value in sums.items()}  # each update has its own mean
    skipped = len(updates) - len(norms)
    return {
        "step": step + 1,
        "lr": lr,
        "reward_weight": learner.weights.reward,
        "divergence_weight": learner.weights.divergence,
        "grad_norm": sum(norms) / len(norms) if norms else math.nan,
        **({"skipped_updates": float(skipped)} if skipped else {}),
        **figures,
        **(summarise(sums) if norms else {"loss": math.nan}),
    }


def _watched(run: Run, figures: dict[str, float]) -> str | None:
    """What looks like reward hacking, said once with the answers that show it."""
    found = run.watch.observe(figures)
    if found is None:
        return None
    rows = [row for part in run.processes.gather(run.most_rewarded) for row in part]
    rows = sorted(rows, key=lambda row: -row["reward"])[:SHOWN]
    if run.folder is not None:
        run.folder.append("watch.jsonl", [{"step": figures["step"], "found": found, "most_rewarded": rows}])
    said = f"this looks like reward hacking: {found}"
    examples = "".join(f"\n  rewarded with {row['reward']:.3g}: {_shortened(row['completion'])}" for row in rows)
    raised = f"\n  α is at least {run.config.watch.alpha:g} from here on" if run.config.watch.action == "raise_alpha" else ""
    run.terminal.say(f"{said}; see watch.jsonl in {run.config.run_dir}{examples}{raised}")
    return said


def _shortened(text: str, most: int = 160) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= most else text[:most] + "...")


def learning_rate(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """Rate of update ``step`` (from 0): linear warm-up, then constant, linear or cosine down to ``end_share``·lr."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / (config.warmup_steps + 1)
    share = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
    fall = {"constant": 1.0, "linear": 1.0 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}[config.schedule]
    return config.lr * (config.end_share + (1 - config.end_share) * fall)


def _log(run: Run, figures: dict[str, float]) -> None:
    if run.folder is not None:
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        run.folder.append("metrics.jsonl", [finite])
        run.folder.append("timings.jsonl", [{"step": figures["step"], **run.times.seconds, **run.load}])
        run.trackers.log_figures(finite)


def _told(figures: dict[str, float]) -> dict[str, float]:
    """What of a step is said in a line."""
    names = {"reward": "reward", "divergence": "divergence", "eval_accuracy": "accuracy", "length": "length"}
    return {short: figures[name] for name, short in names.items() if name in figures}


def _beside(figures: dict[str, float], seconds: float) -> dict[str, float]:
    """What stands beside the bar: held-out accuracy, until the next evaluation, and tokens trained on per second of the step."""
    accuracy = {"accuracy": figures["eval_accuracy"]} if "eval_accuracy" in figures else {}
    return accuracy | {"tokens/s": figures.get("tokens", 0.0) / seconds}


def _write_rollouts(run: Run, step: int, records) -> None:
    rows = [row for part in run.processes.gather(rollout_rows(step + 1, records or [])) for row in part]
    if run.folder is not None:
        run.folder.append("rollouts.jsonl", sorted(rows, key=lambda row: row["example"]))
