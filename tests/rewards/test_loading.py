"""Rewards by dotted path or file, and the hints in the messages when something is misspelt."""

import subprocess
import sys
from pathlib import Path

import pytest

from reward_models import ArithmeticVerifier, InputError, load_reward
from reward_models.loading import load_object

FILE = """
from dataclasses import dataclass

def length(prompts, completions, *, scale=1.0, **columns):
    return [scale * len(c) for c in completions]

@dataclass
class Constant:
    value: float = 0.0
    def __call__(self, prompts, completions, **columns):
        return [self.value] * len(completions)

class NotCallable:
    pass

number = 5
"""


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    path = tmp_path / "my_rewards.py"
    path.write_text(FILE)
    return path


def test_a_class_gets_its_options():
    reward = load_reward("reward_models.ArithmeticVerifier", {"reference_field": "answer"})
    assert isinstance(reward, ArithmeticVerifier)
    assert reward(prompts=["q"], completions=["#### 72"], answer=["72"]) == [1.0]


def test_functions_and_classes_load_from_a_file(rewards: Path):
    assert load_reward(f"{rewards}:length")(["p"], ["four"]) == [4.0]
    scaled = load_reward(f"{rewards}:length", {"scale": 0.5})
    assert (scaled(["p"], ["four"]), getattr(scaled, "__name__", None)) == ([2.0], "length")
    assert load_reward(f"{rewards}:Constant", {"value": 3.0})(["p"], ["c"]) == [3.0]


def test_any_part_can_be_made_by_its_path(rewards: Path):
    assert load_object(f"{rewards}:Constant", {"value": 3.0}, kind="task").value == 3.0
    with pytest.raises(InputError, match=r"task '.*:Constant' has no option 'valeu'; did you mean 'value'"):
        load_object(f"{rewards}:Constant", {"valeu": 3.0}, kind="task")


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("reward_models.ArithmeticVerifer", {}, "'reward_models' has no 'ArithmeticVerifer'; did you mean 'ArithmeticVerifier'"),
        ("reward_model.ArithmeticVerifier", {}, "no module 'reward_model'; did you mean 'reward_models'"),
        ("reward_models.arithmetics.X", {}, "no module 'reward_models.arithmetics'; did you mean 'reward_models.arithmetic'"),
        (
            "reward_models.ArithmeticVerifier",
            {"tolerence": 1},
            r"no option 'tolerence'; did you mean 'tolerance'\? \(accepted: .*fall",
        ),
        ("reward_models.ArithmeticVerifier", {"tolerance": -1}, "'reward_models.ArithmeticVerifier': tolerance is -1"),
        ("arithmetic", {}, "not a dotted path"),
        ("math.pi", {}, "is a float, not a function or class"),
        ("{folder}/my_reward.py:length", {}, "no file .*did you mean '.*my_rewards.py'"),
        ("{folder}/my_rewards.py:lenght", {}, "has no 'lenght'; did you mean 'length'"),
        ("{folder}/my_rewards.py:length", {"scal": 1}, r"no option 'scal'; did you mean 'scale'\? \(accepted: scale\)"),
        ("{folder}/my_rewards.py:number", {}, "is a int, not a function or class"),
        ("{folder}/my_rewards.py:NotCallable", {}, "give the class a __call__ method"),
    ],
)
def test_a_wrong_path_or_option_names_the_nearest_right_one(rewards: Path, path: str, options: dict, message: str):
    with pytest.raises(InputError, match=message):
        load_reward(path.format(folder=rewards.parent), options)


def test_a_file_that_does_not_import_says_why(tmp_path: Path):
    path = tmp_path / "broken.py"
    path.write_text("import a_module_that_is_not_there\n")
    with pytest.raises(InputError, match=r"broken.py' cannot be imported \(ModuleNotFoundError"):
        load_reward(f"{path}:f")
    path.write_text("def f(:\n")
    with pytest.raises(InputError, match=r"cannot be imported \(SyntaxError"):
        load_reward(f"{path}:f")


@pytest.mark.parametrize("module", ["reward_models", "reward_models.grading", "reward_models.arithmetic"])
def test_importing_loads_nothing_heavy(module: str):
    heavy = ("torch", "transformers", "sympy", "pyarrow", "rich", "gkd_rl")
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]"


def test_reward_models_imports_nothing_from_the_trainer():
    package = Path(__file__).parents[2] / "reward_models"
    assert [path.name for path in package.rglob("*.py") if "gkd_rl" in path.read_text()] == []
