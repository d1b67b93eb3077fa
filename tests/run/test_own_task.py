"""A task of the user's own, from a file: it trains, and its mistakes are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from workbench import check_folder

TASK = '''
from gkd_rl.config.run import RewardConfig
from gkd_rl.types import Example


class Sums:
    """Sums of two numbers."""

    def __init__(self, data_dir=None, prompt_format="plain", prompt="{a}+{a}=", completion=True, held_out=4, size=None):
        self.prompt, self.completion, self.count, self.train_size = prompt, completion, held_out, size

    def train_example(self, index):
        number = index % 50
        answer = str(2 * number)
        return Example(
            prompt=self.prompt.format(a=number), completion=answer if self.completion else None, columns={"reference": answer}, key=index
        )

    def held_out(self, count):
        return [self.train_example(number) for number in range(min(count, self.count))]

    def default_rewards(self):
        return [RewardConfig(name="sum")]


class Nothing:
    def __init__(self, data_dir=None, prompt_format="plain"):
        pass
'''


@pytest.fixture
def own(small: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """``own(options)``: arguments of ``train`` with the task above."""

    def own(options: str = "{}", name: str = "Sums") -> list[str]:
        (tmp_path / "sums.py").write_text(TASK)
        return [str(small), f"run_dir={tmp_path / 'run'}", f"task.path={tmp_path / 'sums.py'}:{name}", f"task.options={options}"]

    return own


@pytest.mark.parametrize("options", ["{}", "{size: 5}", "{completion: false}"])
def test_a_task_from_a_file_trains(cli, own, tmp_path: Path, options: str) -> None:
    outcome = cli("train", *own(options))
    assert outcome.status == 0, outcome.err
    _, rollouts, _ = check_folder(tmp_path / "run", steps=2)
    assert all(set(row["rewards"]) == {"sum"} and row["prompt"].endswith("=") for row in rollouts)
    if options == "{size: 5}":
        assert len({row["prompt"] for row in rollouts}) == 5


@pytest.mark.parametrize(
    ("options", "name", "said"),
    [
        ("{prompt: ''}", "Sums", "the prompt of held-out example 0 is empty"),
        ("{held_out: 0}", "Sums", "has no held-out examples"),
        ("{size: 0}", "Sums", "has no training examples"),
        ("{}", "Nothing", "is not a task: it has no train_example()"),
        ("{}", "Sum", "did you mean 'Sums'?"),
        ("{sise: 5}", "Sums", "has no option 'sise'; did you mean 'size'?"),
    ],
)
def test_a_task_that_cannot_work_is_refused(refused, own, tmp_path: Path, options: str, name: str, said: str) -> None:
    assert said in refused("train", *own(options, name))
    assert not (tmp_path / "run").exists()


def test_a_share_of_dataset_rows_needs_completions(cli, own) -> None:
    outcome = cli("train", *own("{completion: false}"), "rollout.on_policy_share=0.5", "rollout.prompts_per_step=8")
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert "example 1 of the task has no completion to learn from" in outcome.err
