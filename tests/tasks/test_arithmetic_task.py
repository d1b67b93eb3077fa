"""The embedded task: problems without end whose solutions are right, and held-out ones that training never meets."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from gkd_rl.config.run import Config
from gkd_rl.errors import UserError
from gkd_rl.models.source import ASSETS
from gkd_rl.models.tokenizers import completion_tokens, load_tokenizer, prompt_tokens
from gkd_rl.tasks.arithmetic import ArithmeticTask
from gkd_rl.tasks.arithmetic_problems import LARGEST, MAX_LEVEL, Problem, make_problem, problems
from gkd_rl.tasks.base import make_task, stream_example
from gkd_rl.types import Example
from reward_models import ArithmeticVerifier

FIRST_HELD_OUT = (
    "Emma starts with 28 cards. Nora has 4 times as many cards as Emma. How many cards do they have together?\n",
    "28*4=112\n28+112=140\n#### 140",
)
STEP = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")


@pytest.fixture(scope="module")
def many() -> list[Problem]:
    rng = random.Random(0)
    return [make_problem(rng, 1 + i % MAX_LEVEL) for i in range(3000)]


def test_ten_thousand_training_problems_and_the_held_out_ones_are_disjoint():
    task = ArithmeticTask()
    training = {task.train_example(i).prompt for i in range(10_000)}
    held_out = {example.prompt for example in task.held_out(2000)}
    assert len(training) > 9_500 and len(held_out) > 1_950
    assert not training & held_out


def test_held_out_problems_may_be_harder():
    task = ArithmeticTask(levels=[1, 2], held_out_levels=[4, 5])
    assert {task.train_example(i).columns["level"] for i in range(100)} == {1, 2}
    assert {example.columns["level"] for example in task.held_out(50)} == {4, 5}


def test_every_step_is_right_and_continues_the_one_before(many: list[Problem]):
    for problem in many:
        *steps, answer = problem.solution.split("\n")
        assert len(steps) == problem.level
        values: list[int] = []
        for step in steps:
            found = STEP.fullmatch(step)
            assert found, step
            left, operator, right, value = int(found[1]), found[2], int(found[3]), int(found[4])
            assert value == {"+": left + right, "-": left - right, "*": left * right, "/": left / right}[operator]
            assert 1 <= value <= LARGEST
            assert not values or values[-1] in (left, right)
            values.append(value)
        assert answer == f"#### {values[-1]}" == f"#### {problem.answer}"


def test_the_numbers_of_a_solution_come_from_the_question_or_from_earlier_steps(many: list[Problem]):
    for problem in many:
        known = {int(number) for number in re.findall(r"\d+", problem.question)}
        for left, _, right, value in STEP.findall(problem.solution):
            assert {int(left), int(right)} <= known, problem
            known.add(int(value))


def test_every_number_of_a_question_is_used(many: list[Problem]):
    for problem in many:
        used = {int(number) for number in re.findall(r"\d+", problem.solution)}
        assert {int(number) for number in re.findall(r"\d+", problem.question)} <= used, problem


def test_problems_of_every_operation_occur(many: list[Problem]):
    operators = {operator for problem in many for _, operator, _, _ in STEP.findall(problem.solution)}
    assert operators == set("+-*/")


def test_the_verifier_gives_1_to_every_dataset_completion_and_0_to_another_number():
    task = ArithmeticTask(levels=range(1, MAX_LEVEL + 1))
    (reward,) = task.default_rewards()
    assert reward.path == "reward_models.ArithmeticVerifier"
    examples = [task.train_example(i) for i in range(500)]
    completions = [str(example.completion) for example in examples]
    references = [example.columns["reference"] for example in examples]
    prompts = [example.prompt for example in examples]
    assert ArithmeticVerifier()(prompts, completions, reference=references) == [1.0] * 500
    wrong = [f"{completion}1" for completion in completions]
    assert ArithmeticVerifier()(prompts, wrong, reference=references) == [0.0] * 500


def test_an_example_depends_on_its_index_alone():
    first, second = ArithmeticTask(), ArithmeticTask()
    backwards = [first.train_example(i) for i in reversed(range(50))][::-1]
    assert [second.train_example(i) for i in range(50)] == backwards
    assert first.held_out(20) == second.held_out(30)[:20]
    assert len({example.prompt for example in backwards}) == 50


def test_the_first_problems_are_those_they_have_always_been():
    """Figures of runs compare over versions only while the problems stay the same."""
    example = ArithmeticTask().held_out(1)[0]
    assert (example.prompt, example.completion) == FIRST_HELD_OUT


def test_a_stream_of_problems_belongs_to_its_split_and_seed():
    for split in ("train", "test"):
        assert all(problem.held_out == (split == "test") for problem in itertools.islice(problems(split, 0, (2,)), 200))
    one, again, other = (list(itertools.islice(problems("train", seed, (1, 2)), 5)) for seed in (0, 0, 1))
    assert one == again != other


def test_every_problem_can_be_written_with_the_embedded_tokenizer(many: list[Problem]):
    tokenizer = load_tokenizer(str(ASSETS / "arithmetic-teacher"), "teacher.path")
    for problem in many[:500]:
        prompt = prompt_tokens(tokenizer, f"{problem.question}\n")
        completion = completion_tokens(tokenizer, Example(problem.question, problem.solution), 200)
        assert tokenizer.unk_token_id not in [*prompt, *completion]
        assert tokenizer.decode(completion, skip_special_tokens=True) == problem.solution


@pytest.mark.parametrize("levels", [[], [0], [MAX_LEVEL + 1], ["2"]])
def test_levels_that_do_not_exist_are_refused(levels: list):
    with pytest.raises(UserError, match=r"task\.options\.levels is a list of whole numbers from 1 to"):
        ArithmeticTask(levels=levels)


def test_streams_differ_by_seed_and_repeat_with_it():
    task = ArithmeticTask()
    one, again, other = ([stream_example(task, i, seed) for i in range(20)] for seed in (0, 0, 1))
    assert one == again
    assert not {example.prompt for example in one} & {example.prompt for example in other}
    assert [example.key for example in one] == list(range(20))


def test_a_limited_stream_goes_round_its_examples_in_shuffled_epochs():
    task = ArithmeticTask()
    epochs = [[stream_example(task, 7 * epoch + i, seed=3, limit=7) for i in range(7)] for epoch in range(3)]
    prompts = [[example.prompt for example in epoch] for epoch in epochs]
    assert set(prompts[0]) == set(prompts[1]) == set(prompts[2]) == {task.train_example(i).prompt for i in range(7)}
    assert len({tuple(epoch) for epoch in prompts}) > 1
    assert [example.key for epoch in epochs for example in epoch] == list(range(21))


def test_the_configuration_names_the_task():
    config = Config()
    config.task.options = {"levels": [2]}
    config.task.prompt_format = "chat"
    example = make_task(config).train_example(0)
    assert example.columns["level"] == 2
    assert isinstance(example.prompt, list) and example.prompt[-1]["role"] == "user"
