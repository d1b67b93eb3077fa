"""The sampler: greedy decoding against ``generate``, its log-probabilities against the trainer's, and what a row depends on."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from experiences import examples, own_logits, token_rows
from statistics_of_draws import chi_square_limit, chi_square_of
from tiny_models import language_model, letters
from torch._dynamo.utils import counters

from gkd_rl.errors import UserError
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.models.tokenizers import prompt_tokens
from gkd_rl.objective.compiled import has_compiler
from gkd_rl.objective.head import logits_of
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.sampler import InProcessSampler, dataset_rollouts
from gkd_rl.types import Example, Rollouts

KINDS = ("llama", "t5")


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
    return {kind: language_model(kind) for kind in KINDS}


def _sample(model: LanguageModel, count: int = 6, per_prompt: int = 3, max_rows: int = 64, seed: int = 5, **params) -> Rollouts:
    sampler = InProcessSampler(model, max_rows)
    return sampler.sample(examples(count), per_prompt, SamplingParams(**{"max_new_tokens": 10, **params}), seed)


def _completions(rollouts: Rollouts) -> list[list[int]]:
    return [completion for _, completion in token_rows(rollouts)]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "t5", "t5:untied", "bart"])
def test_greedy_decoding_equals_generate(kind: str):
    model = language_model(kind, seed=2)
    rollouts = _sample(model, 8, 1, temperature=0.0, max_new_tokens=12)
    for example, ours in zip(rollouts.examples, _completions(rollouts), strict=True):
        prompt = torch.tensor([prompt_tokens(model.tokenizer, example.prompt)])
        out = model.module.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=12, num_beams=1)
        theirs = out[0, 1 if model.module.config.is_encoder_decoder else prompt.shape[1] :].tolist()
        assert ours == theirs
    assert kind not in KINDS or len({len(completion) for completion in _completions(rollouts)}) > 1  # some have ended


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6, "top_k": 5, "top_p": 0.9}])
@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_are_those_of_the_trainers_forward_pass(models: dict[str, LanguageModel], kind: str, settings: dict):
    model = models[kind]
    rollouts = _sample(model, **settings)
    with torch.no_grad():
        hidden = model.completion_hidden(rollouts.prompt_ids, rollouts.prompt_mask, rollouts.completion_ids, rollouts.completion_mask)
    forward = logits_of(hidden, model.head).log_softmax(-1).gather(-1, rollouts.completion_ids[..., None])[..., 0]
    mask = rollouts.completion_mask
    torch.testing.assert_close(rollouts.logprobs[mask], forward[mask], atol=1e-4, rtol=0)
    assert not rollouts.logprobs[~mask].any() and not rollouts.sampler_logprobs[~mask].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_samplers_log_probabilities_are_of_what_was_drawn_from(models: dict[str, LanguageModel], kind: str):
    model = models[kind]
    exact = _sample(model)
    torch.testing.assert_close(exact.logprobs, exact.sampler_logprobs, atol=0, rtol=0)
    cold = _sample(model, temperature=0.5, top_k=3)
    for row, (prompt, completion) in enumerate(token_rows(cold)):
        logits = own_logits(model, prompt, completion).detach() / 0.5
        kept = logits.masked_fill(logits < logits.topk(3).values[:, -1:], -torch.inf)
        expected = kept.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]
        torch.testing.assert_close(cold.sampler_logprobs[row, : len(completion)], expected, atol=1e-4, rtol=0)
    assert (cold.logprobs - cold.sampler_logprobs).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_masks_end_with_the_first_end_token(models: dict[str, LanguageModel], kind: str):
    rollouts = _sample(models[kind], 12, 4)
    ended = 0
    for ids, mask, completion in zip(rollouts.completion_ids, rollouts.completion_mask, _completions(rollouts), strict=True):
        assert mask.tolist() == [True] * len(completion) + [False] * (len(mask) - len(completion))
        assert 1 not in completion[:-1]
        assert completion[-1] == 1 or len(completion) == 10
        assert (ids[~mask] == 0).all()
        ended += completion[-1] == 1
    assert 5 < ended < 48


def test_an_answer_that_ends_with_the_last_token_allowed_is_whole(models: dict[str, LanguageModel]):
    long = _sample(models["llama"], 12, 4, max_new_tokens=10)
    length = int(long.completion_mask.sum(1)[long.ended].median())
    cut = _sample(models["llama"], 12, 4, max_new_tokens=length)
    sizes = long.completion_mask.sum(1)
    assert torch.equal(cut.ended, long.ended & (sizes <= length))
    assert bool((cut.ended & (sizes == length)).any()) and bool((~cut.ended).any())


def test_stop_texts_end_an_answer_with_the_token_that_completes_them(models: dict[str, LanguageModel]):
    free = _sample(models["llama"], 12, 4)
    text = next(t for t in free.texts if len(t.split()) > 4).split()
    stop = " ".join(text[1:3])
    stopped = _sample(models["llama"], 12, 4, stop=(stop,))
    assert any(stop in text for text in free.texts)
    for before, after, ended in zip(free.texts, stopped.texts, stopped.ended.tolist(), strict=True):
        cut = before[: before.index(stop) + len(stop)] if stop in before else before
        assert after == cut and (ended or stop not in before)


def test_stop_tokens_end_an_answer(models: dict[str, LanguageModel]):
    free = _sample(models["llama"], 12, 4)
    token = int(free.completion_ids[0, 0])
    stopped = _sample(models["llama"], 12, 4, stop_token_ids=(token,))
    for before, after in zip(_completions(free), _completions(stopped), strict=True):
        assert after == (before[: before.index(token) + 1] if token in before else before)


def test_no_answer_ends_before_its_least_length(models: dict[str, LanguageModel]):
    free, kept = _sample(models["llama"], 12, 4), _sample(models["llama"], 12, 4, min_new_tokens=4)
    assert int(free.completion_mask.sum(1).min()) < 4 <= int(kept.completion_mask.sum(1).min())
    first = kept.completion_mask[:, 0]
    assert (kept.sampler_logprobs[first, 0] > kept.logprobs[first, 0]).all()  # an end was possible and was not allowed


def test_every_end_token_of_the_generation_settings_ends_an_answer():
    model = language_model("llama")
    before = _completions(_sample(model))
    model.module.generation_config.eos_token_id = [1, 5]  # pyright: ignore
    after = _completions(_sample(model))
    for long, short in zip(before, after, strict=True):
        end = min((i for i, token in enumerate(long) if token in (1, 5)), default=len(long) - 1)
        assert short == long[: end + 1]
    assert before != after


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_depends_neither_on_its_batch_nor_on_who_has_finished(models: dict[str, LanguageModel], kind: str):
    model, sampler = models[kind], InProcessSampler(models[kind], 64)
    together = _completions(_sample(model))
    for max_rows in (1, 3, 7):
        assert _completions(_sample(model, max_rows=max_rows)) == together
    params = SamplingParams(10)
    for i, example in enumerate(examples(6)):
        assert _completions(sampler.sample([example], 3, params, 5)) == together[3 * i : 3 * i + 3]
        assert _completions(sampler.sample([example], 1, params, 5)) == together[3 * i : 3 * i + 1]
    backwards = _completions(sampler.sample(examples(6)[::-1], 3, params, 5))
    assert backwards == [together[3 * i + g] for i in reversed(range(6)) for g in range(3)]


def test_equal_seeds_give_equal_rollouts_and_others_other_ones(models: dict[str, LanguageModel]):
    first, second, other = (_sample(models["llama"], seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first.completion_ids, second.completion_ids) and torch.equal(first.logprobs, second.logprobs)
    assert _completions(first) != _completions(other)


def test_the_rows_of_a_group_differ_and_stand_together(models: dict[str, LanguageModel]):
    rollouts = _sample(models["llama"])
    assert rollouts.group.tolist() == [key for key in range(6) for _ in range(3)]
    assert [example.key for example in rollouts.examples] == rollouts.group.tolist()
    rows = _completions(rollouts)
    assert any(rows[i] != rows[i + 1] for i in range(0, 18, 3))


def test_rollouts_say_how_they_came_to_be(models: dict[str, LanguageModel]):
    sampler = InProcessSampler(models["llama"], 64)
    sampler.sync(7)
    rollouts = sampler.sample(examples(2), 2, SamplingParams(4), 0)
    assert rollouts.version.tolist() == [7] * 4
    assert rollouts.on_policy.all()
    for (prompt, completion), example, text in zip(token_rows(rollouts), rollouts.examples, rollouts.texts, strict=True):
        assert prompt == prompt_tokens(sampler.model.tokenizer, example.prompt)
        assert text == sampler.model.tokenizer.decode([token for token in completion if token > 1])


@pytest.mark.parametrize("kind", KINDS)
def test_no_examples_give_no_rows(models: dict[str, LanguageModel], kind: str):
    rollouts = InProcessSampler(models[kind], 64).sample([], 4, SamplingParams(5), 0)
    assert rollouts.completion_ids.shape[0] == rollouts.prompt_ids.shape[0] == len(rollouts.examples) == len(rollouts.texts) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_whole_answers_come_as_often_as_the_model_says(kind: str):
    model = language_model(kind, vocabulary=4, seed=1)
    count = 4000
    rollouts = InProcessSampler(model, count).sample([Example("a b", key=1)], count, SamplingParams(2), seed=11)
    probabilities = {}
    with torch.no_grad():
        for answer in [(1,), *itertools.product((0, 2, 3), range(4))]:
            logprobs = own_logits(model, [2, 3], list(answer)).log_softmax(-1)
            probabilities[answer] = math.exp(sum(logprobs[i, token].item() for i, token in enumerate(answer)))
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
    drawn = [tuple(completion) for completion in _completions(rollouts)]
    counts = torch.tensor([float(drawn.count(answer)) for answer in probabilities])
    assert counts.sum() == count
    statistic, freedom = chi_square_of(counts, torch.tensor(list(probabilities.values())))
    assert statistic < chi_square_limit(freedom)


def test_dataset_rows_carry_the_datasets_completions_closed_by_the_end(models: dict[str, LanguageModel]):
    rows = [Example("a b c", "d e", key=4), Example("a", "b c d", key=9)]
    rollouts = dataset_rollouts(models["llama"], rows, 4, version=3)
    assert token_rows(rollouts) == [([2, 3, 4], [5, 6, 1]), ([2], [3, 4, 5, 1])]
    assert not rollouts.on_policy.any()
    assert not rollouts.logprobs.any() and not rollouts.sampler_logprobs.any()
    assert rollouts.group.tolist() == [4, 9] and rollouts.version.tolist() == [3, 3]
    assert rollouts.texts == ("d e", "b c d")


def test_a_dataset_completion_is_refused_rather_than_cut(models: dict[str, LanguageModel]):
    with pytest.raises(UserError, match=r"example 9 has 5 tokens, over rollout\.max_new_tokens=4"):
        dataset_rollouts(models["llama"], [Example("a", "b c d e", key=9)], 4, 0)


def test_an_example_without_completion_cannot_be_a_dataset_row(models: dict[str, LanguageModel]):
    with pytest.raises(UserError, match="example 8 of the task has no completion"):
        dataset_rollouts(models["llama"], [Example("a", key=8)], 4, 0)


def test_chat_prompts_go_through_the_template():
    model = language_model("llama")
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}a"
    rollouts = InProcessSampler(model, 4).sample([Example([{"role": "user", "content": "c d"}])], 1, SamplingParams(2), 0)
    assert token_rows(rollouts)[0][0] == prompt_tokens(letters(12), "c d a")


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param("inductor", marks=[pytest.mark.slow, pytest.mark.skipif(not has_compiler(torch.device("cpu")), reason="no compiler")]),
    ],
)
def test_a_compiled_step_decodes_the_same(monkeypatch: pytest.MonkeyPatch, backend: str):
    """Groups, rows that end and are taken out, and chunks of other sizes; one graph serves many steps."""
    model = language_model("llama", seed=2, num_hidden_layers=1)
    cases = [(count, per_prompt, temperature) for count, per_prompt in ((8, 1), (5, 3), (1, 1)) for temperature in (0.0, 1.0)]
    eager = [_sample(model, count, per_prompt, temperature=temperature) for count, per_prompt, temperature in cases]
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    model.compile_decoding()
    counters.clear()
    for (count, per_prompt, temperature), expected in zip(cases, eager, strict=True):
        found = _sample(model, count, per_prompt, temperature=temperature)
        assert torch.equal(found.completion_ids, expected.completion_ids)
        torch.testing.assert_close(found.logprobs, expected.logprobs, atol=1e-5, rtol=0)
    assert 0 < counters["stats"]["unique_graphs"] < 10
