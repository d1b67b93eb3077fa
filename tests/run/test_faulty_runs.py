"""Runs in which something goes wrong: what is skipped, repeated and kept, and with which sentence a run ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import failing_work
import pytest
import torch
from torch import Tensor
from workbench import Models, Outcome, check_folder, load, rows_of

from gkd_rl.learner import Learner
from gkd_rl.types import Experience

SETTINGS = ["max_steps=4", "evaluation.teacher=false", "evaluation.examples=2"]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Experience, int, Tensor], Tensor]], None]:
    """``spoil(how)``: ``how(micro_batch, version of its policy, loss)`` takes the place of every loss in training."""

    def spoil(how: Callable[[Experience, int, Tensor], Tensor]) -> None:
        whole = Learner.loss

        def spoiled(self: Learner, micro_batch: Experience | None) -> Tensor:
            loss = whole(self, micro_batch)
            if micro_batch is None or not loss.requires_grad:
                return loss
            return how(micro_batch, int(micro_batch.rollouts.version.max()), loss)

        monkeypatch.setattr(Learner, "loss", spoiled)

    return spoil


@pytest.fixture
def ran(cli: Callable[..., Outcome], small: Path, tmp_path: Path) -> Callable[..., tuple[Path, Outcome]]:
    """``ran(name, *overrides)``: a small run's folder and what it said."""

    def ran(name: str, *overrides: str) -> tuple[Path, Outcome]:
        return tmp_path / name, cli("train", small, f"run_dir={tmp_path / name}", *SETTINGS, *overrides)

    return ran


def _nan_at(*steps: int) -> Callable[[Experience, int, Tensor], Tensor]:
    return lambda micro_batch, version, loss: loss * float("nan") if version + 1 in steps else loss


def test_an_update_that_is_not_finite_is_skipped_said_and_kept(ran, spoil) -> None:
    plain, _ = ran("plain")
    spoil(_nan_at(2))
    folder, outcome = ran("run")
    assert outcome.status == 0, outcome.err
    assert outcome.out.count("step 2: loss is nan, so this update is skipped (number 1 of at most 3 in a row)") == 1
    ours, theirs = rows_of(folder / "metrics.jsonl"), rows_of(plain / "metrics.jsonl")
    assert ours[0] == theirs[0]
    assert (ours[1]["skipped_updates"], ours[1]["loss"], ours[1]["grad_norm"]) == (1.0, None, None)
    assert not any("skipped_updates" in row for row in (ours[0], ours[2], ours[3], *theirs))
    rollouts = [[row for row in rows_of(place / "rollouts.jsonl") if row["step"] == 2] for place in (folder, plain)]
    assert [row["tokens"] for row in rollouts[0]] == [row["tokens"] for row in rollouts[1]]
    (kept,) = (folder / "bad-batches").iterdir()
    assert kept.name == "step-2-update-0-rank-0.pt"
    batch = torch.load(kept, weights_only=True)
    assert (batch["step"], batch["update"], batch["rank"]) == (2, 0, 0) and batch["loss"] != batch["loss"]
    tokens = [ids[mask].tolist() for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)]
    by_text = lambda pairs: sorted(json.dumps(pair) for pair in pairs)
    assert by_text(zip(batch["texts"], tokens, strict=True)) == by_text((row["completion"], row["tokens"]) for row in rollouts[0])
    assert batch["rewards"].tolist() == [batch["components"][name][i] for name in batch["components"] for i in range(6)]
    assert batch["teacher_finite"]["hidden"].tolist() == [True] * 6


def test_a_run_of_skipped_updates_leaves_the_student_as_it_was(ran, spoil, models: Models) -> None:
    spoil(_nan_at(1, 2))
    folder, outcome = ran("run", "max_steps=2")
    assert outcome.status == 0, outcome.err
    before, after = (load(place).state_dict() for place in (models.student, folder / "model"))
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_one_update_of_several_in_a_step_is_left_out_of_its_figures(ran, spoil) -> None:
    calls: list[float] = []

    def second(micro_batch: Experience, version: int, loss: Tensor) -> Tensor:
        calls.append(float(loss))
        return loss * float("inf") if len(calls) == 2 else loss

    spoil(second)
    folder, outcome = ran("run", "max_steps=1", "rollout.updates_per_pass=3")
    assert outcome.status == 0, outcome.err
    (row,) = rows_of(folder / "metrics.jsonl")
    assert len(calls) == 3 and row["skipped_updates"] == 1.0
    assert row["loss"] == pytest.approx((calls[0] + calls[2]) / 2)


@pytest.mark.parametrize(("limit", "steps", "last"), [(0, (2,), 2), (1, (1, 3, 4), 4), (2, (1, 2, 3), 3)])
def test_too_many_of_them_in_a_row_end_the_run(ran, spoil, limit: int, steps: tuple[int, ...], last: int) -> None:
    spoil(_nan_at(*steps))
    folder, outcome = ran("run", f"engine.max_bad_updates={limit}", "checkpoint.every=1")
    assert outcome.status == 2 and outcome.err.count("\n") == 1, outcome.err
    often = f" in {limit + 1} updates in a row" if limit else ""
    assert f"gkd-rl: step {last}: loss is nan{often}, so the run has diverged; lower optimizer.lr (here 0.001)" in outcome.err
    assert len(list((folder / "bad-batches").iterdir())) == len(steps)
    assert max((folder / "checkpoints").iterdir()).name == f"step-{last - 1:08d}" if last > 1 else True


