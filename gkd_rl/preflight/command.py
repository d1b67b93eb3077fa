"""``gkd-rl check CONFIG``: all checks in the order of their cost, as lines or as one JSON object."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence

from gkd_rl.config.load import load_config
from gkd_rl.config.run import Config
from gkd_rl.config.tracking import require_trackers
from gkd_rl.config.validate import validate
from gkd_rl.console import Terminal
from gkd_rl.errors import UserError
from gkd_rl.preflight.finding import Check, Checked, Finding, Unavailable, failed, run_check
from gkd_rl.preflight.judging import references, rewards
from gkd_rl.preflight.numbers import finite_steps, own_teacher, sampler_agrees, served_agrees, student_loads, teacher_loads
from gkd_rl.preflight.places import data, disk_space, folders, memory, model_files
from gkd_rl.preflight.trial import Trial
from gkd_rl.preflight.words import configured_ends, ends, prompt_lengths, tokenizers
from gkd_rl.processes import quiet_libraries
from reward_models.errors import InputError

Look = Callable[[Trial], Finding]

QUICK: dict[str, Look] = {
    "model files": model_files,
    "data": data,
    "folders": folders,
    "disk space": disk_space,
    "memory": memory,
    "tokenizers": tokenizers,
    "end of answers": ends,
    "lengths": prompt_lengths,
    "references": references,
    "rewards": rewards,
}
"""Checks that load neither student nor teacher (a reward that is a model is loaded)."""

WITH_MODELS: dict[str, Look] = {
    "student": student_loads,
    "teacher": teacher_loads,
    "sampler and trainer": sampler_agrees,
    "served and local teacher": served_agrees,
    "student as its own teacher": own_teacher,
    "gradients": finite_steps,
}

BEFORE_TRAINING: dict[str, Look] = {"disk space": disk_space, "memory": memory, "end of answers": configured_ends}
"""What a run does not find out by itself before its first step."""


def check(path: str, overrides: Sequence[str], quick: bool, as_json: bool, ranks: int | None) -> int:
    """Check the configuration at ``path``; prints what was found and returns the exit status: 1 where something failed."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("gkd-rl check is one process; start it without a launcher, and say --ranks N for a run of N")
    if ranks is not None and ranks < 1:
        raise UserError(f"--ranks is {ranks}; it must be at least 1")
    quiet_libraries()
    terminal = Terminal(not as_json)
    done: list[Checked] = []

    def look(one: Check) -> None:
        done.append(run_check(one))
        terminal.say(line_of(done[-1]))

    found: list[Config] = []
    look(Check("configuration", lambda: _configuration(path, overrides, found)))
    if found:
        trial = Trial(found[0], ranks or 1)
        try:
            for name, finds in (QUICK if quick else {**QUICK, **WITH_MODELS}).items():
                look(Check(name, lambda finds=finds: finds(trial)))
        finally:
            trial.close()
    count = {status: sum(one.status == status for one in done) for status in ("pass", "warn", "fail", "skip")}
    if as_json:
        print(json.dumps({"config": path, "counts": count, "checks": [one.as_json() for one in done]}))
    terminal.say(f"{count['pass']} passed, {count['warn']} to look at, {count['fail']} failed, {count['skip']} had nothing to check")
    return int(failed(done))


def _configuration(path: str, overrides: Sequence[str], found: list[Config]) -> Finding:
    """Reads the configuration into ``found``, then validates it: one with a wrong setting can be checked on."""
    found.append(load_config(path, overrides))
    validate(found[0])
    require_trackers(found[0].trackers)
    return Finding("pass", f"{path} is valid")


def before_training(config: Config, ranks: int) -> None:
    """What of a run that is about to start would come to light late: said where it is doubtful.

    What makes a check itself impossible (a model that is not there) is left to the run, which says it at its own place. Raises
    ``UserError`` with the first failure.
    """
    terminal, trial = Terminal(), Trial(config, ranks)
    for name, finds in BEFORE_TRAINING.items():
        try:
            found = finds(trial)
        except (UserError, InputError, Unavailable):
            continue
        if found.status == "fail":
            raise UserError(f"{name}: {found.detail}; {found.fix}")
        if found.status == "warn":
            terminal.say(f"{name}: {found.detail}; {found.fix}")


def line_of(line: Checked) -> str:
    """A line for the terminal, and one below it with what to do."""
    fix = f"\n{'':<6}→ {line.fix}" if line.fix else ""
    return f"{line.status:<5} {line.name}: {line.detail}{fix}"
