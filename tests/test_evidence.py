"""The page of evidence: equal budgets, intervals, resumption, and a page from the runs that are there."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "evidence.py"
spec = importlib.util.spec_from_file_location("evidence", SCRIPT)
assert spec is not None and spec.loader is not None
evidence = importlib.util.module_from_spec(spec)
sys.modules["evidence"] = evidence
spec.loader.exec_module(evidence)


def result(name: str, seed: int, accuracy: float, examples: int = 500, **more):
    flops = dict.fromkeys(evidence.PHASES, 1e12)
    return evidence.Result(name, seed, 10, flops, 0.25, accuracy, examples, more.get("reverse_kl"))


def test_a_budget_pays_for_more_steps_of_a_cheaper_method():
    steps = {name: evidence.steps_for(name, 2e12) for name in ("on_policy_gkd", "sft", "rl")}
    assert steps["on_policy_gkd"] == pytest.approx(2e12 / 77.1e9, abs=1)  # the plan of the quickstart's step, docs/training.md
    assert steps["sft"] > 1.5 * steps["on_policy_gkd"], "no teacher, no sampling"
    assert evidence.steps_for("on_policy_gkd", 1.0) == 1


def test_an_interval_holds_the_mean_and_narrows_with_runs_and_examples():
    few = [result("a", seed, accuracy) for seed, accuracy in enumerate((0.4, 0.5, 0.6))]
    low, high = evidence.interval(few)
    assert low < 0.5 < high and 0.1 < high - low < 0.3
    assert (low, high) == evidence.interval(few)
    same = [result("a", seed, 0.5) for seed in range(3)]
    wide, narrow = evidence.interval(same), evidence.interval([result("a", seed, 0.5, 50_000) for seed in range(3)])
    assert wide[1] - wide[0] == pytest.approx(2 * 1.96 * (0.25 / 1500) ** 0.5, rel=0.1)
    assert narrow[1] - narrow[0] < 0.2 * (wide[1] - wide[0])


def test_the_page_orders_methods_and_names_what_is_missing():
    text = evidence.page([result("worse", 0, 0.3), result("better", 0, 0.6, reverse_kl=0.5)], 2, ["rl seed 1"])
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == ["better", "worse"]
    assert "| 1.00, 1.00, 1.00 | 0.600 |" in rows[0] and "| 0.500 |" in rows[0] and "| – |" in rows[1]
    assert "Not finished: rl seed 1." in text


@pytest.mark.slow
def test_runs_that_are_there_are_not_repeated(tmp_path: Path):
    """A budget of one step each; the second call finds both runs and writes the same page."""
    command = [sys.executable, str(SCRIPT), "--only", "sft", "--seeds", "0", "--teraflops", "0.001", "--out", str(tmp_path / "runs")]
    page = tmp_path / "page.md"
    first = subprocess.run([*command, "--page", str(page)], capture_output=True, text=True, timeout=250)
    assert first.returncode == 0 and "sft seed 0: 1 steps" in first.stdout, first.stderr
    (summary,) = (tmp_path / "runs").rglob("summary.json")
    assert json.loads(summary.read_text())["steps"] == 1 and (tmp_path / "evidence.png").is_file()
    made, text = summary.stat().st_mtime_ns, page.read_text()
    second = subprocess.run([*command, "--page", str(page)], capture_output=True, text=True, timeout=250)
    assert second.stdout.startswith("1 runs in") and summary.stat().st_mtime_ns == made and page.read_text() == text
    report = subprocess.run([*command, "--page", str(page), "--report", "--seeds", "0", "1"], capture_output=True, text=True, timeout=250)
    assert "not finished: sft seed 1" in report.stdout