def test_an_update_without_memory_is_repeated_in_smaller_parts_and_the_rest_of_the_run_with_it(ran, spoil) -> None:
    plain, _ = ran("plain")
    widths: list[int] = []

    def full(micro_batch: Experience, version: int, loss: Tensor) -> Tensor:
        widths.append(len(micro_batch.rewards))
        if len(widths) > 1 and len(micro_batch.rewards) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss

    spoil(full)
    folder, outcome = ran("run")
    assert outcome.status == 0, outcome.err
    assert outcome.out.count("out of memory; this update is repeated, and the run goes on, with micro-batches of ") == 1
    assert "tokens instead of engine.micro_batch_tokens=4096" in outcome.out
    assert widths[:2] == [6, 6] and max(widths[2:]) <= 3
    check_folder(folder, steps=4)
    for mine, its in zip(rows_of(folder / "metrics.jsonl"), rows_of(plain / "metrics.jsonl"), strict=True):
        compared = {"opposed_share", "reward_grad_norm", "divergence_grad_norm", "grad_cosine"}  # of some tokens of each micro-batch
        assert {**mine, **{name: its[name] for name in compared}} == pytest.approx(its, rel=1e-4, abs=1e-6)
    ours, theirs = (sorted(rows_of(place / "rollouts.jsonl"), key=_place) for place in (folder, plain))
    assert [row["tokens"] for row in ours] == [row["tokens"] for row in theirs]


def test_a_single_row_without_memory_ends_the_run(ran, spoil) -> None:
    def never(micro_batch: Experience, version: int, loss: Tensor) -> Tensor:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:115] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
        )

    spoil(never)
    _, outcome = ran("run")
    assert outcome.status == 2
    assert "gkd-rl: step 1: out of memory with a single row in each micro-batch; lower rollout.max_new_tokens" in outcome.err


def test_other_errors_of_a_pass_are_not_taken_for_a_lack_of_memory(ran, spoil) -> None:
    def broken(micro_batch: Experience, version: int, loss: Tensor) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    spoil(broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        ran("run")


def test_a_reward_that_is_no_number_is_named_with_its_completion_and_example(ran, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def reward(prompts, completions, **columns):\n    rows = len(completions)\n"
        "    return [float('nan') if rows == 6 and i == 4 else 1.0 for i in range(rows)]\n"
    )
    _, outcome = ran("run", "rewards=[{path: '" + f"{tmp_path / 'own.py'}:reward" + "', name: mine}]")
    assert outcome.status == 2
    assert outcome.err.startswith("gkd-rl: reward 'mine' returned nan for row 4; rewards must be finite, or None where they do not apply; ")
    assert "; the completion is '" in outcome.err and outcome.err.endswith("(example 2)\n")


@pytest.mark.parametrize("overlap", ["false", "true"])
def test_a_reward_that_hangs_ends_the_run_and_a_checkpoint_is_left(ran, tmp_path: Path, overlap: str) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\ncalls = []\n\n\ndef slow(prompts, completions, **columns):\n    calls.append(len(completions))\n"
        "    time.sleep(60 if calls.count(6) == 3 else 0)\n    return [1.0] * len(completions)\n"
    )
    reward = lambda timeout: "rewards=[{path: '" + f"{tmp_path / 'slow.py'}:slow" + f"', name: mine, timeout: {timeout}}}]"
    settings = ["checkpoint.every=1", f"rollout.overlap={overlap}"]
    folder, outcome = ran("run", reward(0.5), *settings)
    assert outcome.status == 2
    assert (
        outcome.err == "gkd-rl: reward 'mine' gave no answer for 6 completions within 0.5 seconds; raise its timeout, or mend the reward\n"
    )
    assert {row["step"] for row in rows_of(folder / "rollouts.jsonl")} == {1, 2}
    assert list((folder / "checkpoints").iterdir())
    _, again = ran("run", reward(30), *settings, "resume=auto", "engine.max_bad_updates=5")
    assert again.status == 0 and "resumed from" in again.out, again.err


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("engine.max_bad_updates=-1", "engine.max_bad_updates is -1; it must be at least 0"),
        ("rewards=[{path: reward_models.ArithmeticVerifier, timeout: -1}]", "rewards[0].timeout is -1.0; it must be"),
        ("rewards=[{path: reward_models.ArithmeticVerifier, timeout: .inf}]", "rewards[0].timeout is inf; it must be"),
    ],
)
def test_settings_out_of_range_are_refused(refused_run, override: str, key: str) -> None:
    assert key in refused_run(override)


def test_what_fails_on_one_of_two_ranks_ends_both_with_one_sentence(ranks: Callable[..., list], small: Path, tmp_path: Path) -> None:
    failing_work.write_files(tmp_path)
    first, second = ranks(2, failing_work.everything, str(small), str(tmp_path), timeout=150)
    expected = [
        "UserError: rank 1: reward 'mine' failed (ValueError: no more)",
        "UserError: rank 1: reward 'mine' failed (ValueError: no more)",
        "UserError: rank 1: reward 'mine' gave no answer for 4 completions within 1 seconds; raise its timeout, or mend the reward",
        "UserError: rank 1: reward 'mine' failed (ValueError: not these)",
        "UserError: rank 1: the data ends first",
    ]
    assert [said for said, _ in first] == [said for said, _ in second] == expected
    assert max(seconds for _, seconds in (*first, *second)) < 60


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["step"], row["example"], row["completion"], row["tokens"]
