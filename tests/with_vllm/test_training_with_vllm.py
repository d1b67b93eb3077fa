"""A whole run whose answers vLLM samples: the engine starts under DeepSpeed, follows every update, and the run can be evaluated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tiny_llama import WIDE_HEADS
from tiny_models import build, embedded_tokenizer, save

from gkd_rl.models.language_model import wrap

pytestmark = pytest.mark.vllm


def _gkd_rl(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    command = [sys.executable, *launcher, "-m", "gkd_rl", *arguments]
    return subprocess.run(command, env={**environment, "COLUMNS": "200"}, capture_output=True, text=True, timeout=600)


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    student = save(build("llama", embedded_tokenizer(), 0, **WIDE_HEADS), embedded_tokenizer(), folder / "student")
    vllm = {"eager": True, "kv_cache_gib": 0.1}
    settings = {
        "max_steps": 3,
        "student": {"path": str(student)},
        "rollout": {"prompts_per_step": 8, "per_prompt": 2, "max_new_tokens": 12, "sampler": "vllm", "vllm": vllm},
        "task": {"max_prompt_tokens": 200},
        "objective": {"alpha": 0.5, "surrogate": {"correction": {"kind": "truncate"}}},
        "optimizer": {"lr": 0.01},
        "evaluation": {"examples": 4, "teacher": False},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return folder / "run.yaml"


@pytest.mark.parametrize(("ranks", "zero_stage"), [(1, 0), (2, 3)])
def test_a_run_trains_on_what_vllm_samples(config: Path, ranks: int, zero_stage: int, tmp_path: Path):
    launcher = () if ranks == 1 else ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}")
    done = _gkd_rl("train", str(config), f"run_dir={tmp_path / 'run'}", f"engine.zero_stage={zero_stage}", launcher=launcher)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics, rollouts = _rows(tmp_path / "run" / "metrics.jsonl"), _rows(tmp_path / "run" / "rollouts.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3]
    assert all(row["sampler_correction"] == pytest.approx(1, abs=1e-3) for row in metrics)  # stale weights would show here
    assert [row["version"] for row in rollouts] == [version for version in range(3) for _ in range(16)]


def test_ranks_share_a_server_that_samples_and_one_that_teaches(config: Path, serve: Callable[..., str], tmp_path: Path):
    tokenizer = embedded_tokenizer()
    student, teacher = (wrap(build("llama", tokenizer, seed, **WIDE_HEADS), tokenizer) for seed in (0, 1))
    sampler = serve(student, "--logprobs-mode", "processed_logprobs", window=256)
    taught = serve(teacher, "--max-logprobs", "8", "--served-model-name", "teacher", window=256)
    overrides = [
        f"rollout.vllm.url={sampler}",
        f"teacher.url={taught}",
        "teacher.served_model=teacher",
        "teacher.top_k=8",
        "teacher.path=null",
    ]
    overrides += ["objective.divergence.estimator=top_k", "objective.divergence.top_k=8", f"run_dir={tmp_path / 'run'}"]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = _gkd_rl("train", str(config), *overrides, launcher=launcher)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics, rollouts = _rows(tmp_path / "run" / "metrics.jsonl"), _rows(tmp_path / "run" / "rollouts.jsonl")
    assert all(row["sampler_correction"] == pytest.approx(1, abs=1e-3) for row in metrics)  # stale weights would show here
    assert all(row["divergence"] > 0 for row in metrics)
    assert [row["version"] for row in rollouts] == [version for version in range(3) for _ in range(16)]


def test_without_a_correction_the_reward_term_is_refused(config: Path, tmp_path: Path):
    done = _gkd_rl("train", str(config), f"run_dir={tmp_path / 'run'}", "objective.surrogate.correction.kind=none")
    assert done.returncode != 0 and "draws from another distribution" in done.stderr + done.stdout


def test_a_student_that_vllm_cannot_run_is_refused_in_one_line(config: Path, tmp_path: Path):
    """Its CPU kernels know no heads of width 24."""
    done = _gkd_rl("train", str(config), f"run_dir={tmp_path / 'run'}", "student.path=embedded:arithmetic-student")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "vLLM could not sample: " in done.stderr and "head_dim=24" in done.stderr and "rollout.sampler=native" in done.stderr
