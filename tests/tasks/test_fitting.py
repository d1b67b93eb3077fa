"""Rows over the limits are left out or cut at the document, never in silence. A word is a token here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import word_tokenizer

from gkd_rl.config.run import Config
from gkd_rl.errors import UserError
from gkd_rl.tasks.arithmetic import ArithmeticTask
from gkd_rl.tasks.base import Task
from gkd_rl.tasks.fitting import FittedTask, fit
from gkd_rl.tasks.instruction import InstructionTask
from gkd_rl.tasks.summarization import SummarizationTask

TOKENIZER = word_tokenizer({"<pad>": 0, "<eos>": 1})
LENGTHS = (3, 9, 5, 12, 4)
"""Words of the documents; each prompt has one more."""


@pytest.fixture
def task(tmp_path: Path) -> SummarizationTask:
    rows = [{"source": " ".join(f"w{i}" for i in range(length)), "target": "s " * length} for length in LENGTHS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SummarizationTask(str(tmp_path), train="rows.jsonl", test="rows.jsonl")


def fitted(task: Task, prompts: str = "error", completions: str = "error", limit: int = 6, **more: Any) -> Task:
    """``task`` with room for ``limit`` words in a prompt and 7 in a completion."""
    config = Config()
    config.task.max_prompt_tokens, config.rollout.max_new_tokens = limit, 7
    config.task.long_prompts, config.task.long_completions = prompts, completions  # pyright: ignore
    config.task.train_examples = more.get("train_examples", 0)
    config.rollout.on_policy_share = more.get("share", 0.0)
    return fit(task, config, TOKENIZER)


def lengths(task: Task) -> list[int]:
    """Words of the training prompts."""
    return [len(str(task.train_example(i).prompt).split()) for i in range(task.train_size or 0)]


def notes(task: Task) -> tuple[str, ...]:
    assert isinstance(task, FittedTask)
    return task.notes


def test_nothing_changes_by_default(task: SummarizationTask):
    assert fitted(task) is task


def test_long_prompts_are_left_out_and_counted(task: SummarizationTask):
    short = fitted(task, "drop")
    assert lengths(short) == [4, 6, 5]
    assert [short.train_example(i).key for i in range(3)] == [0, 1, 2]
    assert len(short.held_out(4)) == 2
    assert notes(short) == (
        "2 of 5 training rows are over task.max_prompt_tokens=6 and are left out",
        "2 of 4 held-out rows are over task.max_prompt_tokens=6 and are left out",
    )


def test_as_many_rows_as_are_asked_for_are_found_among_those_that_fit(task: SummarizationTask):
    assert lengths(fitted(task, "drop", train_examples=2)) == [4, 6]


def test_long_completions_are_left_out_where_they_are_learned_from(task: SummarizationTask):
    """Summaries have as many words as documents, and an end token."""
    short = fitted(task, "error", "drop")
    assert lengths(short) == [4, 6, 5] and len(short.held_out(5)) == 5
    assert notes(short) == ("2 of 5 training rows are over rollout.max_new_tokens=7 and are left out",)
    assert lengths(fitted(task, "error", "drop", share=1.0)) == [length + 1 for length in LENGTHS]


def test_documents_are_cut_at_their_end_and_the_prompt_stays_whole(task: SummarizationTask):
    task.template = "summarize: {text} :end"
    cut = fitted(task, "truncate")
    assert lengths(cut) == [5, 6, 6, 6, 6]
    assert cut.train_example(1).prompt == "summarize: w0 w1 w2 w3 :end"
    assert cut.train_example(0).prompt == "summarize: w0 w1 w2 :end"
    assert cut.train_example(1).columns == task.train_example(1).columns, "rewards see the whole document"
    assert [len(str(e.prompt).split()) for e in cut.held_out(2)] == [5, 6]
    assert notes(cut) == (
        "3 of 5 training prompts are cut to task.max_prompt_tokens=6",
        "1 of 2 held-out prompts are cut to task.max_prompt_tokens=6",
    )


def test_words_are_kept_whole():
    class Letters(SummarizationTask):
        def __init__(self) -> None:
            self.prompt = "say: alpha beta gamma"

        train_size = 1

        def train_example(self, index: int):
            from gkd_rl.types import Example

            return Example(self.prompt, columns={"document": "alpha beta gamma"})

    tokenizer = word_tokenizer({"<pad>": 0, "<eos>": 1})
    tokenizer.backend_tokenizer.pre_tokenizer = _by_letter()  # pyright: ignore
    config = Config()
    config.task.max_prompt_tokens, config.task.long_prompts = len("say: alpha be"), "truncate"
    assert fit(Letters(), config, tokenizer).train_example(0).prompt == "say: alpha"


def _by_letter():
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex("."), "isolated")


def test_chats_are_cut_in_the_message_that_holds_the_document(task: SummarizationTask):
    task.prompt_format = "chat"
    tokenizer = word_tokenizer({"<pad>": 0, "<eos>": 1})
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    config = Config()
    config.task.max_prompt_tokens, config.task.long_prompts = 12, "truncate"
    prompt = fit(task, config, tokenizer).train_example(3).prompt
    assert not isinstance(prompt, str)
    assert prompt[0]["content"] == task.instruction and prompt[1]["content"] == "w0 w1 w2 w3 w4 w5"


def test_a_prompt_that_is_too_long_without_its_document_is_refused(task: SummarizationTask):
    with pytest.raises(UserError, match=r"example 0 is over task\.max_prompt_tokens=1 even without its column 'document'"):
        fitted(task, "truncate", limit=1).train_example(0)


def test_a_task_that_names_no_part_to_cut_is_refused(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a b", "completion": "c"}\n')
    task = InstructionTask(str(tmp_path), train="rows.jsonl", test="rows.jsonl")
    with pytest.raises(UserError, match="does not say which part of a prompt may be cut; set it to drop or error"):
        fitted(task, "truncate")


def test_a_task_without_end_stays_without_end():
    task = fitted(ArithmeticTask(), "drop", limit=14)
    assert task.train_size is None and len(task.held_out(50)) < 50
