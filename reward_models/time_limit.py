"""A reward that may not take longer than it should."""

import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

from reward_models.loading import Reward


class OutOfTime(RuntimeError):
    """A reward gave no answer in its time."""


class _Interrupted(BaseException):
    """Raised within the reward; not an `Exception`, so that a reward's own `except` does not take it for a bad completion."""


class TimeLimit:
    """`reward`, but each call of it ends after `seconds` with `OutOfTime`.

    In the main thread the call is interrupted by a timer's signal (SIGALRM), which also ends a regular expression that runs away; a
    reward that sets such a timer itself has no limit from then on. In other threads (sampling ahead), where no signal arrives, the
    call has a thread of its own, which is given up: that cannot end what never lets another thread run, as such an expression.
    """

    def __init__(self, reward: Reward, seconds: float) -> None:
        self.reward = reward
        self.seconds = seconds

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        call = lambda: self.reward(prompts=prompts, completions=completions, **columns)
        try:
            if threading.current_thread() is threading.main_thread():
                return _interrupted_after(self.seconds, call)
            return _given_up_after(self.seconds, call)
        except _Interrupted:
            raise OutOfTime(f"gave no answer for {len(completions)} completions within {self.seconds:g} seconds") from None


def _interrupted_after(seconds: float, call: Callable[[], Any]) -> Any:
    def interrupt(number: int, frame: object) -> None:
        raise _Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _given_up_after(seconds: float, call: Callable[[], Any]) -> Any:
    outcome: list[tuple[Any, BaseException | None]] = []

    def work() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:  # raised again in the thread that waits
            outcome.append((None, error))

    thread = threading.Thread(target=work, daemon=True, name="reward")
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise _Interrupted
    answer, error = outcome[0]
    if error is not None:
        raise error
    return answer
