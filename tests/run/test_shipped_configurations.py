"""Every configuration that is shipped can be planned: it is read, resolved and valid. No model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gkd_rl.config.load import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BASES = {"t5.yaml", "decoder.yaml"}
"""What others of their folder are based on, without models or a task of their own."""
ALL = sorted(path for path in CONFIGS.rglob("*.yaml") if path.name not in BASES and not path.name.startswith("reward_model"))
PAPER = [path for path in ALL if path.parent.name == "paper"]
TABLE = {  # steps, batch, rate, warm-up, tokens in and out, teacher's temperature: the paper's, by task
    "t5_xsum": (40_000, 32, 1e-3, 2000, 1024, 64, 1.0),
    "t5_xsum_base": (40_000, 32, 3e-4, 2000, 1024, 64, 1.0),
    "t5_xsum_large": (40_000, 32, 3e-4, 2000, 1024, 64, 1.0),
    "t5_wmt": (100_000, 32, 3e-4, 5000, 80, 80, 1.0),
    "t5_wmt_base": (100_000, 32, 3e-4, 5000, 80, 80, 1.0),
    "t5_wmt_large": (100_000, 32, 3e-4, 5000, 80, 80, 1.0),
    "t5_gsm8k": (40_000, 32, 3e-4, 2000, 512, 320, 0.1),
    "t5_gsm8k_base": (40_000, 32, 3e-4, 2000, 512, 320, 0.1),
    "t5_gsm8k_large": (40_000, 32, 3e-4, 2000, 512, 320, 0.1),
    "t5_instruction": (50_000, 128, 1e-4, 0, 2048, 256, 1.0),
}


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_shipped_configuration_can_be_planned(cli, path: Path) -> None:
    outcome = cli("train", path, "--dry-run", "--json", "--flops-per-second=4e14", "--ranks=8")
    assert outcome.status == 0, outcome.err
    made = json.loads(outcome.out)
    if path.parent.name == "paper":
        assert made["step"]["flops_generation"] > 1e11, "sizes are known, or given"
    assert made["steps"] > 0


@pytest.mark.parametrize("name", TABLE)
def test_the_papers_numbers_are_in_its_configurations(name: str) -> None:
    config = load_config(CONFIGS / "paper" / f"{name}.yaml")
    optimizer, task, rollout = config.optimizer, config.task, config.rollout
    found = (config.max_steps, rollout.prompts_per_step * rollout.per_prompt, optimizer.lr, optimizer.warmup_steps)
    assert (*found, task.max_prompt_tokens, rollout.max_new_tokens, config.objective.divergence.teacher_temperature) == TABLE[name]
    assert optimizer.kind == "adafactor" and rollout.on_policy_share == 1 and config.objective.alpha == 1


def test_runs_of_the_paper_have_folders_of_their_own() -> None:
    folders = [load_config(path).run_dir for path in PAPER]
    assert len(set(folders)) == len(folders) >= 17
