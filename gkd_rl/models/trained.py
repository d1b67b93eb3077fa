"""Which of the student's weights are trained: all, all but frozen ones, or an adapter's alone."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from gkd_rl.config.student import StudentConfig
from gkd_rl.errors import UserError
from gkd_rl.models.lora import SOME, add_lora, check_targets, require_peft


def check_trained(student: StudentConfig, source: str, where: str) -> None:
    """Raise ``UserError`` for adapters and frozen parts that do not fit the model at ``source``, of which no weight is read.

    ``where`` is the configuration key of the model, for the errors' text.
    """
    if student.lora.rank:
        require_peft()
    if student.lora.rank or student.freeze:
        bare = skeleton(source, where, student.trust_remote_code)
        if student.lora.rank:
            check_targets(bare, student.lora.targets)
        freeze(bare, student.freeze)


def mark_trained(module: PreTrainedModel, student: StudentConfig, seed: int) -> None:
    """Freeze what ``student.freeze`` names, or put the adapter of ``student.lora`` in; its weights are drawn from ``seed``."""
    if student.lora.rank:
        add_lora(module, student.lora, seed)
    freeze(module, student.freeze)


def freeze(module: PreTrainedModel, patterns: Sequence[str]) -> None:
    """Stop training parameters whose names fit a pattern (``*`` stands for anything); a tied weight goes by all of its names.

    Raises ``UserError`` for a pattern that fits nothing, and where nothing would be left to train.
    """
    parameters = list(module.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        meant = [parameter for name, parameter in parameters if fnmatchcase(name, pattern)]
        if not meant:
            some = ", ".join(name for name, _ in parameters[:SOME])
            raise UserError(f"student.freeze: no parameter fits '{pattern}'; the student's are named like {some}")
        for parameter in meant:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for _, parameter in parameters):
        raise UserError(f"student.freeze={list(patterns)} leaves nothing to train; name fewer parameters")


def skeleton(source: str, where: str, trust_remote_code: bool) -> PreTrainedModel:
    """The model's modules and names without any memory for weights."""
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        family = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        with torch.device("meta"):
            module = family.from_config(config, trust_remote_code=trust_remote_code)
            if getattr(config, "scale_decoder_outputs", True) is False:  # T5 1.1, whose files have a head of its own; Transformers ties it
                head = module.get_output_embeddings()
                head.weight = nn.Parameter(torch.empty_like(head.weight))
        return module
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: {source} could not be loaded: {str(error).strip().splitlines()[0]}") from None
