"""The output projection of a Hugging Face model as a ``Head``: weight, bias, scale and soft cap."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from gkd_rl.errors import UserError
from gkd_rl.types import Head


def head_of(model: PreTrainedModel, vocabulary: int) -> Head:
    """``model``'s head cut to the tokenizer's ``vocabulary`` (models pad theirs to different sizes).

    Raises ``UserError`` for a model without a linear output projection.
    """
    projection = model.get_output_embeddings()
    if not isinstance(projection, nn.Linear):
        raise UserError(f"{type(model).__name__} has no linear output projection and cannot be a student or teacher here")
    weight, bias = projection.weight, projection.bias
    if (constant := getattr(model, "final_logits_bias", None)) is not None:  # BART and its kin add a buffer [1, V]
        bias = constant[0] if bias is None else bias + constant[0]
    return Head(
        weight=weight[:vocabulary] if weight.shape[0] > vocabulary else weight,
        bias=bias[:vocabulary] if bias is not None and bias.shape[0] > vocabulary else bias,
        scale=_scale(model.config),
        soft_cap=getattr(model.config, "final_logit_softcapping", None),
    )


def _scale(config: PreTrainedConfig) -> float:
    """Cohere multiplies its logits, Granite divides them, and T5 with tied weights and UMT5 scale by d_model^-1/2."""
    if getattr(config, "logit_scale", None):
        return float(config.logit_scale)
    if getattr(config, "logits_scaling", None):
        return 1.0 / float(config.logits_scaling)
    if getattr(config, "scale_decoder_outputs", config.model_type == "umt5"):
        return float(config.d_model) ** -0.5
    return 1.0
