"""The way of somebody who has just cloned the repository: quickstart, own outputs graded, an own ablation, a report of it all."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FEW = ("max_steps=2", "rollout.prompts_per_step=8", "evaluation.examples=16", "evaluation.every=0", "evaluation.teacher=false")
OUTPUTS = [
    {"question": "Ben has 48 pens and gets 24 more.", "answer": "48+24=72\n#### 72", "output": "48+24=72\n#### 72"},
    {"question": "Clara loses 8 of 100 coins.", "answer": "100-8=92\n#### 92", "output": "100-8=93, so the answer is 93."},
    {"question": "A book of $1,250 in 4 parts?", "answer": "1250/4=312.5\n#### 312.5", "output": "Each part is $312.50."},
    {"question": "How many shells?", "answer": "#### 12", "output": "I do not know."},
]
SWEEP = """\
base: configs/arithmetic.yaml
run_dir: runs/mine
ablation:
  grid: {objective.divergence.beta: [0.1, 0.9]}
  seeds: [3]
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / ".git").exists():
        pytest.skip("these sources are no repository that could be cloned")
    folder = tmp_path_factory.mktemp("newcomer") / "gkd-rl"
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    return folder


@pytest.fixture(scope="module")
def type_(clone: Path) -> Callable[..., str]:
    """``type_(*words)``: ``gkd-rl`` of the clone, in the clone; what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "GKD_RL_DATA"}
    environment |= {"PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}

    def type_(*words: str) -> str:
        found = subprocess.run([sys.executable, "-m", "gkd_rl", *words], cwd=clone, env=environment, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        return found.stdout

    return type_


def _rollouts(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_way_of_a_newcomer(clone: Path, type_: Callable[..., str]):
    (quickstart,) = re.findall(r"gkd-rl (train configs/\S+)$", (clone / "Makefile").read_text(), flags=re.MULTILINE)
    said = type_(*quickstart.split(), *FEW, "log_rollouts_every=1")
    assert "greedy accuracy" in said and "runs/quickstart/report.html" in said
    first = clone / "runs" / "quickstart"
    assert {path.name for path in first.iterdir()} >= {
        "config.yaml",
        "metrics.jsonl",
        "rollouts.jsonl",
        "summary.json",
        "model",
        "report.html",
    }
    assert len(_rollouts(first)) == 16

    (clone / "outputs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in OUTPUTS))
    graded = json.loads(
        type_("grade", "outputs.jsonl", "--reference-field", "answer", "--completion-field", "output", "--out", "graded.jsonl", "--json")
    )
    assert (graded["n"], graded["correct"], graded["wrong"], graded["no_answer"], graded["accuracy"]) == (4, 2, 1, 1, 0.5)
    verdicts = [json.loads(line)["verdict"] for line in (clone / "graded.jsonl").read_text().splitlines()]
    assert verdicts == ["correct", "wrong", "correct", "no_answer"]

    (clone / "sweep.yaml").write_text(SWEEP)
    type_("ablate", "sweep.yaml", *FEW, "log_rollouts_every=1")
    with (clone / "runs" / "mine" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["objective.divergence.beta"], row["seed"]) for row in rows] == [("0.1", "3"), ("0.9", "3")]
    assert (clone / "runs" / "mine" / "best.yaml").is_file()

    runs = ["runs/quickstart", *sorted(str(Path(row["run_dir"])) for row in rows)]
    type_("report", *runs, "--out", "compared.html")
    page = (clone / "compared.html").read_text()
    (data,) = re.findall(r'<script[^>]*id="data"[^>]*>(.*?)</script>', page, flags=re.DOTALL)
    shown = json.loads(data)["runs"]
    assert [Path(run["name"]).name for run in shown] == [Path(run).name for run in runs]
    assert [sum(chunk["rows"] for chunk in run["chunks"]) for run in shown] == [16, 16, 16]
    assert "default-src 'none'" in page and "Content-Security-Policy" in page


def test_a_clone_holds_what_the_package_needs():
    """What is untracked here would be missing there."""
    if not (ROOT / ".git").exists():
        pytest.skip("these sources are no repository")
    found = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assets = [str(path.relative_to(ROOT)) for path in (ROOT / "gkd_rl" / "assets").rglob("*") if path.is_file()]
    configs = [str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")]
    assert assets and not set(assets + configs) - set(found)
