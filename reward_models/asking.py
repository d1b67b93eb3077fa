"""One call of a reward: what it returns is checked, and what it raises gets its name."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from reward_models.errors import InputError, RewardError, RewardValueError
from reward_models.loading import Reward
from reward_models.time_limit import OutOfTime


def ask(
    name: str, reward: Reward, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any], rows: Sequence[int]
) -> list[float | None]:
    """Return the values that `reward` gives to the `rows` of a batch.

    Raises:
        InputError: the reward refused its input; its name is put in front.
        RewardError: it failed, took longer than its `TimeLimit`, or returned too few or too many values.
        RewardValueError: it returned one that is not a finite number; row and completion are named.
    """
    if len(rows) < len(completions):
        prompts, completions = [prompts[row] for row in rows], [completions[row] for row in rows]
        columns = {column: [values[row] for row in rows] for column, values in columns.items()}
    try:
        values = list(reward(prompts=prompts, completions=completions, **columns))
    except InputError as error:
        raise InputError(f"reward '{name}': {error}") from error
    except OutOfTime as error:
        raise RewardError(f"reward '{name}' {error}; raise its timeout, or mend the reward") from None
    except Exception as error:
        raise RewardError(f"reward '{name}' failed ({type(error).__name__}: {error})") from error
    if len(values) != len(completions):
        raise RewardError(f"reward '{name}' returned {len(values)} values for {len(completions)} completions")
    return [_finite(name, row, value, completion) for row, value, completion in zip(rows, values, completions, strict=True)]


def _finite(name: str, row: int, value: Any, completion: Any) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        said = f"reward '{name}' returned {value!r} for row {row}; a reward is a number or None"
        raise RewardValueError(f"{said}; the completion is {_short(completion)}", row) from error
    if not math.isfinite(number):
        said = f"reward '{name}' returned {number} for row {row}; rewards must be finite, or None where they do not apply"
        raise RewardValueError(f"{said}; the completion is {_short(completion)}", row)
    return number


def _short(completion: Any, most: int = 80) -> str:
    """One line for a message."""
    text = completion if isinstance(completion, str) else str(completion[-1]["content"])
    return repr(text if len(text) <= most else f"{text[:most]}...")
