"""Real vLLM, inside the process and as a server, against our own decoding and the trainer's forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from experiences import examples, token_rows
from rollout_checks import TRUNCATIONS, exact_distribution, forward_logprobs
from statistics_of_draws import chi_square_limit, chi_square_of
from tiny_llama import WINDOW, change_weights, tiny_llama

from gkd_rl.config.run import VllmConfig
from gkd_rl.errors import UserError
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.processes import Processes
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.generate import GenerateSampler
from gkd_rl.rollout.sampler import InProcessSampler
from gkd_rl.rollout.vllm import VllmSampler
from gkd_rl.rollout.vllm_engine import ColocatedVllm
from gkd_rl.rollout.vllm_server import VllmServer
from gkd_rl.types import Example, Rollouts

pytestmark = pytest.mark.vllm
CONFIG = VllmConfig(kv_cache_gib=0.1, eager=True, retries=0)
KINDS = ("engine", "server")


@pytest.fixture(scope="module")
def processes() -> Processes:
    return Processes(1)


@pytest.fixture(scope="module")
def engine(processes: Processes) -> VllmSampler:
    """In the process, rows of the embedding beyond the tokenizer among its weights."""
    model = tiny_llama(vocab_size=16)
    return VllmSampler(model, ColocatedVllm(CONFIG, processes, WINDOW, 128), processes, False, 2000)


@pytest.fixture(scope="module")
def address(serve: Callable[..., str]) -> str:
    return serve(tiny_llama(), "--logprobs-mode", "processed_logprobs")


@pytest.fixture(scope="module")
def server(address: str, processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> VllmSampler:
    backend = VllmServer(replace(CONFIG, url=address), tmp_path_factory.mktemp("weights"), WINDOW, 16)
    return VllmSampler(tiny_llama(), backend, processes, True, 2000)


@pytest.fixture(scope="module", params=KINDS)
def sampler(request: pytest.FixtureRequest) -> VllmSampler:
    """A sampler that holds its model's present weights."""
    made: VllmSampler = request.getfixturevalue(request.param)
    made.sync(1)
    return made


def _sample(sampler, count: int = 12, per_prompt: int = 4, seed: int = 5, **params) -> Rollouts:
    return sampler.sample(examples(count), per_prompt, SamplingParams(**{"max_new_tokens": 10, **params}), seed)


def _greedy(sampler) -> list:
    return token_rows(_sample(sampler, 24, 1, temperature=0.0))


def test_greedy_decoding_is_that_of_native_and_generate_before_and_after_new_weights(sampler: VllmSampler):
    model, others = sampler.model, (InProcessSampler(sampler.model, 64), GenerateSampler(sampler.model, 64, 2000))
    first = _greedy(sampler)
    assert all(_greedy(other) == first for other in others)
    change_weights(model, 1 + sampler.version) if model.module.config.vocab_size == 12 else _shake(model)
    assert _greedy(sampler) == first != _greedy(others[0])  # the engine has weights of its own until it is told
    sampler.sync(sampler.version + 1)
    second = _greedy(sampler)
    assert second != first and all(_greedy(other) == second for other in others)
    assert _sample(sampler, 1, 2).version.tolist() == [sampler.version] * 2


def _shake(model: LanguageModel) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_log_probabilities_are_the_trainers_and_the_samplers(sampler: VllmSampler, truncation: str):
    settings = TRUNCATIONS[truncation]
    rollouts = _sample(sampler, **settings)
    mask = rollouts.completion_mask
    forward = forward_logprobs(sampler.model, rollouts)
    torch.testing.assert_close(rollouts.logprobs[mask], forward[mask], atol=1e-4, rtol=0)
    assert not rollouts.logprobs[~mask].any() and not rollouts.sampler_logprobs[~mask].any()
    for row, (prompt, completion) in enumerate(token_rows(rollouts)[:6]):
        for place, token in enumerate(completion):
            exact = exact_distribution(sampler.model, prompt + completion[:place], SamplingParams(1, **settings))[token]
            assert rollouts.sampler_logprobs[row, place].item() == pytest.approx(exact.log().item(), abs=1e-3)


