"""What is left of a run that cannot go on: a disk full for one rank alone, a task that fails, a kill while an adapter is trained."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import failing_work
import pytest
from workbench import Outcome, rows_of

from gkd_rl.errors import UserError
from gkd_rl.tasks.base import stream_example
from gkd_rl.types import Example

DYING = str(Path(__file__).with_name("dying.py"))
LORA = (
    *("max_steps=3", "checkpoint.every=1", "evaluation.teacher=false", "evaluation.examples=2", "evaluation.every=0"),
    *("student.lora.rank=4", "optimizer.lr=1e-2"),
)


@pytest.fixture(scope="module")
def full_disks(ranks: Callable[..., list], small: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list]:
    """The folder of a run of two ranks, and what each of them met (``failing_work.full_disks``)."""
    folder = tmp_path_factory.mktemp("full") / "run"
    failing_work.write_files(folder.parent)
    return folder, ranks(2, failing_work.full_disks, str(small), str(folder), timeout=150)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_is_full_for_one_rank_ends_all_with_its_number_and_the_earlier_checkpoint_left(full_disks, rank: int) -> None:
    folder, met = full_disks
    place = folder / "checkpoints" / "step-00000002"
    for ours in met:
        said, seconds, _ = ours[rank]
        assert said.startswith(f"UserError: rank {rank}: the checkpoint {place} could not be written (")
        assert said.endswith("; make room on the disk; resume=auto continues from the one before it")
        assert seconds < 60  # far from the time after which a rank counts as lost
    assert met[0][rank][2] == ["step-00000001"]  # the main process tidies up, and the others end without waiting for that


def test_the_run_goes_on_once_there_is_room(full_disks) -> None:
    folder, met = full_disks
    assert [ours[-1][0] for ours in met] == ["", ""]
    assert [row["step"] for row in rows_of(folder / "metrics.jsonl")] == [1, 2]
    assert sorted(place.name for place in (folder / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("size", [None, 60])
def test_what_a_task_fails_with_is_said_with_the_example(size: int | None) -> None:
    class Gone:
        train_size = size

        def train_example(self, index: int) -> Example:
            raise OSError("the share is gone")

    with pytest.raises(UserError, match=r"task.path: Gone.train_example\(\d+\) failed \(OSError: the share is gone\); mend the task"):
        stream_example(Gone(), 3, seed=0)  # pyright: ignore[reportArgumentType]


def test_a_run_whose_task_fails_continues_once_it_is_mended(cli: Callable[..., Outcome], small: Path, tmp_path: Path) -> None:
    file, missing = tmp_path / "sums.py", tmp_path / "missing"
    file.write_text(
        "from pathlib import Path\nfrom gkd_rl.config.run import RewardConfig\nfrom gkd_rl.types import Example\n\n\n"
        "class Sums:\n    train_size, calls = None, 0\n\n    def __init__(self, data_dir=None, prompt_format='plain'):\n        pass\n\n"
        "    def train_example(self, index):\n        self.calls += 1\n"
        f"        if self.calls > 7 and Path({str(missing)!r}).exists():\n            raise OSError('the share is gone')\n"
        "        answer = str(2 * (index % 50))\n"
        "        return Example(prompt=f'{index % 50}+', completion=answer, columns={'reference': answer}, key=index)\n\n"
        "    def held_out(self, count):\n"
        "        return [Example(prompt=f'{i}+', completion='1', columns={'reference': '1'}, key=i) for i in range(count)]\n\n"
        "    def default_rewards(self):\n        return [RewardConfig(name='sum')]\n"
    )
    missing.touch()
    settings = [f"task.path={file}:Sums", "max_steps=3", "checkpoint.every=1", "evaluation.teacher=false", "evaluation.examples=2"]
    outcome = cli("train", small, f"run_dir={tmp_path / 'run'}", *settings)
    assert outcome.status == 2 and outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.startswith("gkd-rl: task.path: Sums.train_example(") and ") failed (OSError: the share is gone); mend" in outcome.err
    assert [row["step"] for row in rows_of(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    missing.unlink()
    assert cli("train", small, f"run_dir={tmp_path / 'run'}", *settings, "resume=auto").status == 0
    assert cli("train", small, f"run_dir={tmp_path / 'whole'}", *settings).status == 0
    _assert_same(tmp_path / "run", tmp_path / "whole", "model/model.safetensors")


@pytest.mark.slow
def test_an_adapter_that_is_trained_continues_to_the_last_digit_after_a_kill(
    environment: dict[str, str], cli: Callable[..., Outcome], arithmetic: Path, tmp_path: Path
) -> None:
    settings = ("train", str(arithmetic), f"run_dir={tmp_path / 'run'}", *LORA)
    killed = subprocess.run([sys.executable, DYING, "optimiser", "7", *settings], env=environment, capture_output=True, timeout=200)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(rows_of(tmp_path / "run" / "metrics.jsonl")) == 1
    outcome = cli(*settings, "resume=auto")
    assert outcome.status == 0 and "resumed from" in outcome.out, outcome
    assert cli("train", arithmetic, f"run_dir={tmp_path / 'whole'}", *LORA).status == 0
    _assert_same(tmp_path / "run", tmp_path / "whole", "model/model.safetensors", "adapter/adapter_model.safetensors")


def _assert_same(folder: Path, whole: Path, *weights: str) -> None:
    for name in ("metrics.jsonl", "rollouts.jsonl", *weights):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
