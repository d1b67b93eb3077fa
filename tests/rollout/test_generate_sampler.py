"""The sampler over Hugging Face's ``generate``: the same rollouts as our own decoding, from another implementation of everything."""

from __future__ import annotations

import pytest
import torch
from experiences import examples, token_rows
from rollout_checks import TRUNCATIONS, exact_distribution, forward_logprobs
from statistics_of_draws import chi_square_limit, chi_square_of
from tiny_models import language_model

from gkd_rl.models.language_model import LanguageModel
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.generate import GenerateSampler
from gkd_rl.rollout.sampler import InProcessSampler, Sampler
from gkd_rl.types import Example, Rollouts

KINDS = ("llama", "t5")
CASES = {**TRUNCATIONS, "all": {"temperature": 1.4, "top_k": 6, "top_p": 0.9, "min_p": 0.1}}


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
    return {kind: language_model(kind) for kind in KINDS}


def _both(model: LanguageModel, count: int = 8, per_prompt: int = 3, **params) -> tuple[Rollouts, Rollouts]:
    """Rollouts by ``generate`` and by our own decoding."""
    settings = SamplingParams(**{"max_new_tokens": 10, **params})
    theirs, ours = (sampler.sample(examples(count), per_prompt, settings, 5) for sampler in _samplers(model))
    return theirs, ours


def _samplers(model: LanguageModel) -> tuple[Sampler, Sampler]:
    return GenerateSampler(model, 7, 200), InProcessSampler(model, 64)


def _require_equal(theirs: Rollouts, ours: Rollouts) -> None:
    assert token_rows(theirs) == token_rows(ours)
    assert theirs.ended.tolist() == ours.ended.tolist() and theirs.texts == ours.texts
    for name in ("logprobs", "sampler_logprobs"):
        torch.testing.assert_close(getattr(theirs, name), getattr(ours, name), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "llama:untied", "gpt2", "qwen3", "gemma2", "cohere", "t5", "t5:untied", "umt5", "bart"])
def test_greedy_decoding_is_that_of_the_native_sampler(kind: str):
    theirs, ours = _both(language_model(kind, seed=2), per_prompt=1, temperature=0.0, max_new_tokens=12)
    _require_equal(theirs, ours)
    assert not theirs.sampler_logprobs.any() and theirs.logprobs[theirs.completion_mask].lt(0).all()


@pytest.mark.parametrize("truncation", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_one_seed_gives_one_rollout_whichever_sampler_draws_it(models: dict[str, LanguageModel], kind: str, truncation: str):
    theirs, ours = _both(models[kind], 16, **CASES[truncation])
    _require_equal(theirs, ours)
    assert 0 < int(ours.ended.sum()) < len(ours.ended)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_are_those_of_the_trainers_forward_pass(models: dict[str, LanguageModel], kind: str):
    model = models[kind]
    rollouts, _ = _both(model, temperature=0.7, top_p=0.9)
    forward = forward_logprobs(model, rollouts)
    mask = rollouts.completion_mask
    torch.testing.assert_close(rollouts.logprobs[mask], forward[mask], atol=1e-4, rtol=0)
    assert not rollouts.logprobs[~mask].any() and not rollouts.sampler_logprobs[~mask].any()


@pytest.mark.parametrize("truncation", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_both_samplers_draw_tokens_as_often_as_the_model_says(models: dict[str, LanguageModel], kind: str, truncation: str):
    model, count = models[kind], 3000
    params = SamplingParams(1, **CASES[truncation])
    exact = exact_distribution(model, [2, 3], params)
    for sampler in (GenerateSampler(model, count, 10_000), InProcessSampler(model, count)):
        rollouts = sampler.sample([Example("a b", key=1)], count, params, seed=12)
        drawn = rollouts.completion_ids[:, 0]
        statistic, freedom = chi_square_of(drawn.bincount(minlength=12).float(), exact)
        assert statistic < chi_square_limit(freedom)
        torch.testing.assert_close(rollouts.sampler_logprobs[:, 0], exact.log()[drawn].float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_stop_texts_stop_tokens_and_least_lengths_mean_the_same(models: dict[str, LanguageModel], kind: str):
    free, _ = _both(models[kind])
    words = next(text for text in free.texts if len(text.split()) > 4).split()
    stop = " ".join(words[1:3])
    for settings in ({"stop": (stop,)}, {"stop_token_ids": (4, 7)}, {"min_new_tokens": 4}, {"stop": (stop, words[3]), "min_new_tokens": 3}):
        theirs, ours = _both(models[kind], **settings)
        _require_equal(theirs, ours)
        assert token_rows(theirs) != token_rows(free)
    theirs, _ = _both(models[kind], stop=(stop,))
    assert any(text.endswith(stop) for text in theirs.texts)
    assert all(stop not in text.removesuffix(stop) for text in theirs.texts)


def test_every_end_token_of_the_generation_settings_ends_an_answer_and_its_penalties_do_nothing():
    model = language_model("llama")
    settings = model.module.generation_config
    assert settings is not None
    settings.eos_token_id, settings.repetition_penalty, settings.no_repeat_ngram_size = [1, 5], 3.0, 2
    _require_equal(*_both(model, temperature=0.0))
    _require_equal(*_both(model))
    assert model.module.generation_config is settings


def test_rows_of_the_embedding_beyond_the_tokenizer_are_never_drawn():
    model = language_model("llama", vocab_size=20)
    theirs, ours = _both(model, 8, 6)
    _require_equal(theirs, ours)
    assert int(theirs.completion_ids.max()) < 12


def test_the_global_random_state_is_neither_read_nor_moved(models: dict[str, LanguageModel]):
    torch.manual_seed(1)
    first, _ = _both(models["llama"])
    state = torch.get_rng_state()
    second, _ = _both(models["llama"])
    assert torch.equal(torch.get_rng_state(), state)
    assert token_rows(first) == token_rows(second)


@pytest.mark.parametrize("kind", KINDS)
def test_no_examples_give_no_rows(models: dict[str, LanguageModel], kind: str):
    rollouts = GenerateSampler(models[kind], 4, 64).sample([], 4, SamplingParams(5), 0)
    assert rollouts.completion_ids.shape[0] == len(rollouts.examples) == len(rollouts.texts) == 0


def test_rollouts_carry_the_version_that_was_synchronised(models: dict[str, LanguageModel]):
    sampler = GenerateSampler(models["llama"], 64, 1000)
    sampler.sync(7)
    assert sampler.sample(examples(2), 2, SamplingParams(4), 0).version.tolist() == [7] * 4
