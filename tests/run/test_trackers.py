"""Trackers get what ``metrics.jsonl`` holds, every step once, whatever befalls the run; and nothing of theirs ends it."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.tracking import TensorBoardTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from workbench import Outcome, check_folder, rows_of

from gkd_rl.config import tracking
from gkd_rl.config.load import load_config
from gkd_rl.config.tracking import PACKAGES
from gkd_rl.tracking.trackers import hyper_parameters

STEPS = 6
ON = "trackers=[tensorboard]"
QUICK = "evaluation.teacher=false"


def drawn(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag → (step, value) of each point that TensorBoard shows of the run in ``folder``."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def logged(folder: Path, summary: dict[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """What should be drawn: the float32 of everything in ``metrics.jsonl``, and the evaluations before and after."""
    points: dict[str, list[tuple[int, float]]] = {}
    for row in rows_of(folder / "metrics.jsonl"):
        for name, value in row.items():
            tag = f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
            if name != "step":
                points.setdefault(tag, []).append((row["step"], float(np.float32(value))))
    for step, row in ((0, summary["before"]), (summary["steps"], summary["after"])):
        for name in ("accuracy", "reward", "divergence", "reverse_kl", "length"):
            points.setdefault(f"eval/{name}", []).append((step, float(np.float32(row[name]))))
    return {tag: sorted(values) for tag, values in points.items()}


REWARD = """
import os, signal
from pathlib import Path
from reward_models import ArithmeticVerifier

def right(prompts, completions, folder, **columns):
    metrics, died = Path(folder, "metrics.jsonl"), Path(folder, "died")
    if not died.exists() and metrics.exists() and len(metrics.read_text().splitlines()) == 4:
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return ArithmeticVerifier()(prompts, completions, **columns)
"""


def dying(folder: Path, *trackers: str) -> list[str]:
    """Settings of a run that kills itself, once, in its fifth step: its trackers have had the fourth, and the checkpoint is the third's."""
    (folder.parent / "right.py").write_text(REWARD)
    reward = f"{{path: '{folder.parent / 'right.py'}:right', options: {{folder: '{folder}'}}}}"
    return [f"run_dir={folder}", f"rewards=[{reward}]", f"trackers=[{','.join(trackers)}]", "checkpoint.every=3"]


