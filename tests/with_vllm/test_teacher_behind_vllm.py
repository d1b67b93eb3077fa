"""A teacher behind a real vLLM server: its scores are those of the same model in the process."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from experiences import experience
from tiny_llama import tiny_llama

from gkd_rl.config.run import TeacherConfig
from gkd_rl.errors import UserError
from gkd_rl.teacher.local import LocalTeacher, TopKTeacher
from gkd_rl.teacher.served import ServedTeacher
from gkd_rl.types import Rollouts

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def url(serve: Callable[..., str]) -> str:
    return serve(tiny_llama(1), "--max-logprobs", "8", "--served-model-name", "tiny")


@pytest.fixture(scope="module")
def rollouts() -> Rollouts:
    """Rows of different lengths, sampled and from the dataset, padded on both sides."""
    return experience(tiny_llama(), None, 4, 2, dataset=2).rollouts


def _teacher(url: str, k: int, **settings) -> ServedTeacher:
    return ServedTeacher(TeacherConfig(None, url=url, served_model="tiny", top_k=k, retries=0, **settings), 12)


@pytest.mark.parametrize("protocol", ["prompt_logprobs", "echo"])
@pytest.mark.parametrize("k", [0, 4, 8])
def test_scores_are_those_of_the_model_in_the_process(url: str, rollouts: Rollouts, k: int, protocol: str):
    found = _teacher(url, k, protocol=protocol, rows_per_request=3).score(rollouts)
    expected = TopKTeacher(LocalTeacher(tiny_llama(1), 200), k).score(rollouts)
    torch.testing.assert_close(found.logprobs, expected.logprobs, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.token_logprobs, expected.token_logprobs, atol=1e-4, rtol=0)
    assert torch.equal(found.ids, expected.ids)


def test_more_tokens_than_the_server_gives_are_refused_with_its_words(url: str):
    with pytest.raises(UserError, match=r"teacher\.url .*8"):
        _teacher(url, 9).probe([1, 1])
