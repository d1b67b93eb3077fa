"""The teacher behind a server: its scores are those of the same model in the process, and no wrong answer is ever taken."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from experiences import experience
from teacher_server import TeacherServer, serving
from tiny_models import language_model

from gkd_rl.config.run import TeacherConfig
from gkd_rl.errors import UserError
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.sampler import InProcessSampler
from gkd_rl.teacher.local import LocalTeacher, TopKTeacher
from gkd_rl.teacher.served import ServedTeacher
from gkd_rl.types import Rollouts, TopKScores

VOCABULARY = 12


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[TeacherServer]:
    with serving(language_model("llama", seed=1)) as state:
        yield state


@pytest.fixture(scope="module")
def rollouts() -> Rollouts:
    """Rows of different lengths, sampled and from the dataset, padded on both sides."""
    return experience(language_model("llama"), None, 4, 2, dataset=2).rollouts


def served(server: TeacherServer, **changes: Any) -> ServedTeacher:
    settings = TeacherConfig(None, url=server.url, served_model="tiny", top_k=4, retries=3, retry_seconds=0.01, timeout=5.0)
    return ServedTeacher(replace(settings, **changes), VOCABULARY)


def assert_right(scores: TopKScores, rollouts: Rollouts, k: int = 4) -> None:
    """Equal to the same model in the process, and zero where there is no token."""
    expected = TopKTeacher(LocalTeacher(language_model("llama", seed=1), 200), k).score(rollouts)
    torch.testing.assert_close(scores.logprobs, expected.logprobs, atol=2e-5, rtol=0)
    torch.testing.assert_close(scores.token_logprobs, expected.token_logprobs, atol=2e-5, rtol=0)
    assert torch.equal(scores.ids, expected.ids)


@pytest.mark.parametrize("protocol", ["prompt_logprobs", "echo"])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_scores_are_those_of_the_model_in_the_process(server: TeacherServer, rollouts: Rollouts, protocol: Any, rows: int):
    assert_right(served(server, protocol=protocol, rows_per_request=rows).score(rollouts), rollouts)
    assert len(server.requests) == math.ceil(len(rollouts.examples) / rows)
    assert {request["model"] for request in server.requests} == {"tiny"}
    assert {header["path"] for header in server.headers} == {"/v1/completions"}


def test_a_row_is_sent_without_its_padding(server: TeacherServer, rollouts: Rollouts):
    served(server, rows_per_request=100).score(rollouts)
    lengths = (rollouts.prompt_mask.sum(1) + rollouts.completion_mask.sum(1)).tolist()
    assert [len(tokens) for tokens in server.requests[0]["prompt"]] == lengths


def test_k_is_bounded_by_the_vocabulary(server: TeacherServer, rollouts: Rollouts):
    assert_right(served(server, top_k=50).score(rollouts), rollouts, k=50)


def test_no_token_but_the_sampled_one_may_be_asked_for(server: TeacherServer, rollouts: Rollouts):
    scores = served(server, top_k=0).score(rollouts)
    assert scores.ids.shape[-1] == 0
    assert_right(replace(served(server).score(rollouts), token_logprobs=scores.token_logprobs), rollouts)


def test_no_rollouts_need_no_request(server: TeacherServer):
    empty = InProcessSampler(language_model("llama"), 4).sample([], 2, SamplingParams(3), 0)
    assert served(server).score(empty).ids.shape == (0, 1, 4) and not server.requests


def test_requests_go_out_at_once_but_not_more_than_allowed(server: TeacherServer, rollouts: Rollouts):
    server.delay = 0.1
    assert_right(served(server, rows_per_request=1, concurrency=3).score(rollouts), rollouts)
    assert server.most_under_way == 3


@pytest.mark.parametrize("suffix", ["/", "/v1", "/v1/", "/v1/completions"])
def test_the_address_may_be_given_in_any_form(server: TeacherServer, suffix: str):
    served(replace_url(server, suffix)).probe([3, 4])
    assert server.headers[0]["path"] == "/v1/completions"


def replace_url(server: TeacherServer, suffix: str) -> TeacherServer:
    server.url += suffix
    return server


def test_the_key_is_sent_and_has_to_be_there(server: TeacherServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TEACHER_KEY", "abc")
    served(server, api_key_env="TEACHER_KEY").probe([3, 4])
    assert server.headers[0]["Authorization"] == "Bearer abc"
    monkeypatch.delenv("TEACHER_KEY")
    with pytest.raises(UserError, match="TEACHER_KEY, which is not set"):
        served(server, api_key_env="TEACHER_KEY")


# faults


def status(code: int) -> Callable[[Any], Any]:
    return lambda answer: code


def dropped_position(answer: Any) -> None:
    del answer["choices"][0]["prompt_logprobs"][2]


def emptied_position(answer: Any) -> None:
    answer["choices"][0]["prompt_logprobs"][1] = None


def dropped_row(answer: Any) -> None:
    del answer["choices"][0]


def shifted(answer: Any) -> None:
    """The right number of positions, each of the token before."""
    given = answer["choices"][0]["prompt_logprobs"]
    given[1:] = [{"99": {"logprob": -1.0}}, *given[1:-1]]


def not_a_number(answer: Any) -> None:
    entry = answer["choices"][0]["prompt_logprobs"][1]
    next(iter(entry.values()))["logprob"] = math.nan


def nothing_in_place_of_a_number(answer: Any) -> None:
    entry = answer["choices"][0]["prompt_logprobs"][1]
    next(iter(entry.values()))["logprob"] = None


def probabilities(answer: Any) -> None:
    """Not logarithms."""
    for entry in answer["choices"][0]["prompt_logprobs"][1:]:
        for part in entry.values():
            part["logprob"] = math.exp(part["logprob"])


def not_json(answer: Any) -> bytes:
    return b"<html>busy</html>"


def cut_off(answer: Any) -> bytes:
    return b'{"choices": [{"ind'


FAULTS = {
    "500": (status(500), "the server answered 500"),
    "429": (status(429), "the server answered 429"),
    "a dropped position": (dropped_position, r"row \d+ \(example \d+\), position \d+: the answer has \d+ positions for \d+ tokens"),
    "an empty position": (emptied_position, r"position 1: the position is empty"),
    "a dropped row": (dropped_row, "the answer holds 0 of 1 rows"),
    "other tokens": (shifted, r"position 1: the answer is of other tokens \(99\)"),
    "NaN": (not_a_number, r"position 1: nan of token \d+ is no log-probability"),
    "null": (nothing_in_place_of_a_number, r"position 1: None of token \d+ is no log-probability"),
    "probabilities": (probabilities, r"position 1: 0\.\d+ of token \d+ is no log-probability"),
    "no JSON": (not_json, "the answer is no JSON"),
    "half an answer": (cut_off, "the answer is no JSON"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_passes_leaves_no_trace(server: TeacherServer, rollouts: Rollouts, name: str):
    server.faults = [FAULTS[name][0]] * 2
    assert_right(served(server, rows_per_request=1, concurrency=1).score(rollouts), rollouts)
    assert len(server.requests) == len(rollouts.examples) + 2


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_stays_ends_the_run_with_url_row_and_position(server: TeacherServer, rollouts: Rollouts, name: str):
    fault, said = FAULTS[name]
    server.faults = [fault] * 1000
    with pytest.raises(UserError, match=said) as refusal:
        served(server, rows_per_request=1, concurrency=1, retries=2).score(rollouts)
    message = str(refusal.value)
    assert message.startswith(f"teacher.url {server.url}/v1/completions: row ") and "after 3 tries" in message and "\n" not in message
    assert len(server.requests) == 3


def test_fewer_tokens_than_asked_for_are_not_taken(server: TeacherServer, rollouts: Rollouts):
    server.most_logprobs = 2
    with pytest.raises(UserError, match=r"the answer has [23] of the 4 likeliest tokens"):
        served(server, retries=0).score(rollouts)


def test_tokens_as_text_cannot_be_verified(server: TeacherServer, rollouts: Rollouts):
    def as_text(answer: Any) -> None:
        choice = answer["choices"][0]
        choice["logprobs"]["tokens"] = ["word" for _ in choice["logprobs"]["tokens"]]

    server.faults = [as_text] * 1000
    with pytest.raises(UserError, match="tokens come as text"):
        served(server, retries=0, protocol="echo").score(rollouts)


def test_the_row_that_is_named_is_the_batchs_not_the_requests(server: TeacherServer, rollouts: Rollouts):
    def last_row_is_short(answer: Any) -> None:
        if len(answer["choices"]) == 2:
            del answer["choices"][1]["prompt_logprobs"][-1]

    server.faults = [lambda answer: None, *[last_row_is_short] * 100]
    with pytest.raises(UserError, match=rf"row 3 \(example {rollouts.examples[3].key}\)"):
        served(server, rows_per_request=2, concurrency=1, retries=0).score(rollouts)


def test_a_request_that_is_wrong_is_not_repeated(server: TeacherServer, rollouts: Rollouts):
    server.faults = [status(404)] * 100
    with pytest.raises(UserError, match="the server answered 404"):
        served(server, concurrency=1).score(rollouts)
    assert len(server.requests) == 1


def test_a_slow_answer_is_asked_for_again_and_then_given_up(server: TeacherServer):
    server.delay = 1.0
    started = time.monotonic()
    with pytest.raises(UserError, match=r"(timed out|TimeoutError).*after 2 tries"):
        served(server, timeout=0.1, retries=1).probe([3, 4])
    assert time.monotonic() - started < 0.9 and len(server.requests) == 2


def test_a_server_that_is_not_there_is_named():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    gone = ServedTeacher(TeacherConfig(None, url=url, served_model="tiny", top_k=4, retries=1, retry_seconds=0.01), VOCABULARY)
    with pytest.raises(UserError, match=rf"teacher.url {url}/v1/completions: .*cannot be reached .*after 2 tries"):
        gone.probe([3, 4])


def test_waits_double_from_try_to_try(server: TeacherServer):
    server.faults = [status(503)] * 3
    started = time.monotonic()
    served(server, retry_seconds=0.05).probe([3, 4])
    assert time.monotonic() - started >= 0.05 * (1 + 2 + 4)


def test_the_first_failure_stops_what_still_waits(server: TeacherServer, rollouts: Rollouts):
    server.faults = [status(404), *[status(500)] * 1000]
    started = time.monotonic()
    with pytest.raises(UserError, match="404"):
        served(server, rows_per_request=1, concurrency=2, retries=8, retry_seconds=0.5).score(rollouts)
    assert time.monotonic() - started < 5
