"""A reward that takes too long is ended: in the main thread whatever it does, elsewhere where it lets others run."""

import re
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from reward_models import RewardError, WeightedSum
from reward_models.time_limit import OutOfTime, TimeLimit


def _sleeps(prompts: list, completions: list, **columns: Any) -> list[float | None]:
    time.sleep(30)
    return [1.0] * len(completions)


def _runs_away(prompts: list, completions: list, **columns: Any) -> list[float | None]:
    return [float(bool(re.match(r"(a+)+$", "a" * 40 + "b"))) for _ in completions]


def _catches(prompts: list, completions: list, **columns: Any) -> list[float | None]:
    for _ in range(100):
        try:
            time.sleep(30)
        except Exception:
            return [0.0] * len(completions)
    return []


def _in_a_thread(call: Callable[[], Any]) -> Any:
    """What another thread than the main one makes of it."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    return found[0]


@pytest.mark.parametrize("reward", [_sleeps, _runs_away, _catches])
def test_the_main_thread_is_interrupted(reward: Any):
    started = time.monotonic()
    with pytest.raises(OutOfTime, match=r"gave no answer for 3 completions within 0.2 seconds"):
        TimeLimit(reward, 0.2)(["p"] * 3, ["c"] * 3)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("reward", [_sleeps, _catches])
def test_another_thread_gives_up(reward: Any):
    started = time.monotonic()
    assert isinstance(_in_a_thread(lambda: TimeLimit(reward, 0.2)(["p"] * 3, ["c"] * 3)), OutOfTime)
    assert time.monotonic() - started < 5


def test_a_reward_in_time_is_as_without_a_limit():
    def quick(prompts: list, completions: list, *, reference: list) -> list[float | None]:
        if reference[0] == "broken":
            raise KeyError("column")
        return [float(len(p) + len(c) + len(r)) for p, c, r in zip(prompts, completions, reference, strict=True)]

    limited, handler = TimeLimit(quick, 30), signal.getsignal(signal.SIGALRM)
    for call in (lambda work: work(), _in_a_thread):
        assert call(lambda: limited(["p", "pp"], ["c", "c"], reference=["", "r"])) == [2.0, 4.0]
    with pytest.raises(KeyError):
        limited(["p"], ["c"], reference=["broken"])
    assert isinstance(_in_a_thread(lambda: limited(["p"], ["c"], reference=["broken"])), KeyError)
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_weighted_sum_names_the_reward_that_took_too_long():
    with pytest.raises(RewardError, match=r"^reward 'slow' gave no answer for 1 completions within 0.1 seconds; raise its timeout"):
        WeightedSum([("slow", TimeLimit(_sleeps, 0.1), 1.0)])(["p"], ["c"])
