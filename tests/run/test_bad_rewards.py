"""Rewards that cannot be made, or fail: named before a model is loaded, or in the midst of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def own_reward(tmp_path: Path) -> Callable[[str], str]:
    """``own_reward(body)``: the override that names a reward of the user's own with that body."""

    def own_reward(body: str) -> str:
        file = tmp_path / "own.py"
        file.write_text(f"def reward(prompts, completions, **columns):\n    {body}\n")
        return f"rewards=[{{path: '{file}:reward', name: mine}}]"

    return own_reward


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ("[{path: reward_models.ArithmeticVerifer}]", "did you mean 'ArithmeticVerifier'?"),
        ("[{path: reward_model.ArithmeticVerifier}]", "there is no module 'reward_model'; did you mean 'reward_models'?"),
        ("[{path: nothing}]", "is not a dotted path"),
        ("[{path: 'absent.py:reward'}]", "there is no file 'absent.py'"),
        (
            "[{path: reward_models.ArithmeticVerifier, options: {tolerence: 1}}]",
            "has no option 'tolerence'; did you mean 'tolerance'?",
        ),
        ("[{path: reward_models.ArithmeticVerifier, options: {tolerance: -1}}]", "tolerance is -1"),
        ("[{path: reward_models.ArithmeticVerifier, options: {reference_field: referense}}]", "there is no column 'referense'"),
        ("[{path: reward_models.ArithmeticVerifier}, {path: reward_models.ArithmeticVerifier}]", "two rewards are named"),
        ("[{path: reward_models.SequenceClassificationReward}]", "model"),
        ("[{path: reward_models.SequenceClassificationReward, options: {model: /absent/judge}}]", "/absent/judge"),
        ("[{path: math.pi}]", "is a float, not a function or class"),
    ],
)
def test_a_reward_that_cannot_be_made_is_refused(refused_run, rewards: str, said: str) -> None:
    assert said in refused_run(f"rewards={rewards}")


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise RuntimeError('out of luck')", "reward 'mine' failed (RuntimeError: out of luck)"),
        ("return [1.0]", "reward 'mine' returned 1 values for 2 completions"),
        ("return ['good'] * len(completions)", "reward 'mine' returned 'good' for row 0; a reward is a number or None"),
        ("return [float('nan')] * len(completions)", "reward 'mine' returned nan for row 0; rewards must be finite"),
    ],
)
def test_a_reward_that_fails_is_named_before_a_model_is_loaded(refused_run, own_reward, command: str, body: str, said: str) -> None:
    assert said in refused_run(own_reward(body), command=command)


def test_a_reward_that_fails_in_the_midst_of_a_run_is_named_and_the_run_can_be_continued(
    cli, small: Path, own_reward, tmp_path: Path
) -> None:
    flag = tmp_path / "mended"
    body = f"import os; return [1.0 + 0 / (os.path.exists({str(flag)!r}) or len(completions) != 6) for _ in completions]"
    arguments = ["train", small, f"run_dir={tmp_path / 'run'}", own_reward(body), "resume=auto"]
    broken = cli(*arguments)
    assert broken.status == 2 and "Traceback" not in broken.err
    assert broken.err.startswith("gkd-rl: reward 'mine' failed (ZeroDivisionError: ")
    flag.touch()
    assert cli(*arguments).status == 0
    assert (tmp_path / "run" / "summary.json").is_file()
