"""``gkd-rl evaluate``: one model on the task's held-out examples."""

from __future__ import annotations

import json
from pathlib import Path

from gkd_rl.build import build_parts
from gkd_rl.config.run import Config
from gkd_rl.config.validate import validate
from gkd_rl.console import Terminal
from gkd_rl.evaluation.evaluate import Evaluation
from gkd_rl.processes import Processes
from gkd_rl.progress import watched_by


def evaluate(config: Config, as_json: bool = False) -> Evaluation:
    """Evaluate ``config.model`` (or the run's final model, or the student) greedily and on ``evaluation.samples`` samples each."""
    validate(config)
    processes = Processes(config.engine.threads)
    terminal = Terminal(processes.is_main and not as_json)
    final = Path(config.run_dir) / "model"
    path = config.model or (str(final) if (final / "config.json").is_file() else config.student.path)
    parts = build_parts(config, processes, path, "model" if config.model else "student.path")
    terminal.say(f"evaluating {path} on {len(parts.held_out)} held-out examples")
    for note in parts.notes:
        terminal.say(note)
    parts.sampler.sync(0)
    judge = None if parts.teaching.averages else parts.teaching.judge  # an average is nothing outside of its run
    with watched_by(terminal):
        result = parts.evaluator(parts.student, parts.evaluation_sampler, parts.held_out, judge, config.evaluation.samples)
    if as_json and processes.is_main:
        print(json.dumps({"model": path, **result.as_row()}))
    terminal.table(str(path), ["", ""], _rows(result))
    processes.close()
    return result


def _rows(result: Evaluation) -> list[tuple[str, str]]:
    rows = [
        ("greedy accuracy", f"{result.accuracy:.3f}"),
        ("  95% interval", f"{result.accuracy_low:.3f} to {result.accuracy_high:.3f}"),
        ("mean reward of samples", f"{result.reward:.3f}"),
        *((f"pass@{k}", f"{value:.3f}") for k, value in result.pass_at.items()),
        *((name.replace("_", " "), f"{value:.3f}") for name, value in result.metrics.items()),
        ("tokens per answer", f"{result.length:.1f}"),
        ("answers cut off", f"{result.truncated:.1%}"),
        ("tokens/s sampled", f"{result.tokens / result.seconds:,.0f}"),
    ]
    if result.divergence is not None:
        rows.append(("divergence to teacher", f"{result.divergence:.4f}"))
    if result.reverse_kl is not None:
        rows.append(("  KL(student‖teacher)", f"{result.reverse_kl:.4f}"))
    return rows
