"""Sampling a step ahead: what it is sampled with, and that nothing of it is lost."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from experiences import examples
from tiny_models import language_model
from workbench import Outcome, rows_of

from gkd_rl.rollout.ahead import Ahead, CopySampler
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.resample import Judged
from gkd_rl.rollout.sampler import InProcessSampler

SETTINGS = [
    "rollout.overlap=true",
    "max_steps=4",
    "checkpoint.every=2",
    "checkpoint.keep=9",
    "evaluation.teacher=false",
    "optimizer.lr=5.0e-3",
]


@pytest.fixture
def whole(cli: Callable[..., Outcome], small: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "whole"
    outcome = cli("train", small, f"run_dir={folder}", *SETTINGS)
    assert outcome.status == 0, outcome.err
    return folder


def test_answers_are_those_of_the_policy_one_step_ago_and_a_resumed_run_has_them_too(whole: Path, cli, small: Path, tmp_path: Path) -> None:
    rollouts = rows_of(whole / "rollouts.jsonl")
    assert all(row["version"] == max(0, row["step"] - 2) for row in rollouts)
    plain = tmp_path / "plain"
    assert cli("train", small, f"run_dir={plain}", *SETTINGS, "rollout.overlap=false").status == 0
    theirs = rows_of(plain / "rollouts.jsonl")
    texts = [[row["completion"] for row in rows if row["step"] == 1] for rows in (rollouts, theirs)]
    assert texts[0] == texts[1]
    second = [[row["logprobs"] for row in rows if row["step"] == 2] for rows in (rollouts, theirs)]
    assert second[0] != second[1]

    cut = shutil.copytree(whole, tmp_path / "cut")
    shutil.rmtree(cut / "checkpoints" / "step-00000004")
    (cut / "summary.json").unlink()
    outcome = cli("train", small, f"run_dir={cut}", *SETTINGS, "resume=auto")
    assert outcome.status == 0 and "2 of 4 steps done" in outcome.out, outcome.err
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert "accuracy_after" in json.loads((cut / "summary.json").read_text())


def test_a_reward_that_raises_ahead_ends_the_run_as_one_that_raises_now(cli, small: Path, tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(
        "calls = []\n\n\ndef late(prompts, completions, **columns):\n    calls.append(1)\n    if len(calls) > 3:\n"
        "        raise ValueError('no more')\n    return [1.0] * len(completions)\n"
    )
    outcome = cli("train", small, f"run_dir={tmp_path / 'run'}", *SETTINGS, "rewards=[{path: '" + f"{tmp_path / 'late.py'}:late" + "'}]")
    assert outcome.status == 2 and "no more" in outcome.err and outcome.err.count("\n") == 1


def test_a_copy_samples_with_the_weights_of_its_last_synchronisation() -> None:
    model = language_model("llama")
    sampler, params = CopySampler(model, 64), SamplingParams(6)
    before = InProcessSampler(model, 64).sample(examples(4), 2, params, 1).texts
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) / 4)
    assert sampler.sample(examples(4), 2, params, 1).texts == before
    sampler.sync(5)
    found = sampler.sample(examples(4), 2, params, 1)
    assert found.texts == InProcessSampler(model, 64).sample(examples(4), 2, params, 1).texts != before
    assert found.version.tolist() == [5] * 8


def _judged(step: int) -> tuple[Judged, int]:
    rollouts = InProcessSampler(language_model("llama"), 64).sample(examples(2), 2, SamplingParams(4), step)
    return Judged(rollouts, torch.arange(4.0), {"a": torch.ones(4)}), 7


def test_work_runs_beside_the_caller_and_what_it_raises_is_raised_when_it_is_taken() -> None:
    go, seen = threading.Event(), []

    def work(step: int) -> Any:
        assert go.wait(20)
        seen.append((step, threading.current_thread() is threading.main_thread()))
        if step == 9:
            raise ValueError("nine")
        return _judged(step)

    ahead = Ahead(work)
    ahead.start(3)
    assert not seen
    go.set()
    assert ahead.take(3)[0].rollouts.texts == _judged(3)[0].rollouts.texts and seen == [(3, False)]
    ahead.take(4)
    assert seen[1] == (4, True)  # nothing had been begun
    ahead.start(9)
    with pytest.raises(ValueError, match="nine"):
        ahead.take(9)


def test_what_was_begun_is_stored_once_it_is_there(tmp_path: Path) -> None:
    ahead = Ahead(_judged)
    assert ahead.state_dict() == {}
    ahead.start(2)
    torch.save(ahead.state_dict(), tmp_path / "state")
    again = Ahead(lambda step: pytest.fail("sampled again"))
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    (mine, replaced), (theirs, _) = again.take(2), ahead.take(2)
    assert replaced == 7 and mine.rollouts.texts == theirs.rollouts.texts and mine.rollouts.examples == theirs.rollouts.examples
    assert torch.equal(mine.rollouts.logprobs, theirs.rollouts.logprobs) and torch.equal(mine.components["a"], torch.ones(4))
