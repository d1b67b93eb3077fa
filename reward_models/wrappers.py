"""What can be put round a slow or unsteady reward: repetition, threads. (A cache by content: `cached`.)"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from reward_models.errors import InputError
from reward_models.http_json import wait_before
from reward_models.loading import Reward


class Retried:
    """`reward`, asked up to `retries` more times where it fails, after `seconds`, 2·`seconds`, 4·`seconds`, ...; bad input ends at once."""

    def __init__(self, reward: Reward, retries: int, seconds: float = 1.0) -> None:
        self.reward, self.retries, self.seconds = reward, retries, seconds

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        for number in range(1, self.retries + 1):
            try:
                return list(self.reward(prompts=prompts, completions=completions, **columns))
            except InputError:
                raise
            except Exception:  # the last try, below, lets it through
                time.sleep(wait_before(number, self.seconds))
        return list(self.reward(prompts=prompts, completions=completions, **columns))


class Threaded:
    """`reward`, asked for equal parts of the batch in so many threads at once; it must not depend on what else is in its batch."""

    def __init__(self, reward: Reward, threads: int) -> None:
        self.reward, self.threads = reward, threads

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        size = max(1, -(-len(completions) // self.threads))
        starts = range(0, max(len(completions), 1), size)

        def part(start: int) -> list[float | None]:
            cut = slice(start, start + size)
            values = list(
                self.reward(prompts=prompts[cut], completions=completions[cut], **{name: column[cut] for name, column in columns.items()})
            )
            if len(values) != len(completions[cut]):
                raise ValueError(f"it returned {len(values)} values for {len(completions[cut])} completions")
            return values

        with ThreadPoolExecutor(self.threads, thread_name_prefix="reward") as pool:
            return [value for values in pool.map(part, starts) for value in values]
