"""Which weights are trained: patterns of frozen ones, and what is said of patterns that do not fit before a weight is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import language_model

from gkd_rl.config.student import LoraConfig, StudentConfig
from gkd_rl.errors import UserError
from gkd_rl.models.trained import check_trained, freeze, mark_trained


def frozen(module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize(
    ("kind", "patterns", "expected"),
    [
        ("llama:untied", ["model.embed_tokens.*"], {"model.embed_tokens.weight"}),
        ("llama:untied", ["lm_head.weight", "model.norm*"], {"lm_head.weight", "model.norm.weight"}),
        ("llama", ["lm_head.*"], {"model.embed_tokens.weight"}),  # tied: one weight of two names
        ("t5", ["encoder.block.1.*SelfAttention.[qk].weight"], {f"encoder.block.1.layer.0.SelfAttention.{x}.weight" for x in "qk"}),
    ],
)
def test_patterns_freeze_what_they_name(kind: str, patterns: list[str], expected: set[str]):
    model = language_model(kind)
    mark_trained(model.module, StudentConfig(freeze=patterns), 0)
    assert frozen(model.module) == expected
    assert model.trained_parameters < model.parameters


def test_nothing_is_frozen_by_default():
    model = language_model("llama")
    mark_trained(model.module, StudentConfig(), 0)
    assert frozen(model.module) == set()


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (["*norm*", "embed"], r"no parameter fits 'embed'; the student's are named like model\.embed_tokens\.weight, "),
        (["*"], r"student\.freeze=\['\*'\] leaves nothing to train"),
        (["model.*", "lm_head.*"], "leaves nothing to train"),
    ],
)
def test_patterns_that_fit_nothing_or_everything_are_refused(patterns: list[str], said: str):
    with pytest.raises(UserError, match=said):
        freeze(language_model("llama:untied").module, patterns)


def test_names_are_checked_without_reading_a_weight(model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    folder = str(model_folder("t5"))
    check_trained(StudentConfig(lora=LoraConfig(rank=2, targets=["q", "wo"])), folder, "student.path")
    check_trained(StudentConfig(freeze=["lm_head.*"]), folder, "student.path")
    for student, said in (
        (StudentConfig(lora=LoraConfig(rank=2, targets=["q_proj"])), r"no layer 'q_proj'; there are k, o, q, v, wi, wo, or"),
        (StudentConfig(freeze=["*q_proj*"]), r"no parameter fits '\*q_proj\*'"),
    ):
        with pytest.raises(UserError, match=said):
            check_trained(student, folder, "student.path")
