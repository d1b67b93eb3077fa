"""The command line as a user meets it: real processes, tiny models made on the spot, real rows where the data is there."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from workbench import Models, Outcome, build_models, problems, write_config


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Environment of every process started here: one thread, no model hub, no data but what a test names."""
    fixed = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "200"}
    return {**{name: value for name, value in os.environ.items() if name != "GKD_RL_DATA"}, **fixed}


@pytest.fixture(scope="session")
def start(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``start(*arguments, launcher=[...])``: ``python -m gkd_rl`` in a process of its own, ended with the session at the latest.

    ``launcher`` comes after the interpreter, ``module`` says to it what to start.
    """
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: Any, launcher: tuple[str, ...] = (), module: str = "-m") -> subprocess.Popen[str]:
        command = [sys.executable, *launcher, module, "gkd_rl", *map(str, arguments)]
        interruptible = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def run(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., Outcome]:
    """``run(*arguments)``: the command in a process of its own, to its end."""

    def run(*arguments: Any, launcher: tuple[str, ...] = (), module: str = "-m") -> Outcome:
        process = start(*arguments, launcher=launcher, module=module)
        out, err = process.communicate(timeout=1200)  # pytest's own limit ends what hangs in the fast tier
        return Outcome(process.returncode, out, err)

    return run


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """``cli(*arguments)``: the command within this process, for what is too small to be worth a start."""
    import torch

    from gkd_rl.cli import main

    monkeypatch.delenv("GKD_RL_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "200")

    def cli(*arguments: Any) -> Outcome:
        capsys.readouterr()
        threads = torch.get_num_threads()
        try:
            with pytest.raises(SystemExit) as leaving:
                main([str(argument) for argument in arguments])
        finally:
            torch.set_num_threads(threads)
        said = capsys.readouterr()
        return Outcome(int(leaving.value.code or 0), said.out, said.err)

    return cli


@pytest.fixture
def refused(cli: Callable[..., Outcome]) -> Callable[..., str]:
    """``refused(*arguments)``: the one line with which a command that cannot work ends."""

    def refused(*arguments: Any) -> str:
        outcome = cli(*arguments)
        assert outcome.status == 2, outcome
        assert outcome.err.startswith("gkd-rl: ") and outcome.err.count("\n") == 1, outcome.err
        assert outcome.out == "", outcome.out
        return outcome.err.removeprefix("gkd-rl: ").rstrip("\n")

    return refused


@pytest.fixture
def refused_run(refused: Callable[..., str], small: Path, tmp_path: Path) -> Callable[..., str]:
    """``refused_run(*overrides, command="train")``: the one line of a run that cannot start, of which no folder is left."""

    def refused_run(*overrides: str, command: str = "train") -> str:
        said = refused(command, small, f"run_dir={tmp_path / 'run'}", *overrides)
        assert not (tmp_path / "run").exists()
        return said

    return refused_run


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Random models and their tokenizers, made once per session."""
    return build_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder in GSM8K's form with generated problems."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 24), ("test", 12)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems(split, count)))
    return folder


@pytest.fixture(scope="session")
def gsm8k() -> Path:
    """The real GSM8K's folder; tests that need it are skipped where it is absent."""
    named = os.environ.get("GKD_RL_DATA")
    folder = Path(named or ".") / "gsm8k"
    if named is None or not (folder / "test.jsonl").is_file():
        pytest.skip("GKD_RL_DATA names no folder with gsm8k/test.jsonl")
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, models: Models, data: Path) -> Path:
    """Configuration of a run of seconds: generated problems in GSM8K's form, random models."""
    settings = {
        "max_steps": 2,
        "data_dir": str(data),
        "student": {"path": str(models.student)},
        "teacher": {"path": str(models.teacher)},
        "task": {"path": "gkd_rl.tasks.gsm8k.Gsm8kTask", "max_prompt_tokens": 900},
        "rollout": {"prompts_per_step": 3, "per_prompt": 2, "max_new_tokens": 10},
        "objective": {"alpha": 0.5},
        "optimizer": {"lr": 1e-3, "schedule": "constant"},
        "engine": {"threads": 1},
        "evaluation": {"examples": 4, "during_examples": 2},
        "checkpoint": {"every": 0},
    }
    return write_config(tmp_path_factory.mktemp("configs") / "small.yaml", settings)


@pytest.fixture(scope="session")
def arithmetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configuration of a short run on the embedded task and models, where answers are sometimes right: both terms have gradients."""
    settings = {
        "max_steps": 6,
        "student": {"path": "embedded:arithmetic-student"},
        "teacher": {"path": "embedded:arithmetic-teacher"},
        "task": {"max_prompt_tokens": 160},
        "rollout": {
            **{"prompts_per_step": 6, "per_prompt": 2, "max_new_tokens": 48},
            **{"on_policy_share": 0.6, "passes": 2, "updates_per_pass": 2},
        },
        "objective": {"alpha": 0.5, "advantage": {"kind": "batch"}},
        "optimizer": {"lr": 5e-4, "schedule": "constant"},
        "engine": {"threads": 1},
        "evaluation": {"examples": 6, "during_examples": 4, "every": 3},
        "checkpoint": {"every": 2, "keep": 3},
    }
    return write_config(tmp_path_factory.mktemp("configs") / "arithmetic.yaml", settings)
