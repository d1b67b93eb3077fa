"""A judge behind a real server: what it is asked, how its answers are read, and what happens where it fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_server import JudgeServer, judging

from reward_models import InputError, LLMJudge, RewardError, WeightedSum

RUBRIC = "Rate {completion} for {prompt} as {level}"


def _by_length(question: str) -> str:
    """The judge's score is the number of letters x."""
    return f'Fine.\n{{"score": {question.count("x")}}}'


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judging(_by_length) as server:
        yield server


def _judge(server: JudgeServer, **options: Any) -> LLMJudge:
    return LLMJudge(**{"url": server.url, "model": "m", "rubric": RUBRIC, "retry_seconds": 0.01, **options})


def test_rows_become_messages_and_scores_rewards_from_0_to_1(server: JudgeServer):
    judge = _judge(server, temperature=0.5, max_tokens=7, options={"seed": 3}, low=0, high=4)
    chat = [{"role": "assistant", "content": "xx"}]
    assert judge(["p", "q"], ["xxx", chat], level=["hard", "easy"]) == [0.75, 0.5]
    said = sorted(request["messages"][0]["content"] for request in server.requests)
    assert said == ["Rate xx for q as easy", "Rate xxx for p as hard"]
    assert server.requests[0] | {"messages": []} == {"model": "m", "messages": [], "temperature": 0.5, "max_tokens": 7, "seed": 3}
    assert {headers["path"] for headers in server.headers} == {"/v1/chat/completions"}


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ('{"score": 7}', 0.7),
        ('{"score": 2} no: {"reason": "x", "score": "10"} {"other": 1}', 1.0),
        ("Reasons. **Score:** 4", 0.4),
        ("score 3, but the final score is 5.5", 0.55),
        ("Score = 0", 0.0),
        ('{"score": true} Score: 1', 0.1),
    ],
)
def test_scores_are_read_from_json_or_behind_their_word(answer: str, reward: float):
    assert LLMJudge(url="http://h", model="m").score(answer) == pytest.approx(reward)


def test_a_pattern_of_ones_own_finds_the_last_score():
    judge = LLMJudge(url="http://h", model="m", score_pattern=r"\[\[(\d+)\]\]", low=1, high=5)
    assert judge.score("[[1]] or rather [[4]]") == 0.75


@pytest.mark.parametrize("fault", [500, 503, 429, b"<html>", {"choices": []}, {"error": "x"}, b"[1]", b"null"])
def test_faults_that_may_pass_are_tried_again(server: JudgeServer, fault: Any):
    server.faults = [fault, fault]
    assert _judge(server)(["p"], ["xxxxx"], level=["l"]) == [0.5]
    assert len(server.requests) == 3


def test_unreadable_answers_are_tried_again_and_then_an_error_or_none(server: JudgeServer):
    answers = iter(["no idea", "score: 11", "score: 9"])
    server.rule = lambda question: next(answers)
    assert _judge(server)(["p"], ["c"], level=["l"]) == [0.9]
    server.rule = lambda question: "I cannot tell"
    with pytest.raises(RewardError, match=r"no score from 0 to 10 in .* 'I cannot tell', after 3 tries; .*unreadable to none"):
        _judge(server, retries=2)(["p"], ["c"], level=["l"])
    lenient = _judge(server, retries=0, unreadable="none")
    assert WeightedSum([("judge", lenient, 1.0)])(["p"], ["c"], level=["l"]) == [None]
    assert lenient.unreadable == 1


def test_what_fails_for_good_ends_with_one_sentence_and_stops_the_others(server: JudgeServer):
    server.faults = [500] * 3
    with pytest.raises(RewardError, match=r"chat/completions: the server answered 500 .*busy.*, after 3 tries; see to the server"):
        _judge(server, retries=2)(["p"], ["c"], level=["l"])
    server.faults = [401] * 100
    before = len(server.requests)
    with pytest.raises(InputError, match=r"the server answered 401 .*mend the settings"):
        _judge(server, concurrency=1)(["p"] * 50, [f"c{i}" for i in range(50)], level=["l"] * 50)
    assert len(server.requests) == before + 1
    with pytest.raises(RewardError, match="the server cannot be reached"):
        _judge(server, url="http://127.0.0.1:9", retries=1)(["p"], ["c"], level=["l"])


