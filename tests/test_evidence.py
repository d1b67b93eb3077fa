"""The page of evidence: equal budgets, resumption, tables that agree with the runs' figures, and words that stay when it is made anew."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import evidence
import evidence_page
import evidence_results
import pytest
from evidence_arms import ARMS, BY_NAME
from evidence_results import Result

from gkd_rl.config.load import load_config

ROOT = Path(__file__).resolve().parent.parent
STUDENT = str(ROOT / "gkd_rl" / "assets" / "arithmetic-student")
PAGE = ROOT / "docs" / "evidence.md"


def result(name: str, seed: int | None, judged: str, **more) -> Result:
    right = tuple(map(int, judged))
    base = Result(
        name,
        seed,
        30,
        0.1,
        0.7,
        1.2,
        sum(right) / len(right),
        0.25,
        0.125,
        0.5,
        0.75,
        0.5,
        80.0,
        0.5,
        17.5,
        right,
        ((0.0, 0.25), (2.0, 0.5)),
    )
    return replace(base, **more)


def test_every_baseline_takes_part_and_every_method_has_a_valid_configuration():
    assert {arm.config for arm in ARMS if "methods" in arm.studies} == {
        path.stem for path in (ROOT / "configs" / "baselines").glob("*.yaml")
    }
    from gkd_rl.config.validate import validate

    for arm in ARMS:
        validate(load_config(arm.path, arm.overrides(STUDENT, STUDENT, 30)))
    for _, one, other in evidence_page.CLAIMS:
        assert {one, other} <= set(BY_NAME)


def test_a_budget_pays_for_more_steps_of_a_cheaper_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evidence.Place, "student", STUDENT)
    names = ("on_policy_gkd", "sft", "rl", "on_policy_gkd_long")
    steps = {name: evidence.steps_for(BY_NAME[name], evidence.Place(tmp_path, 2, 1)) for name in names}
    assert steps["on_policy_gkd"] == pytest.approx(30, abs=1)
    assert steps["sft"] > 1.5 * steps["on_policy_gkd"], "no teacher, no sampling"
    assert evidence.steps_for(BY_NAME["on_policy_gkd_long"], evidence.Place(tmp_path, 2, 1)) == pytest.approx(
        5 * steps["on_policy_gkd"], abs=3
    )
    assert evidence.steps_for(BY_NAME["rl"], evidence.Place(tmp_path, 1e-9, 1)) == 1


def test_half_of_the_steps_distil_and_half_reward():
    config = load_config(BY_NAME["distil_then_rl"].path, BY_NAME["distil_then_rl"].overrides(STUDENT, "", 30))
    schedule = config.objective.alpha_schedule
    assert (config.objective.alpha, schedule.kind, schedule.start_step, schedule.end) == (1, "step", 15, 0)


def test_differences_are_paired_by_seed_and_problem():
    one, other = [result("a", s, "1100110011") for s in (0, 1)], [result("b", s, "1000110011") for s in (0, 1, 2)]
    middle, low, high = evidence_results.difference(one, other)
    assert middle == pytest.approx(0.1) and low == 0.0 and 0.2 <= high <= 0.4
    assert evidence_results.difference(one, [replace(run, name="b") for run in one]) == (0, 0, 0)


def test_figures_survive_their_table(tmp_path: Path):
    kept = [result("student", None, "0101", curve=()), result("joint", 0, "1101", reverse_kl=0.123456), result("joint", 1, "0001")]
    evidence_results.write_csv(tmp_path / "table.csv", kept)
    read = evidence_results.read_csv(tmp_path / "table.csv")
    assert read == [kept[0], replace(kept[1], reverse_kl=0.12346), kept[2]]


def test_the_page_is_made_anew_between_its_marks_alone(tmp_path: Path):
    page = tmp_path / "page.md"
    runs = [result("student", None, "0100"), result("joint", 0, "1100"), result("on_policy_gkd", 0, "1000"), result("rl", 0, "1111")]
    evidence_page.write_page(page, runs, 2)
    page.write_text(page.read_text().replace("## Claims\n", "## Claims\n\nIn words of ours.\n"))
    evidence_page.write_page(page, [*runs, result("joint", 1, "1101"), result("on_policy_gkd", 1, "1000")], 2)
    text = page.read_text()
    assert "In words of ours." in text and text.count("<!-- made: methods -->") == 1
    methods = text.split("<!-- made: methods -->")[1].split("<!-- end -->")[0]
    assert [line.split("|")[1].strip(" `") for line in methods.strip().splitlines()[2:]] == ["student", "rl", "joint", "on_policy_gkd"]
    assert "| 0.625 (" in methods and "0.500 0.750" in methods
    assert "`joint` − `on_policy_gkd` | +0.375 (" in text and "| 2 | not shown |" in text
    assert (tmp_path / "images" / "evidence-frontier.png").is_file()


def test_samples_at_several_temperatures_are_means_over_seeds_and_survive_the_file(tmp_path: Path):
    warmer = ((0.5, 0.75, 90.0), (1.0, 0.5, 80.0)), ((0.5, 0.25, 70.0), (1.0, 0.5, 60.0))
    runs = [result("reverse_kl", seed, "1100", temperatures=at) for seed, at in enumerate(warmer)]
    evidence_results.write_csv(tmp_path / "figures.csv", runs)
    assert evidence_results.read_csv(tmp_path / "figures.csv") == runs
    assert evidence_page.temperatures(runs).splitlines()[2] == "| `reverse_kl` | 0.500 | 0.500, 80.0 | 0.500, 70.0 |"


def test_the_published_page_says_what_the_published_figures_say():
    results = evidence_results.read_csv(PAGE.with_suffix(".csv"))
    text = PAGE.read_text(encoding="utf-8")
    budget = float(text.split(" TFLOP of generation, teacher and student")[0].rsplit(" ", 1)[-1])
    for name, content in evidence_page.parts(results, budget).items():
        assert evidence_page.block(name, content) in text, name
    with PAGE.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert float(row["accuracy"]) == pytest.approx(row["judged"].count("1") / len(row["judged"]), abs=1e-5)


@pytest.mark.slow
def test_runs_that_are_there_are_not_repeated(tmp_path: Path):
    """A budget of one step; the second call finds the run and writes the same page."""
    (tmp_path / "runs" / "student" / "run").mkdir(parents=True)
    (tmp_path / "runs" / "student" / "run" / "model").symlink_to(STUDENT)
    command = [sys.executable, str(ROOT / "scripts" / "evidence.py"), "--only", "sft", "--seeds", "0", "--teraflops", "0.001"]
    command += ["--out", str(tmp_path / "runs"), "--page", str(tmp_path / "page.md")]
    (tmp_path / "runs" / "student" / "arithmetic-student").symlink_to(STUDENT)
    left = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == 0 and "3 runs in" in done.stdout, done.stderr
        (summary,) = (tmp_path / "runs").glob("sft-*/run/summary.json")
        assert json.loads(summary.read_text())["steps"] == 1
        left.append((summary.stat().st_mtime_ns, (tmp_path / "page.md").read_text()))
    assert left[0] == left[1]
