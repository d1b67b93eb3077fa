"""GSM8K from its own files: the real ones where GKD_RL_DATA names them, and small ones for the form of rows."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gkd_rl.errors import UserError
from gkd_rl.tasks.base import stream_example
from gkd_rl.tasks.gsm8k import Gsm8kTask
from reward_models import ArithmeticVerifier

ROW = {"question": "How many?", "answer": "There are 48+24=<<48+24=72>>72 {clips}.\n#### 72"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "gsm8k").mkdir()
    for split, count in (("train", 3), ("test", 2)):
        rows = [{**ROW, "question": f"{ROW['question']} {split} {i}"} for i in range(count)]
        (tmp_path / "gsm8k" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return tmp_path


@pytest.fixture(scope="module")
def real() -> Gsm8kTask:
    data = os.environ.get("GKD_RL_DATA")
    if not data or not (Path(data) / "gsm8k" / "train.jsonl").is_file():
        pytest.skip("GKD_RL_DATA names no folder with gsm8k/train.jsonl and gsm8k/test.jsonl")
    return Gsm8kTask(data_dir=data)


def test_the_files_lie_in_the_data_folder_or_its_subfolder(folder: Path):
    assert Gsm8kTask(data_dir=str(folder)).train_size == 3
    assert Gsm8kTask(data_dir=str(folder / "gsm8k")).train_size == 3


def test_rows_become_prompts_completions_and_references(folder: Path):
    example = Gsm8kTask(data_dir=str(folder)).train_example(1)
    assert isinstance(example.prompt, str) and example.prompt.startswith("Question: How many? train 1\nAnswer:")
    assert example.prompt.endswith("Answer:"), "a prompt that ends in a space leaves the answer without a first token"
    assert example.completion == " There are 48+24=72 {clips}.\n#### 72"
    assert example.columns["reference"] == ROW["answer"]
    assert Gsm8kTask(data_dir=str(folder), calculator_marks=True).train_example(1).completion == f" {ROW['answer']}"


def test_chat_prompts_carry_the_instruction(folder: Path):
    prompt = Gsm8kTask(data_dir=str(folder), prompt_format="chat").held_out(1)[0].prompt
    assert not isinstance(prompt, str)
    assert [message["role"] for message in prompt] == ["system", "user"]
    assert prompt[1]["content"] == "How many? test 0"


def test_held_out_rows_are_those_of_the_test_file(folder: Path):
    task = Gsm8kTask(data_dir=str(folder))
    assert [example.columns["question"] for example in task.held_out(9)] == ["How many? test 0", "How many? test 1"]
    assert len(task.held_out(1)) == 1


def test_epochs_go_through_every_row_in_another_order(folder: Path):
    task = Gsm8kTask(data_dir=str(folder))
    epochs = [[stream_example(task, 3 * epoch + i, seed=0).columns["question"] for i in range(3)] for epoch in range(6)]
    assert all(sorted(epoch) == [f"How many? train {i}" for i in range(3)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_missing_folder_is_named():
    with pytest.raises(UserError, match="the gsm8k task needs data_dir"):
        Gsm8kTask()
    with pytest.raises(UserError, match=r"data file .*train.jsonl does not exist"):
        Gsm8kTask(data_dir="/nowhere")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 4: not valid JSON"),
        ("[1]", "line 4: a row is a JSON object, not list"),
        ('{"question": "a", "answr": "b"}', "line 4: has no field 'answer'; the nearest is 'answr'"),
        ('{"question": " ", "answer": "b"}', "line 4: field 'question' is empty or not text"),
        ('{"question": "a", "answer": 3}', "line 4: field 'answer' is empty or not text"),
    ],
)
def test_a_malformed_row_is_named_by_its_line(folder: Path, line: str, message: str):
    with (folder / "gsm8k" / "train.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=message):
        Gsm8kTask(data_dir=str(folder))


def test_an_empty_file_is_named(folder: Path):
    (folder / "gsm8k" / "test.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"test.jsonl holds no rows"):
        Gsm8kTask(data_dir=str(folder))


def test_the_real_files_are_read_whole(real: Gsm8kTask):
    assert real.train_size == 7473
    assert len(real.held_out(10_000)) == 1319


def test_the_verifier_gives_1_to_every_real_solution(real: Gsm8kTask):
    examples = [real.train_example(i) for i in range(1000)] + real.held_out(500)
    completions = [str(example.completion) for example in examples]
    references = [example.columns["reference"] for example in examples]
    assert set(ArithmeticVerifier()([e.prompt for e in examples], completions, reference=references)) == {1.0}
    assert not any("<<" in completion for completion in completions)


def test_solved_problems_stand_before_the_question_and_are_not_trained_on(folder: Path):
    task = Gsm8kTask(data_dir=str(folder), shots=2)
    assert task.train_size == 1
    prompt, solved = str(task.train_example(0).prompt), " There are 48+24=72 {clips}.\n#### 72"
    assert prompt == (
        f"Question: How many? train 0\nAnswer:{solved}\n\nQuestion: How many? train 1\nAnswer:{solved}\n\n"
        "Question: How many? train 2\nAnswer:"
    )
    assert str(task.held_out(1)[0].prompt).startswith(prompt[: prompt.rindex("Question")])
    assert Gsm8kTask(data_dir=str(folder), shots=2, shots_from="test.jsonl").train_size == 3
    chat = Gsm8kTask(data_dir=str(folder), shots=1, prompt_format="chat").train_example(0).prompt
    assert [m["role"] for m in chat if not isinstance(m, str)] == ["system", "user", "assistant", "user"]


def test_the_calculator_judges_recomputed_marks(folder: Path):
    (reward,) = Gsm8kTask(data_dir=str(folder), calculator_marks=True, calculator=True).default_rewards()
    assert reward.path == "gkd_rl.tasks.calculator.CalculatedVerifier"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shots": 3}, "shots is 3, and there are 3 rows to take them from"),
        ({"shots": -1}, "shots is -1; it is a number of solved problems"),
        ({"calculator": True}, "calculator recomputes <<...>> marks, which calculator_marks=false leaves out"),
    ],
)
def test_options_that_cannot_work_are_refused(folder: Path, options: dict, said: str):
    with pytest.raises(UserError, match=said):
        Gsm8kTask(data_dir=str(folder), **options)
