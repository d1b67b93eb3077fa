"""The names of ``gkd_rl`` itself, used as a reader of the documentation would."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gkd_rl

ROOT = Path(__file__).resolve().parents[1]
NAMES = (
    *("ArithmeticVerifier", "Config", "Evaluation", "UserError", "evaluate", "fused_objective", "grade", "load_config"),
    *("token_divergence", "train", "unified_objective", "validate"),
)


def test_the_names_are_these_and_types_know_them_too():
    assert sorted(gkd_rl.__all__) == sorted(NAMES)
    stub = (ROOT / "gkd_rl" / "__init__.pyi").read_text()
    assert sorted(re.findall(r"as (\w+)$", stub, flags=re.MULTILINE)) == sorted(NAMES)
    assert all(callable(getattr(gkd_rl, name)) and name in dir(gkd_rl) for name in NAMES)
    with pytest.raises(AttributeError, match="no attribute 'trian'; it has ArithmeticVerifier, Config"):
        _ = gkd_rl.trian  # pyright: ignore


def test_importing_the_package_imports_no_torch():
    code = "import sys, gkd_rl; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_run_an_evaluation_a_divergence_and_a_verdict(tmp_path: Path):
    from gkd_rl import ArithmeticVerifier, evaluate, load_config, token_divergence, train

    small = [
        f"run_dir={tmp_path / 'run'}",
        "max_steps=1",
        "rollout.prompts_per_step=8",
        "evaluation.examples=8",
        "evaluation.teacher=false",
    ]
    config = load_config(ROOT / "configs" / "arithmetic.yaml", small)
    summary = train(config)
    result = evaluate(config)
    assert result.accuracy == summary["accuracy_after"] and 0 <= result.accuracy_low <= result.accuracy <= result.accuracy_high <= 1

    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    torch.testing.assert_close(token_divergence(student, teacher, kind="forward_kl"), torch.tensor([expected]))
    assert ArithmeticVerifier().verify("so the answer is 72.", "#### 72").status == "correct"


def test_a_mistake_is_one_sentence(tmp_path: Path):
    with pytest.raises(gkd_rl.UserError, match="there is no key 'max_stepz'; the nearest is 'max_steps'"):
        gkd_rl.load_config(ROOT / "configs" / "arithmetic.yaml", ["max_stepz=3"])
