"""``gkd-rl ablate``: every point of a grid once, a failure beside the others."""

from __future__ import annotations

import csv
import fcntl
import json
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pyarrow import parquet
from workbench import Outcome, check_folder

from gkd_rl.ablation.comparison import read_judged
from gkd_rl.config.load import load_config

GRID = [
    "max_steps=2",
    "ablation.parallel=2",
    "ablation.grid={objective.alpha: [0, 1]}",
    "ablation.seeds=[0, 1]",
    "evaluation.teacher=false",
]
NAMES = ["alpha-0_seed-0", "alpha-0_seed-1", "alpha-1_seed-0", "alpha-1_seed-1"]


@pytest.fixture(scope="module")
def ablated(run: Callable[..., Outcome], small: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """Two settings with two seeds each."""
    folder = tmp_path_factory.mktemp("ablation") / "sweep"
    outcome = run("ablate", small, f"run_dir={folder}", *GRID)
    assert outcome.status == 0, outcome.err
    return folder, outcome


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_point_of_the_grid_is_a_row_and_a_whole_run(ablated: tuple[Path, Outcome]) -> None:
    folder, _ = ablated
    rows = _rows(folder)
    assert [(row["objective.alpha"], row["seed"]) for row in rows] == [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")]
    assert [Path(row["run_dir"]).name for row in rows] == NAMES
    for row in rows:
        metrics, _, summary = check_folder(Path(row["run_dir"]), steps=2)
        assert metrics[0]["divergence_weight"] == float(row["objective.alpha"])
        assert float(row["accuracy"]) == summary["accuracy_after"] and float(row["reverse_kl"]) > 0
    assert (folder / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_has_a_line_for_each_setting(ablated: tuple[Path, Outcome]) -> None:
    lines = [line for line in ablated[1].out.splitlines() if "│ alpha=" in line]
    assert len(lines) == 2 and all("±" in line for line in lines)
    assert sum("the best" in line for line in lines) == 1 and any(" * " in line for line in lines)


def test_every_run_says_a_line_when_it_ends(ablated: tuple[Path, Outcome]) -> None:
    lines = [line for line in ablated[1].out.splitlines() if "  seed=" in line]
    assert len(lines) == 4 and all(" s  accuracy " in line for line in lines)


def test_single_answers_are_kept_and_add_up_to_the_accuracy(ablated: tuple[Path, Outcome]) -> None:
    for row in _rows(ablated[0]):
        judged = read_judged(Path(row["run_dir"]))
        assert len(judged) == 4 and sum(judged.values()) / 4 == float(row["accuracy"])


def test_the_parquet_file_holds_the_same_rows(ablated: tuple[Path, Outcome]) -> None:
    table = parquet.read_table(ablated[0] / "results.parquet").to_pylist()
    assert [{name: str(value) for name, value in row.items()} for row in table] == _rows(ablated[0])


def test_the_page_of_the_sweep_leads_to_those_of_its_runs(ablated: tuple[Path, Outcome]) -> None:
    folder, outcome = ablated
    assert f"report     {folder / 'report.html'}" in outcome.out.replace("\n", "")
    found = re.search(r'id="data">(.*?)</script>', (folder / "report.html").read_text(), flags=re.DOTALL)
    assert found
    runs = [run for setting in json.loads(found.group(1))["settings"] for run in setting["runs"]]
    assert [run["report"] for run in runs] == [f"{name}/report.html" for name in NAMES]
    assert all((folder / run["report"]).is_file() for run in runs)
    assert [str(run["accuracy"]) for run in runs] == [row["accuracy"] for row in _rows(folder)]


def test_the_best_setting_is_a_configuration_of_its_own(ablated: tuple[Path, Outcome]) -> None:
    folder, outcome = ablated
    best = load_config(folder / "best.yaml")
    accuracy = {alpha: sum(float(r["accuracy"]) for r in _rows(folder) if float(r["objective.alpha"]) == alpha) for alpha in (0, 1)}
    assert best.objective.alpha == max(accuracy, key=lambda alpha: accuracy[alpha]) and best.max_steps == 2
    assert best.run_dir == str(folder / "best") and best.ablation.grid == {}
    assert f"gkd-rl train {folder / 'best.yaml'}" in outcome.out.replace("\n", "")


def test_all_runs_start_from_one_student(ablated: tuple[Path, Outcome]) -> None:
    assert len({row["accuracy_before"] for row in _rows(ablated[0])}) == 1


def test_finished_runs_are_not_repeated_and_a_failure_is_reported_beside_them(ablated, cli, small: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(ablated[0], tmp_path / "sweep")
    broken = folder / NAMES[3]
    shutil.rmtree(broken)
    broken.mkdir()
    written = {name: (folder / name / "summary.json").stat().st_mtime_ns for name in NAMES[:3]}
    with (broken / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        outcome = cli("ablate", small, f"run_dir={folder}", *GRID)
    assert outcome.status == 1
    assert f"failed     alpha=1 seed=1: gkd-rl: run_dir {broken} is in use by another run" in outcome.out
    assert [Path(row["run_dir"]).name for row in _rows(folder)] == NAMES[:3]
    assert {name: (folder / name / "summary.json").stat().st_mtime_ns for name in NAMES[:3]} == written
    assert (folder / "frontier.png").is_file()


def test_runs_made_with_other_settings_are_not_taken_for_these(ablated, cli, small: Path) -> None:
    one = ["ablation.grid={objective.alpha: [0]}", "ablation.seeds=[0]"]
    outcome = cli("ablate", small, f"run_dir={ablated[0]}", *GRID, *one, "optimizer.lr=0.5")
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert "every run failed; the first one ended with" in outcome.err and "holds a run with optimizer.lr=0.001, not 0.5" in outcome.err


@pytest.mark.slow
def test_runs_are_submitted_as_jobs_and_one_that_fails_is_reported(ablated, run, small: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(ablated[0], tmp_path / "sweep")
    for name in NAMES[2:]:
        shutil.rmtree(folder / name)
        (folder / name).mkdir()
    with (folder / NAMES[2] / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        outcome = run("ablate", small, f"run_dir={folder}", *GRID, "--slurm", "cluster=local,timeout_min=5")
    assert outcome.status == 1, outcome.err
    assert f"failed     alpha=1 seed=0: gkd-rl: run_dir {folder / NAMES[2]} is in use by another run" in outcome.out
    assert [Path(row["run_dir"]).name for row in _rows(folder)] == [*NAMES[:2], NAMES[3]]
    assert (folder / NAMES[3] / "metrics.jsonl").read_bytes() == (ablated[0] / NAMES[3] / "metrics.jsonl").read_bytes()
    jobs = json.loads((folder / "jobs" / "jobs.json").read_text())
    assert list(jobs) == NAMES[2:] and jobs[NAMES[3]]["command"][-4:-2] == ["objective.alpha=1", "seed=1"]


@pytest.mark.slow
def test_runs_that_share_their_first_batch_are_those_that_sample_it_themselves(ablated, run, small: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    outcome = run("ablate", "--share-rollouts", small, f"run_dir={sweep}", *GRID, "ablation.seeds=[1]")
    assert outcome.status == 0, outcome.err
    assert [path.name for path in (sweep / "first-batches").glob("*.pt")] == ["seed-1.pt"]
    for name in (NAMES[1], NAMES[3]):
        assert load_config(sweep / name / "config.yaml").rollout.first_batch == "../first-batches/seed-1.pt"
        for log in ("metrics.jsonl", "rollouts.jsonl"):
            assert (sweep / name / log).read_bytes() == (ablated[0] / name / log).read_bytes()
    assert load_config(sweep / "best.yaml").rollout.first_batch is None


def test_a_grid_that_names_a_run_twice_is_refused(refused, small: Path, tmp_path: Path) -> None:
    said = refused("ablate", small, f"run_dir={tmp_path / 'sweep'}", "ablation.grid={objective.alpha: [0, 1]}", "ablation.seeds=[0, 0]")
    assert "name a run twice" in said
    assert not (tmp_path / "sweep").exists()


def test_a_terminated_sweep_leaves_no_run_behind(start: Callable, small: Path, tmp_path: Path) -> None:
    process = start("ablate", small, f"run_dir={tmp_path / 'sweep'}", *GRID, "max_steps=1000", "ablation.parallel=1")
    metrics = tmp_path / "sweep" / NAMES[0] / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and err == "gkd-rl: terminated; resume=auto continues from the newest checkpoint\n"
    with (metrics.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while the run holds it
