"""Summaries, translations and instructions: the form of rows, and the real files where GKD_RL_DATA names them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from gkd_rl.config.run import Config
from gkd_rl.errors import UserError
from gkd_rl.tasks.base import make_task
from gkd_rl.tasks.instruction import InstructionTask
from gkd_rl.tasks.summarization import SummarizationTask
from gkd_rl.tasks.translation import TranslationTask, detokenised
from reward_models import InstructionChecks

XSUM = {"document": "A {long} text. It goes on.", "summary": "Short."}
PAIR = {"translation": {"en": "The house.", "de": "Das Haus."}}


@pytest.fixture(scope="module")
def data() -> str:
    folder = os.environ.get("GKD_RL_DATA")
    if not folder or not (Path(folder) / "scitldr").is_dir():
        pytest.skip("GKD_RL_DATA names no folder with scitldr, opennmt_ende10k, ntrex_ende, self_instruct and ifeval")
    return folder


def written(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    """Path of a JSONL file of ``rows``."""
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def test_xsum_rows_become_prompts_and_references(tmp_path: Path):
    path = written(tmp_path, "xsum.jsonl", [XSUM])
    task = SummarizationTask(train=path, test=path, document="document", summary="summary")
    example = task.train_example(0)
    assert example.prompt == "summarize: A {long} text. It goes on.\n"
    assert example.completion == "Short."
    assert dict(example.columns) == {"reference": "Short.", "document": "A {long} text. It goes on."}
    chat = SummarizationTask(train=path, test=path, document="document", summary="summary", prompt_format="chat").held_out(1)[0].prompt
    assert [(m["role"], m["content"][:10]) for m in chat if not isinstance(m, str)] == [("system", "Summarize "), ("user", "A {long} t")]


def test_sentences_are_joined_and_several_references_kept(tmp_path: Path):
    path = written(tmp_path, "tldr.jsonl", [{"source": ["One.", " Two."], "target": ["short", "shorter"]}])
    example = SummarizationTask(train=path, test=path, template="{text}\nTL;DR:").train_example(0)
    assert (example.prompt, example.completion) == ("One. Two.\nTL;DR:", "short")
    assert example.columns["reference"] == ["short", "shorter"]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("summarize:", r"does not name \{text\}"),
        ("{text} {title}", r"names \{title\}, and there is \{text\}"),
        ("{text", "no template"),
        (7, "no template"),
    ],
)
def test_templates_that_cannot_work_are_refused(tmp_path: Path, template: Any, said: str):
    with pytest.raises(UserError, match=rf"task\.options\.template .*{said}"):
        SummarizationTask(train="x", test="x", data_dir=str(tmp_path), template=template)


def test_the_real_summaries_are_read_whole(data: str):
    task = SummarizationTask(data)
    held_out = task.held_out(10_000)
    assert (task.train_size, len(held_out)) == (1992, 618)
    examples = [task.train_example(i) for i in range(1992)] + held_out
    assert all(str(e.prompt) == f"summarize: {e.columns['document']}\n" and e.completion for e in examples)
    first, several = examples[0], [e for e in held_out if isinstance(e.columns["reference"], list)]
    assert len(str(first.completion).split()) == 38 and first.columns["reference"] == first.completion
    assert len(several) > 300 and all(len(e.columns["reference"]) > 1 for e in several)


@pytest.mark.parametrize("row", [PAIR, PAIR["translation"]], ids=["wmt", "columns"])
def test_translation_rows_become_prompts_and_references(tmp_path: Path, row: dict):
    path = written(tmp_path, "wmt.jsonl", [row])
    example = TranslationTask(train=path, test=path).train_example(0)
    assert (example.prompt, example.completion) == ("translate English to German: The house.\n", "Das Haus.")
    assert dict(example.columns) == {"reference": "Das Haus.", "source": "The house."}
    names = {"source": "de", "target": "en", "source_language": "German", "target_language": "English"}
    assert TranslationTask(train=path, test=path, **names).held_out(1)[0].prompt == "translate German to English: Das Haus.\n"


def test_two_text_files_go_line_by_line_without_empty_sides(tmp_path: Path):
    for name, lines in (("en", "one\n\nthree\nfour\n"), ("de", "eins\nzwei\ndrei\n \n"), ("short", "eins\n")):
        (tmp_path / name).write_text(lines)
    pairs = {"source": "en", "target": "de"}
    task = TranslationTask(str(tmp_path), train=pairs, test=pairs)
    assert [(task.train_example(i).columns["source"], task.train_example(i).completion) for i in range(2)] == [
        ("one", "eins"),
        ("three", "drei"),
    ]
    assert task.notes[0] == "task.options.train: 2 of 4 pairs have an empty side and are left out"
    with pytest.raises(UserError, match=r"task\.options\.train: .*en has 4 lines and .*short 1; line by line"):
        TranslationTask(str(tmp_path), train={"source": "en", "target": "short"}, test=pairs)
    with pytest.raises(UserError, match="is a mapping of sorce, target; give it the files source and target"):
        TranslationTask(str(tmp_path), train={"sorce": "en", "target": "de"}, test=pairs)


@pytest.mark.parametrize(
    ("moses", "plain"),
    [
        ("It &apos;s Anna &apos;s , is n&apos;t it ?", "It's Anna's, isn't it?"),
        ("a well @-@ known ( very old ) house .", "a well-known (very old) house."),
        ("He said : &quot; no &quot; .", 'He said: "no".'),
        ("5 &lt; 6 &amp; 7", "5 < 6 & 7"),
        ("nothing to do", "nothing to do"),
    ],
)
def test_tokenised_text_is_put_together_again(moses: str, plain: str):
    assert detokenised(moses) == plain


def test_the_real_translations_are_read_whole(data: str):
    task = TranslationTask(data)
    held_out = task.held_out(10_000)
    assert (task.train_size, len(held_out)) == (9999, 1997)
    assert task.notes == ("task.options.train: 1 of 10000 pairs have an empty side and are left out",)
    training = [task.train_example(i) for i in range(9999)]
    assert not [e.key for e in training if re.search(r"&\w+;|\w [,.](\s|$)", f"{e.columns['source']}\n{e.completion}")]
    raw = TranslationTask(data, detokenise_train=False)
    assert any("&apos;" in str(raw.train_example(i).prompt) for i in range(50))
    assert all(e.prompt == f"translate English to German: {e.columns['source']}\n" for e in training + held_out)


def test_each_form_of_instructions_is_known_by_its_fields(tmp_path: Path):
    rows = [
        {"prompt": "Say yes.", "completion": "yes<|endoftext|>", "template": "t", "row": 3},
        {"instruction": "Repeat.", "instances": [{"input": "a", "output": "a"}, {"input": "b", "output": "b"}]},
        {"instruction": "Count to two.", "instances": [{"input": "", "output": "1 2"}]},
        {"prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}], "key": 1},
    ]
    path = written(tmp_path, "rows.jsonl", rows)
    task = InstructionTask(train=path, test=path)
    plain, with_input, without, checked = (task.train_example(i) for i in range(4))
    assert (plain.prompt, plain.completion, dict(plain.columns)) == ("Say yes.\n", "yes", {"template": "t", "reference": "yes"})
    assert (with_input.prompt, with_input.completion) == ("Repeat.\n\na\n", "a")
    assert (without.prompt, without.completion) == ("Count to two.\n", "1 2")
    assert (checked.prompt, checked.completion) == ("No commas.\n", None)
    assert dict(checked.columns) == {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}], "reference": None}


def test_rows_without_instructions_say_so_where_held_out_ones_have_them(tmp_path: Path):
    """Rewards that check instructions then know that they do not apply."""
    train = written(tmp_path, "train.jsonl", [{"prompt": "Say yes.", "completion": "yes"}])
    test = written(tmp_path, "test.jsonl", [{"prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}])
    task = InstructionTask(train=train, test=test)
    assert dict(task.train_example(0).columns) == {"instruction_id_list": None, "kwargs": None, "reference": "yes"}
    checks = InstructionChecks(language=False)
    columns = [task.train_example(0).columns, task.held_out(1)[0].columns]
    assert checks(["q"] * 2, ["a b", "a b"], **{name: [row[name] for row in columns] for name in ("instruction_id_list", "kwargs")}) == [
        None,
        1.0,
    ]


def test_rows_in_flans_form_are_read_by_their_names(tmp_path: Path):
    path = written(tmp_path, "flan.jsonl", [{"inputs": "Say yes.", "targets": "yes"}])
    example = InstructionTask(train=path, test=path, prompt="inputs", completion="targets").train_example(0)
    assert (example.prompt, example.completion) == ("Say yes.\n", "yes")


def test_instances_that_are_none_are_refused(tmp_path: Path):
    path = written(tmp_path, "rows.jsonl", [{"instruction": "Repeat.", "instances": []}])
    with pytest.raises(UserError, match="line 1: field 'instances' is not a list of objects with input and output"):
        InstructionTask(train=path, test=path).train_example(0)


def test_the_real_instructions_are_read_whole(data: str):
    task, checked = InstructionTask(data), InstructionTask(data, test="ifeval/input_data.jsonl")
    training = [task.train_example(i) for i in range(6973)]
    assert task.train_size == 6973 and len({e.columns["template"] for e in training}) > 250
    assert not any("<|endoftext|>" in str(e.completion) for e in training)
    users, followed = task.held_out(10_000), checked.held_out(10_000)
    assert len(users) == 252 and all(e.completion and isinstance(e.prompt, str) for e in users)
    assert len(followed) == 541 and all(len(e.columns["instruction_id_list"]) == len(e.columns["kwargs"]) for e in followed)
    assert len({name for e in followed for name in e.columns["instruction_id_list"]}) == 25
    assert [reward.name for reward in checked.default_rewards()] == ["followed", "rougeL"]
    assert [reward.name for reward in task.default_rewards()] == ["rougeL"]


@pytest.mark.parametrize("path", ["summarization.SummarizationTask", "translation.TranslationTask", "instruction.InstructionTask"])
def test_the_configuration_names_the_task(data: str, path: str):
    config = Config(data_dir=data)
    config.task.path, config.task.prompt_format = f"gkd_rl.tasks.{path}", "chat"
    task = make_task(config)
    prompt = task.train_example(3).prompt
    assert not isinstance(prompt, str) and prompt[-1]["role"] == "user"
    assert task.default_rewards()[0].path.startswith("reward_models.")
