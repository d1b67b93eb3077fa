"""Data of the user's own: any columns, text or chats, with or without references."""

from __future__ import annotations

import json
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gkd_rl.errors import UserError
from gkd_rl.scoring import make_rewards, score_texts
from gkd_rl.tasks.custom import CustomTask

CHAT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}]


def task(folder: Path, rows: list[dict[str, Any]], **options: Any) -> CustomTask:
    """The task over ``rows``, the last of which is held out."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return CustomTask(train=str(path), **({"held_out_rows": 1} | options))


def test_every_column_reaches_the_rewards(tmp_path: Path):
    rows = [{"prompt": f"q{i}", "answer": f"a{i}", "level": i, "tags": ["x"]} for i in range(3)]
    made = task(tmp_path, rows, completion="answer", reference="answer")
    example = made.train_example(1)
    assert (example.prompt, example.completion) == ("q1", "a1")
    assert dict(example.columns) == {**rows[1], "reference": "a1"}
    assert made.train_size == 2 and made.held_out(5)[0].prompt == "q2"


def test_values_that_json_has_no_form_for_reach_the_rewards_as_text(tmp_path: Path):
    rows = [{"prompt": "q", "day": date(2026, 1, 2), "more": [{"at": datetime(2026, 1, 2, 3)}], "price": Decimal("1.50")}] * 2
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    columns = CustomTask(train=str(tmp_path / "rows.parquet"), held_out_rows=1).train_example(0).columns
    assert dict(columns) == {"prompt": "q", "day": "2026-01-02", "more": [{"at": "2026-01-02 03:00:00"}], "price": "1.50"}


def test_completions_are_no_column_that_rewards_could_mistake_for_the_answer(tmp_path: Path):
    made = task(tmp_path, [{"prompt": "q", "completion": "a", "completions": 3, "prompts": 4}] * 2, completion="completion")
    assert made.train_example(0).completion == "a" and dict(made.train_example(0).columns) == {"prompt": "q"}


def test_chats_stay_chats_and_texts_become_them_where_that_is_asked_for(tmp_path: Path):
    chats = task(tmp_path, [{"prompt": CHAT, "completion": [{"role": "assistant", "content": "So."}]}] * 2, completion="completion")
    assert chats.train_example(0).prompt == CHAT and chats.train_example(0).completion == "So."
    texts = task(tmp_path, [{"prompt": "Why?"}] * 2, prompt_format="chat", system="Be short.")
    assert texts.train_example(0).prompt == CHAT


def test_a_template_makes_prompts_of_columns(tmp_path: Path):
    made = task(tmp_path, [{"question": "Why {so}?", "n": 2}] * 2, template="{n}. {question}\nA:")
    assert made.train_example(0).prompt == "2. Why {so}?\nA:"


def test_the_default_reward_is_exact_match_or_any_answer(tmp_path: Path):
    with_reference = task(tmp_path, [{"prompt": "q", "answer": "The house."}] * 2, reference="answer")
    rewards = make_rewards(with_reference.default_rewards())
    columns = [dict(with_reference.train_example(0).columns)] * 2
    assert score_texts(rewards, ["q", "q"], ["house", "mouse"], columns)[0] == [1.0, 0.0]
    without = task(tmp_path, [{"prompt": "q"}] * 2)
    assert score_texts(make_rewards(without.default_rewards()), ["q", "q"], ["anything", " "], [{}, {}])[0] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        ({"promt": "q"}, {}, "line 1: has no field 'prompt'; the nearest is 'promt'"),
        ({"prompt": [{"role": "user"}]}, {}, "neither text nor a list of chat messages with role and content"),
        ({"prompt": []}, {}, "neither text nor a list of chat messages"),
        ({"prompt": "q", "answer": ""}, {"completion": "answer"}, "field 'answer' is empty or not text"),
        ({"prompt": "q", "answer": CHAT}, {"completion": "answer"}, "field 'answer' holds 2 messages; a completion is one"),
        ({"prompt": "q"}, {"reference": "answer"}, "has no field 'answer'"),
        ({"prompt": "q"}, {"template": "{question}"}, "has no field 'question'"),
    ],
)
def test_a_row_that_lacks_something_is_named(tmp_path: Path, row: dict, options: dict, said: str):
    with pytest.raises(UserError, match=said):
        task(tmp_path, [row, row], **options).train_example(0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"held_out_rows": 0}, "needs task.options.test, or task.options.held_out_rows=N"),
        ({"held_out_rows": 2}, "held_out_rows is 2, and train has 2 rows"),
        ({"test": "/nowhere.jsonl", "held_out_rows": 1}, "needs task.options.test, or task.options.held_out_rows=N"),
        ({"test": "/nowhere.jsonl", "held_out_rows": 0}, "data file /nowhere.jsonl does not exist"),
        ({"template": "{a"}, "no template"),
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path: Path, options: dict, said: str):
    with pytest.raises(UserError, match=said):
        task(tmp_path, [{"prompt": "q"}] * 2, **options)