@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_tokens_come_as_often_as_the_model_says(engine: VllmSampler, truncation: str):
    engine.sync(max(engine.version, 1))
    count, params = 1500, SamplingParams(1, **TRUNCATIONS[truncation])
    drawn = engine.sample([Example("a b", key=1)], count, params, seed=12).completion_ids[:, 0]
    statistic, freedom = chi_square_of(drawn.bincount(minlength=12).float(), exact_distribution(engine.model, [2, 3], params))
    assert statistic < chi_square_limit(freedom)


def test_rows_end_as_those_of_the_native_sampler_do(sampler: VllmSampler):
    """One trajectory, cut by each way to end: equal seeds give equal draws, so that only the end differs."""
    free = _sample(sampler)
    words = next(text for text in free.texts if len(text.split()) > 4).split()
    stop = " ".join(words[1:3])
    stopped = _sample(sampler, stop=(stop,))
    for before, after, ended in zip(free.texts, stopped.texts, stopped.ended.tolist(), strict=True):
        assert after == (before[: before.index(stop) + len(stop)] if stop in before else before)
        assert ended or stop not in before
    tokens = _sample(sampler, stop_token_ids=(4,))
    for (_, before), (_, after) in zip(token_rows(free), token_rows(tokens), strict=True):
        assert after == (before[: before.index(4) + 1] if 4 in before else before)
    for (_, row), ended in zip(token_rows(free), free.ended.tolist(), strict=True):
        assert ended == (row[-1] == 1) and 1 not in row[:-1] and (ended or len(row) == 10)
    assert 0 < int(free.ended.sum()) < 48


def test_stop_texts_among_the_first_tokens_end_an_answer_at_its_least_length(sampler: VllmSampler):
    native = InProcessSampler(sampler.model, 64)
    free = _sample(native, 24, 1, temperature=0.0, min_new_tokens=4)
    stop = free.texts[0].split()[0]
    for settings in ({"min_new_tokens": 4}, {"min_new_tokens": 4, "stop": (stop,)}, {"min_new_tokens": 10}):
        theirs, ours = (_sample(s, 24, 1, temperature=0.0, **settings) for s in (sampler, native))
        assert token_rows(theirs) == token_rows(ours) and theirs.ended.tolist() == ours.ended.tolist()


def test_equal_seeds_give_equal_rollouts_and_the_rows_of_a_group_differ(sampler: VllmSampler):
    first, second, other = (_sample(sampler, seed=seed) for seed in (5, 5, 6))
    assert token_rows(first) == token_rows(second) != token_rows(other)
    rows = token_rows(first)
    assert any(rows[i] != rows[i + 1] for i in range(0, 48, 4))


def test_no_examples_give_no_rows(sampler: VllmSampler):
    assert len(_sample(sampler, 0).examples) == 0


def test_the_engine_leaves_the_process_as_it_was(processes: Processes):
    model = tiny_llama()
    state, threads, setter = torch.get_rng_state(), torch.get_num_threads(), torch.set_num_threads
    sampler = VllmSampler(model, ColocatedVllm(CONFIG, processes, WINDOW, 8), processes, False, 2000)
    sampler.sync(0)
    _sample(sampler, 2, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads and torch.set_num_threads is setter


def test_a_server_that_scores_another_distribution_than_it_samples_from_is_refused(serve: Callable[..., str], tmp_path: Path):
    """And, started without its developer's mode, one that cannot take weights."""
    model = tiny_llama()
    with pytest.raises(UserError, match="--logprobs-mode processed_logprobs"):
        VllmServer(replace(CONFIG, url=serve(model)), tmp_path, WINDOW, 4)


def test_a_server_without_reload_endpoint_is_refused(serve: Callable[..., str], tmp_path: Path):
    model = tiny_llama()
    backend = VllmServer(replace(CONFIG, url=serve(model, "--logprobs-mode", "processed_logprobs", dev=False)), tmp_path, WINDOW, 4)
    with pytest.raises(UserError, match="VLLM_SERVER_DEV_MODE=1"):
        backend.deliver(model, 0)


def test_a_window_that_is_too_small_is_refused(address: str, tmp_path: Path):
    with pytest.raises(UserError, match=r"reads at most 64 tokens, but .* = 65"):
        VllmServer(replace(CONFIG, url=address), tmp_path, WINDOW + 1, 4)
