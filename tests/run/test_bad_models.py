"""Models that do not fit or are damaged: named under their key before anything else is loaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from workbench import Models


@pytest.fixture
def changed(models: Models, tmp_path: Path) -> Callable[..., Path]:
    """``changed(change)``: a copy of the student's folder after ``change(folder)``."""

    def changed(change: Callable[[Path], object]) -> Path:
        folder = shutil.copytree(models.student, tmp_path / "changed")
        change(folder)
        return folder

    return changed


def test_vocabularies_that_differ_name_the_first_token(refused_run, models: Models) -> None:
    said = refused_run(f"teacher.path={models.foreign}")
    assert "student and teacher have different tokenizers: token 390 is " in said and "choose a teacher of the student's family" in said


def test_a_teacher_that_ends_answers_otherwise_is_refused(refused_run, models: Models, changed) -> None:
    def other_end(folder: Path) -> None:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<user>"}))

    assert "EOS is '<end>' for the student and '<user>' for the teacher" in refused_run(f"teacher.path={changed(other_end)}")


@pytest.mark.parametrize("key", ["student.path", "teacher.path"])
def test_a_model_folder_that_is_not_there_names_the_nearest(refused_run, models: Models, key: str) -> None:
    said = refused_run(f"{key}={models.student.parent / 'studnt'}")
    assert said == f"{key}: model folder {models.student.parent / 'studnt'} does not exist; did you mean {models.student}?"


def test_an_unknown_embedded_model_names_the_nearest(refused_run) -> None:
    assert "the nearest is 'embedded:arithmetic-teacher'" in refused_run("teacher.path=embedded:arithmetic-taecher")


def test_the_model_to_evaluate_is_checked_under_its_own_key(refused_run, tmp_path: Path) -> None:
    assert refused_run(f"model={tmp_path / 'absent'}", command="evaluate").startswith("model: model folder")


def _without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def _with(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def _deeper(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 3}))


def _wider(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "intermediate_size": 72}))


def _cut(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1000)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without("config.json"), "holds no config.json"),
        (_without("model.safetensors"), "no file named model.safetensors"),
        (_without("tokenizer.json", "tokenizer_config.json"), "holds no tokenizer"),
        (_with("config.json", "{"), "config.json"),
        (_with("config.json", '{"model_type": "zork"}'), "zork"),
        (_with("tokenizer.json", "{}"), "no tokenizer could be loaded"),
        (_cut, "could not be loaded"),
        (_deeper, "9 are missing or of another shape, the first of them model.layers.2."),
        (_wider, "6 are missing or of another shape, the first of them model.layers.0.mlp.down_proj.weight"),
    ],
)
def test_a_damaged_model_folder_is_refused_under_its_key(refused_run, changed, change, said: str) -> None:
    answer = refused_run(f"student.path={changed(change)}")
    assert answer.startswith("student.path: ") and said in answer


def test_a_classifier_is_no_student(refused_run, models: Models) -> None:
    said = refused_run(f"student.path={models.judge}")
    assert "1 are missing or of another shape, the first of them lm_head.weight; give the checkpoint of a language model" in said


def test_a_chat_format_without_a_template_is_refused(refused_run, changed) -> None:
    path = changed(_without("chat_template.jinja"))
    assert "the student's tokenizer has no chat template" in refused_run(f"student.path={path}", "task.prompt_format=chat")
