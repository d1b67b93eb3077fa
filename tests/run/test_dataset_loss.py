"""The loss on the dataset's own completions, by which the share of sampled rows may go."""

from __future__ import annotations

import pytest
import torch
from experiences import examples, own_logits
from tiny_models import language_model

from gkd_rl.errors import UserError
from gkd_rl.evaluation.dataset_loss import dataset_loss
from gkd_rl.models.tokenizers import completion_tokens, prompt_tokens
from gkd_rl.processes import Processes
from gkd_rl.types import Example


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_it_is_the_mean_over_tokens_of_their_surprise(kind: str, budget: int):
    model, total, tokens = language_model(kind), 0.0, 0
    for example in examples(7):
        completion = completion_tokens(model.tokenizer, example, None)
        logits = own_logits(model, prompt_tokens(model.tokenizer, example.prompt), completion)
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(completion), reduction="sum").item()
        tokens += len(completion)
    assert dataset_loss(model, examples(7), 6, budget, Processes()) == pytest.approx(total / tokens, rel=1e-5)


def test_an_example_without_completion_has_no_loss():
    with pytest.raises(UserError, match="example 8 of the task has no completion"):
        dataset_loss(language_model("llama"), [Example("a", key=8)], 4, 10, Processes())