@pytest.fixture(scope="module")
def killed(run: Callable[..., Outcome], arithmetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed when its tracker had a step that no checkpoint has."""
    folder = tmp_path_factory.mktemp("tracked") / "run"
    assert run("train", arithmetic, *dying(folder, "tensorboard")).status == -signal.SIGKILL
    return folder


def test_a_killed_and_continued_run_is_drawn_to_the_last_digit_every_step_once(cli, killed: Path, arithmetic: Path) -> None:
    assert [place.name for place in (killed / "checkpoints").glob("step-*")] == ["step-00000003"]
    assert [step for step, _ in drawn(killed)["train/loss"]] == [1, 2, 3, 4]  # of which the last is done again
    outcome = cli("train", arithmetic, *dying(killed, "tensorboard"), "resume=auto")
    assert outcome.status == 0, outcome.err
    _, _, summary = check_folder(killed, STEPS)
    assert drawn(killed) == logged(killed, summary)
    assert len(list((killed / "tensorboard").glob("events.*"))) == 2


def test_the_configuration_is_there_as_hyper_parameters_once(killed: Path) -> None:
    (events,) = (killed / "tensorboard").glob("*/events.*")
    there = EventAccumulator(str(events))
    there.Reload()
    assert "_hparams_/session_start_info" in there.summary_metadata
    started = there.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"objective.divergence.kind" in started and b"gjsd" in started


def test_hyper_parameters_are_single_values_of_every_key_but_the_trackers_own(arithmetic: Path) -> None:
    config = load_config(arithmetic, [ON, "rewards=[{path: reward_models.ArithmeticVerifier, weight: 0.5}]", "objective.alpha=0.25"])
    settings = hyper_parameters(config)
    assert settings["objective.alpha"] == 0.25 and settings["max_steps"] == STEPS and settings["objective.divergence.kind"] == "gjsd"
    assert json.loads(str(settings["rewards"]))[0]["weight"] == 0.5
    assert settings["model"] == "null" and "objective" not in settings
    assert all(isinstance(value, (bool, int, float, str)) for value in settings.values())
    assert not [key for key in settings if key.startswith(("trackers", "tracking"))]


def test_a_tracker_that_joins_later_gets_the_steps_before_it_and_more_steps_go_on(cli, arithmetic: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert cli("train", arithmetic, f"run_dir={folder}", QUICK, "max_steps=2").status == 0
    assert not (folder / "tensorboard").exists() and not (folder / "trackers.json").exists()
    for steps in (3, 4):
        assert cli("train", arithmetic, f"run_dir={folder}", "resume=auto", QUICK, f"max_steps={steps}", ON).status == 0
    _, _, summary = check_folder(folder, 4)
    shown = drawn(folder)
    expected = logged(folder, summary)
    assert [point for point in shown["eval/reward"] if point[0] in (0, 4)] == [
        point for point in expected["eval/reward"] if point[0] in (0, 4)
    ]
    assert [step for step, _ in shown["eval/accuracy"]] == [0, 3, 4]  # the one at two steps is in no log
    for tag in expected:
        assert not tag.startswith("train/") or shown[tag] == expected[tag], tag


def test_a_tracker_that_fails_on_the_way_is_named_once_and_the_run_goes_on(
    cli, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = TensorBoardTracker.log

    def fails_at_two(self: TensorBoardTracker, values: dict, step: int | None = None, **more: Any) -> None:
        if step == 2:
            raise ConnectionError("the server is gone\nand more")
        log(self, values, step, **more)

    monkeypatch.setattr(TensorBoardTracker, "log", fails_at_two)
    outcome = cli("train", small, f"run_dir={tmp_path / 'run'}", ON, QUICK, "max_steps=3")
    assert outcome.status == 0, outcome.err
    said = "tracker tensorboard failed (ConnectionError: the server is gone): the run goes on without it; metrics.jsonl has everything\n"
    assert outcome.out.count("tracker tensorboard") == 1 and said in outcome.out
    check_folder(tmp_path / "run", 3)
    assert [step for step, _ in drawn(tmp_path / "run")["train/loss"]] == [1]


def test_a_tracker_that_cannot_end_well_does_not_end_the_run(cli, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: TensorBoardTracker) -> None:
        raise OSError("no room")

    monkeypatch.setattr(TensorBoardTracker, "finish", fails)
    outcome = cli("train", small, f"run_dir={tmp_path / 'run'}", ON, QUICK, "max_steps=1")
    assert outcome.status == 0 and "tracker tensorboard failed (OSError: no room)" in outcome.out


def test_a_tracker_that_cannot_start_refuses_a_new_run_and_not_one_that_goes_on(cli, small: Path, tmp_path: Path) -> None:
    wrong = [f"run_dir={tmp_path / 'run'}", "tracking.options={tensorboard: {colour: red}}", ON, QUICK, "max_steps=2"]
    outcome = cli("train", small, *wrong)
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert "trackers: tensorboard cannot be started (TypeError: " in outcome.err and "'colour'" in outcome.err
    assert not (tmp_path / "run").exists()
    assert cli("train", small, wrong[0], QUICK, "max_steps=1").status == 0
    outcome = cli("train", small, *wrong, "resume=auto")
    assert outcome.status == 0 and "tracker tensorboard failed (TypeError: " in outcome.out
    check_folder(tmp_path / "run", 2)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["trackers=[tensorbord]"], "trackers names 'tensorbord', which is none that Accelerate has; did you mean tensorboard?"),
        (["trackers=[tensorboard,tensorboard]"], "trackers names one twice"),
        (["tracking.options={wandb: {mode: offline}}"], "tracking.options.wandb is set and trackers does not name wandb"),
        ([ON, "tracking.options={tensorboard: 3}"], "tracking.options.tensorboard is 3; it must be a mapping"),
        ([ON, "tracking.project=''"], "tracking.project is empty"),
    ],
)
def test_settings_that_cannot_be_are_refused(refused_run: Callable[..., str], overrides: list[str], said: str) -> None:
    assert said in refused_run(*overrides)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_tracker_that_is_not_installed_is_refused_before_a_model_is_loaded(
    refused_run: Callable[..., str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    module, package = PACKAGES[name]
    monkeypatch.setattr(tracking, "find_spec", lambda wanted: None if wanted == module else find_spec(wanted))
    said = refused_run(f"trackers=[{name}]", "student.path=nowhere")
    assert said == f"trackers names {name}, which is not installed; pip install {package}, or leave it out of trackers"


def mlflow_points(folder: Path, place: Path) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    run = json.loads((folder / "trackers.json").read_text())["mlflow"]["run"]
    client = MlflowClient()
    assert client.get_run(run).data.params["objective.alpha"] == "0.5"
    return [(point.step, point.value) for point in client.get_metric_history(run, "train/loss")]


def wandb_points(folder: Path, place: Path) -> list[tuple[int, float]]:
    from wandb.proto import wandb_internal_pb2

    points = []
    newest = max(folder.glob("wandb/offline-run-*/*.wandb"))  # what a killed process held in memory is lost: this one has all
    for data in _records(newest.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        points += [(row["_step"], row["train/loss"])] if "train/loss" in row else []
    return points


def _records(data: bytes, block: int = 32768) -> Iterator[bytes]:
    """Records of LevelDB's log format (checksum, length, kind: 4, 2 and 1 bytes; data) behind seven bytes of W&B's own."""
    position, parts = 7, b""
    while position < len(data):
        if block - position % block < 7:
            position += block - position % block
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def trackio_points(folder: Path, place: Path) -> list[tuple[int, float]]:
    import sqlite3

    (base,) = (file for file in place.rglob("*.db") if "tracked" in file.name)
    with sqlite3.connect(base) as rows:
        found = [(step, json.loads(metrics)) for step, metrics in rows.execute("select step, metrics from metrics order by id")]
    return [(step, metrics["train/loss"]) for step, metrics in found if "train/loss" in metrics]


GIVING = """
import os, signal, sys, time
from pathlib import Path
from gkd_rl.config.load import load_config
from gkd_rl.run_folder import RunFolder
from gkd_rl.tracking.trackers import Trackers

done, steps, config = int(sys.argv[1]), int(sys.argv[2]), load_config(sys.argv[3], sys.argv[4:])
folder = RunFolder(Path(config.run_dir))
folder.open("auto")
trackers = Trackers(config, folder, print)
trackers.start(done, continued=done > 0)
for step in range(done + 1, steps + 1):
    folder.append("metrics.jsonl", [{"step": step, "loss": 1 / step}])
    trackers.log_figures({"step": step, "loss": 1 / step})
if not done:
    time.sleep(5)  # they write in threads
    os.kill(os.getpid(), signal.SIGKILL)
trackers.finish()
"""


@pytest.mark.parametrize("kind", ["mlflow", "wandb", "trackio"])
def test_trackers_that_cannot_forget_get_every_step_once(
    kind: str, arithmetic: Path, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process is killed after four steps, of which three are in its checkpoint; another one goes on to the sixth."""
    pytest.importorskip(kind)
    folder, place = tmp_path / "run", tmp_path / "place"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    own = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "TRACKIO_DIR": str(place), "WANDB_SILENT": "true"}
    options = {"wandb": {"mode": "offline"}, "trackio": {"auto_log_cpu": False}}.get(kind, {})
    settings = [
        f"run_dir={folder}",
        f"trackers=[{kind}]",
        f"tracking.options={{{kind}: {json.dumps(options)}}}",
        "tracking.project=tracked",
    ]

    def give(done: int, steps: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", GIVING, str(done), str(steps), str(arithmetic), *settings]
        return subprocess.run(command, env=environment | own, capture_output=True, text=True)

    first = give(0, 4)
    assert first.returncode == -signal.SIGKILL, first
    log = folder / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:3]))
    second = give(3, 6)
    assert second.returncode == 0 and "failed" not in second.stdout, second
    points = {"mlflow": mlflow_points, "wandb": wandb_points, "trackio": trackio_points}[kind](folder, place)
    assert points == [(step, 1 / step) for step in range(1, 7)]
