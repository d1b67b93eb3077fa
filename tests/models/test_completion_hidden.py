"""``completion_hidden`` and ``head`` give the model's own predictions, at the right positions, whatever the padding."""

from __future__ import annotations

import pytest
import torch
from experiences import own_logits
from tiny_models import CAUSAL, FAMILIES, build, language_model, letters, padded_rows, word_tokenizer

from gkd_rl.errors import UserError
from gkd_rl.models.language_model import LanguageModel, encode_prompts, wrap
from gkd_rl.objective.head import logits_of

ROWS = [([5, 6, 7], [3, 4, 1]), ([4, 8, 9, 10, 3, 2, 5], [6]), ([7], [2, 3, 4, 5, 6]), ([2, 2], [1])]
"""Prompts and completions, two completions of one token among them."""


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
    return {kind: language_model(kind) for kind in FAMILIES}


def _logprobs(model: LanguageModel, rows, **padding) -> torch.Tensor:
    with torch.no_grad():
        return logits_of(model.completion_hidden(*padded_rows(rows, **padding)), model.head).log_softmax(-1)


@pytest.mark.parametrize("kind", FAMILIES)
def test_each_token_is_predicted_as_by_the_model_itself(models: dict[str, LanguageModel], kind: str):
    ours = _logprobs(models[kind], ROWS)
    for row, (prompt, completion) in enumerate(ROWS):
        with torch.no_grad():
            theirs = own_logits(models[kind], prompt, completion).log_softmax(-1)
        torch.testing.assert_close(ours[row, : len(completion)], theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_tokens_prediction_does_not_look_at_the_token(models: dict[str, LanguageModel], kind: str):
    before, after = _logprobs(models[kind], [([5, 6], [3, 4, 5])]), _logprobs(models[kind], [([5, 6], [3, 9, 5])])
    torch.testing.assert_close(before[:, :2], after[:, :2], atol=1e-6, rtol=0)
    assert (before[:, 2] - after[:, 2]).abs().max() > 1e-2


@pytest.mark.parametrize("pad", [0, 5])
@pytest.mark.parametrize("kind", FAMILIES)
def test_padding_changes_nothing(models: dict[str, LanguageModel], kind: str, pad: int):
    narrow, wide = _logprobs(models[kind], ROWS).exp(), _logprobs(models[kind], ROWS, left=5, right=3, pad=pad).exp()
    for row, (_, completion) in enumerate(ROWS):
        torch.testing.assert_close(narrow[row, : len(completion)], wide[row, : len(completion)], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", FAMILIES)
def test_decoding_step_by_step_goes_through_the_same_states(models: dict[str, LanguageModel], kind: str):
    model = models[kind]
    prompt_ids, prompt_mask, ids, mask = padded_rows(ROWS)
    with torch.no_grad():
        whole = model.completion_hidden(prompt_ids, prompt_mask, ids, mask).repeat_interleave(2, dim=0)
        first, state = model.begin(prompt_ids, prompt_mask, 8)
        state.repeat(2)
        ids, alive = ids.repeat_interleave(2, dim=0), torch.arange(8)
        seen = first.repeat_interleave(2, dim=0)
        lengths = mask.repeat_interleave(2, dim=0).sum(1)
        for position in range(ids.shape[1]):
            torch.testing.assert_close(seen, whole[alive, position], atol=1e-5, rtol=0)
            keep = (lengths[alive] > position + 1).nonzero()[:, 0].flip(0)
            if not len(keep):
                break
            state.select(keep)
            alive = alive[keep]
            seen = model.advance(ids[alive, position], state)
    assert position == 4


@pytest.mark.parametrize("kind", ["llama", "llama:untied", "gpt2", "t5", "t5:untied", "bart"])
def test_a_vocabulary_padded_beyond_the_tokenizers_is_cut(kind: str):
    tokenizer = letters(12)
    module = build(kind, tokenizer, vocab_size=16)
    model = wrap(module, tokenizer)
    assert model.head.weight.shape[0] == 12
    logprobs = _logprobs(model, ROWS[:1])
    assert logprobs.shape[-1] == 12
    with torch.no_grad():
        theirs = own_logits(model, *ROWS[0]).log_softmax(-1)
    torch.testing.assert_close(logprobs[0], theirs, atol=1e-5, rtol=0)


def test_a_vocabulary_with_gaps_keeps_its_last_tokens():
    gapped = word_tokenizer({"<pad>": 0, "<eos>": 1, "a": 2, "b": 3, "c": 4, "last": 9})
    assert len(gapped) == 6
    model = wrap(build("llama", gapped, vocab_size=10), gapped)
    assert model.head.weight.shape[0] == 10
    with pytest.raises(UserError, match="10 tokens, but the model embeds only 9"):
        wrap(build("llama", gapped, vocab_size=9), gapped)


def test_bart_adds_its_constant_to_the_logits():
    tokenizer = letters(12)
    module = build("bart", tokenizer)
    module.final_logits_bias.copy_(torch.randn(1, 12, generator=torch.Generator().manual_seed(0)))  # pyright: ignore
    model = wrap(module, tokenizer)
    with torch.no_grad():
        theirs = own_logits(model, *ROWS[0]).log_softmax(-1)
    torch.testing.assert_close(_logprobs(model, ROWS[:1])[0], theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_head_that_cannot_be_reproduced_is_refused(kind: str):
    tokenizer = letters(12)
    module = build(kind, tokenizer)
    forward = module.forward

    def louder(*arguments, **named):
        output = forward(*arguments, **named)
        output.logits = output.logits * 1.2
        return output

    module.forward = louder
    with pytest.raises(UserError, match="forms its logits in a way this version cannot reproduce"):
        wrap(module, tokenizer)


def test_a_model_without_a_linear_head_is_refused():
    tokenizer = letters(12)
    module = build("llama", tokenizer)
    module.get_output_embeddings = lambda: None
    with pytest.raises(UserError, match="no linear output projection"):
        wrap(module, tokenizer)


def test_half_precision_models_pass_the_proof_of_their_head():
    tokenizer = letters(12)
    for kind in CAUSAL:
        wrap(build(kind, tokenizer).to(torch.bfloat16), tokenizer)  # pyright: ignore


def test_prompts_are_padded_on_the_left():
    ids, mask = encode_prompts(language_model("llama"), [[3, 4, 5], [6]])
    assert ids.tolist() == [[3, 4, 5], [0, 0, 6]]
    assert mask.tolist() == [[True, True, True], [False, False, True]]


def test_gradients_reach_every_parameter_of_causal_and_encoder_decoder_models():
    for kind in ("llama:untied", "t5:untied", "gpt2"):
        model = language_model(kind)
        logits_of(model.completion_hidden(*padded_rows(ROWS)), model.head).log_softmax(-1)[..., 3].sum().backward()
        without = [name for name, p in model.module.named_parameters() if p.grad is None or not p.grad.any()]
        assert not without, (kind, without)