def test_an_answer_that_takes_too_long_is_a_failure(server: JudgeServer):
    server.delay = 1.0
    started = time.perf_counter()
    with pytest.raises(RewardError, match="after 2 tries"):
        _judge(server, timeout=0.1, retries=1)(["p"], ["c"], level=["l"])
    assert time.perf_counter() - started < 0.9


def test_requests_are_under_way_at_once_but_not_more_than_allowed(server: JudgeServer):
    server.delay = 0.05
    rewards = _judge(server, concurrency=4)(["p"] * 12, ["x" * (i % 10) + str(i) for i in range(12)], level=["l"] * 12)
    assert rewards == [pytest.approx((i % 10) / 10) for i in range(12)]
    assert 2 <= server.most_under_way <= 4


def test_the_same_message_is_asked_once_and_costs_once(server: JudgeServer, tmp_path: Path):
    prices = {"price_per_million_prompt_tokens": 2.0, "price_per_million_completion_tokens": 50.0}
    judge = _judge(server, cache=str(tmp_path / "kept"), **prices)
    columns = {"level": ["l"] * 3, "other": [1, 2, 3]}
    assert judge(["p"] * 3, ["x", "x", "xx"], **columns) == [0.1, 0.1, 0.2]
    assert judge(["p"], ["xx"], level=["l"]) == [0.2]
    assert len(server.requests) == 2
    tokens = len("Rate x for p as l") + len("Rate xx for p as l")
    assert (judge.usage.requests, judge.usage.prompt_tokens, judge.usage.completion_tokens) == (2, tokens, 20)
    assert judge.cost == pytest.approx((2.0 * tokens + 50.0 * 20) / 1e6)
    again = _judge(server, cache=str(tmp_path / "kept"), **prices)
    assert again(["p"], ["x"], level=["l"]) == [0.1] and again.cost == 0
    other = _judge(server, cache=str(tmp_path / "kept"), high=5)
    assert other(["p"], ["x"], level=["l"]) == [0.2] and len(server.requests) == 3


def test_the_key_comes_from_the_environment(server: JudgeServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    _judge(server, api_key_env="JUDGE_KEY")(["p"], ["c"], level=["l"])
    assert server.headers[-1]["Authorization"] == "Bearer secret"
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(InputError, match="api_key_env names the environment variable JUDGE_KEY, which is not set; set it"):
        _judge(server, api_key_env="JUDGE_KEY")


def test_the_rubric_of_the_package_asks_for_what_is_read(server: JudgeServer):
    server.rule = lambda question: question.splitlines()[-1].replace("N}", "6}")
    assert LLMJudge(url=server.url + "/v1/", model="m")(["Why?"], ["So."]) == [0.6]
    assert "[request]\nWhy?\n" in server.requests[0]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost"}, "url is 'localhost'; write it as http://HOST:PORT"),
        ({"low": 5, "high": 5}, "low is 5 and high is 5; low must be below high"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"retries": -1}, "retries is -1"),
        ({"retry_seconds": -1}, "retry_seconds is -1"),
        ({"timeout": 0}, "timeout is 0"),
        ({"unreadable": "zero"}, "unreadable is 'zero'; choose error or none"),
        ({"rubric": "{prompt"}, "template '{prompt' cannot be read"),
        ({"score_pattern": "(a"}, "score_pattern .* cannot be read"),
        ({"score_pattern": "a"}, "score_pattern 'a' has no group; put the score in parentheses"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        LLMJudge(**{"url": "http://h", "model": "m", **options})


def test_a_rubric_with_an_unknown_column_is_refused(server: JudgeServer):
    with pytest.raises(InputError, match="the template needs a column 'level'; did you mean 'levels'"):
        _judge(server)(["p"], ["c"], levels=["l"])
