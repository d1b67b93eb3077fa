"""Loading models and tokenizers: what is read, and what is refused in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import letters
from transformers import PreTrainedTokenizerBase

from gkd_rl.errors import UserError
from gkd_rl.models.language_model import CausalLanguageModel, EncoderDecoderLanguageModel, load_language_model
from gkd_rl.models.source import resolve
from gkd_rl.models.tokenizers import completion_tokens, load_tokenizer, prompt_tokens, require_same_tokenizer
from gkd_rl.types import Example


def test_the_kind_of_model_is_read_from_its_folder(llama_folder: Path, t5_folder: Path):
    assert isinstance(load_language_model(str(llama_folder), "student.path"), CausalLanguageModel)
    assert isinstance(load_language_model(str(t5_folder), "student.path"), EncoderDecoderLanguageModel)


def test_precision_is_as_asked(llama_folder: Path):
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = load_language_model(str(llama_folder), "student.path", name)
        assert {p.dtype for p in model.module.parameters()} == {dtype}


def test_dropout_is_off(model_folder: Callable[..., Path]):
    model = load_language_model(str(model_folder("t5", dropout_rate=0.5)), "student.path")
    assert not model.module.training


def test_a_folder_without_weights_is_refused(llama_folder: Path, tmp_path: Path):
    folder = shutil.copytree(llama_folder, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"^student.path: .*could not be loaded"):
        load_language_model(str(folder), "student.path")


def test_a_damaged_weight_file_is_refused(llama_folder: Path, tmp_path: Path):
    folder = shutil.copytree(llama_folder, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=r"^student.path: .*could not be loaded"):
        load_language_model(str(folder), "student.path")


def test_pickled_weights_are_not_read(llama_folder: Path, tmp_path: Path):
    folder = shutil.copytree(llama_folder, tmp_path / "model")
    model = load_language_model(str(llama_folder), "student.path")
    (folder / "model.safetensors").unlink()
    torch.save(model.module.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="could not be loaded"):
        load_language_model(str(folder), "student.path")


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"teacher.path: .* holds no config.json"):
        resolve(str(tmp_path), "teacher.path")
    with pytest.raises(UserError, match=r"teacher.path: model folder .* does not exist"):
        resolve(str(tmp_path / "absent"), "teacher.path")


def test_an_unknown_embedded_model_names_the_nearest():
    with pytest.raises(UserError, match="there is no embedded model 'arithmetic-techer'; the nearest is 'embedded:arithmetic-teacher'"):
        resolve("embedded:arithmetic-techer", "teacher.path")


def test_an_encoder_decoder_model_without_a_start_token_is_refused(t5_folder: Path, tmp_path: Path):
    folder = shutil.copytree(t5_folder, tmp_path / "model")
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text())
        settings["decoder_start_token_id"] = None
        (folder / name).write_text(json.dumps(settings))
    with pytest.raises(UserError, match="names no decoder_start_token_id"):
        load_language_model(str(folder), "student.path")


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path):
    tokenizer = letters(6)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="names no EOS token"):
        load_tokenizer(str(tmp_path), "student.path")


def test_padding_falls_back_to_the_end(tmp_path: Path):
    tokenizer = letters(6)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path), "student.path").pad_token_id == 1


def test_completions_are_closed_by_the_end_and_prompts_are_not():
    tokenizer = letters(6)
    assert prompt_tokens(tokenizer, "a b") == [2, 3]
    assert completion_tokens(tokenizer, Example("a b", "c"), 2) == [4, 1]


def test_chat_messages_go_through_the_template_with_the_assistants_turn_opened():
    tokenizer = letters(8)
    tokenizer.chat_template = "{% for m in messages %}a {{ m.content }} {% endfor %}{% if add_generation_prompt %}b{% endif %}"
    assert prompt_tokens(tokenizer, [{"role": "user", "content": "c d"}, {"role": "user", "content": "e"}]) == [2, 4, 5, 2, 6, 3]


def test_chat_messages_without_a_template_are_refused():
    with pytest.raises(UserError, match="has no chat template"):
        prompt_tokens(letters(8), [{"role": "user", "content": "c"}])


def test_equal_tokenizers_agree():
    require_same_tokenizer(letters(9), letters(9))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (letters(9, names="abxdefghi"), "token 4 is 'c' for the student and 'x' for the teacher"),
        (letters(10), "token 9 is None for the student and 'h' for the teacher"),
        (letters(8), "token 8 is 'g' for the student and None for the teacher"),
    ],
)
def test_the_first_token_that_differs_is_named(teacher: PreTrainedTokenizerBase, message: str):
    with pytest.raises(UserError, match=message):
        require_same_tokenizer(letters(9), teacher)


def test_tokens_after_a_gap_are_compared_too():
    student, teacher = letters(6), letters(6)
    student_vocabulary = {**student.get_vocab(), "p": 20}
    teacher_vocabulary = {**teacher.get_vocab(), "q": 20}
    student.get_vocab, teacher.get_vocab = lambda: student_vocabulary, lambda: teacher_vocabulary
    with pytest.raises(UserError, match="token 20 is 'p' for the student and 'q' for the teacher"):
        require_same_tokenizer(student, teacher)


def test_different_ends_of_an_answer_are_named():
    teacher = letters(9)
    teacher.eos_token = "c"
    with pytest.raises(UserError, match="EOS is '<eos>' for the student and 'c' for the teacher"):
        require_same_tokenizer(letters(9), teacher)
