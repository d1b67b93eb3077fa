"""Preference pairs from files: given as such, or made of answers with scores."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkd_rl.config.reward_model import PreferencesConfig
from gkd_rl.errors import UserError
from gkd_rl.reward_model.tables import read_table
from gkd_rl.tasks.sources import Row


@dataclass(frozen=True)
class Answer:
    """One answer to a prompt, text or chat messages."""

    prompt: Any
    completion: Any


@dataclass(frozen=True)
class Pair:
    """Two answers of which the first is better, by at least ``margin`` (0 where none is given)."""

    chosen: Answer
    rejected: Answer
    margin: float
    where: str


@dataclass(frozen=True)
class TokenPair:
    """A pair as the model reads it."""

    chosen: list[int]
    rejected: list[int]
    margin: float
    lengths: tuple[int, int]
    """characters of the two completions"""


def read_pairs(config: PreferencesConfig, data_dir: str | None, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs.

    Raises ``UserError`` for what is missing or malformed, and where there are no pairs.
    """
    train = read_table(_place(config.train, data_dir))
    if config.held_out is not None:
        held_out = read_table(_place(config.held_out, data_dir))
    else:
        train, held_out = _split(train, config, seed)
    made = [_pairs(config, rows, seed, disjoint) for rows, disjoint in ((train, False), (held_out, True))]
    for pairs, key in zip(made, ("train", "held_out"), strict=True):
        if not pairs:
            raise UserError(f"preferences.{key}: no pair can be made of these rows; lower preferences.min_gap, or give more rows")
    return made[0], made[1]


def _place(path: str, data_dir: str | None) -> Path:
    given = Path(path).expanduser()
    beside = Path(data_dir).expanduser() / path if data_dir else None
    return beside if beside is not None and not given.exists() and not given.is_absolute() else given


def _split(rows: list[Row], config: PreferencesConfig, seed: int) -> tuple[list[Row], list[Row]]:
    """Rows by prompt into two parts."""
    by_prompt: dict[str, list[Row]] = {}
    for number, row in enumerate(rows):
        by_prompt.setdefault(_key(row.value(config.prompt_field)) if config.prompt_field else str(number), []).append(row)
    groups = list(by_prompt.values())
    random.Random(f"held out {seed}").shuffle(groups)
    count = max(1, round(config.held_out_share * len(groups)))
    return [row for group in groups[count:] for row in group], [row for group in groups[:count] for row in group]


def _pairs(config: PreferencesConfig, rows: Sequence[Row], seed: int, disjoint: bool) -> list[Pair]:
    if config.kind == "pairs":
        return [_given(config, row) for row in rows]
    scored = [(_answer(config, row, config.completion_field), _number(row, config.score_field), row.where) for row in rows]
    groups: dict[str, list[tuple[Answer, float, str]]] = {}
    for one in scored:
        groups.setdefault("" if config.across_prompts else _key(one[0].prompt), []).append(one)
    draw = random.Random(f"pairs {seed}")
    most = 1 if disjoint else config.pairs_per_row
    return [pair for group in groups.values() for pair in _of_scored(config, group, draw, most)]


def _of_scored(config: PreferencesConfig, group: list[tuple[Answer, float, str]], draw: random.Random, most: int) -> list[Pair]:
    """Pairs of answers whose scores differ enough, each answer in ``most`` of them at most.

    Without that bound the few answers of extreme scores would be in most of the pairs, and be learned by heart.
    """
    order = draw.sample(range(len(group)), len(group))
    used = [0] * len(group)
    seen: set[tuple[int, int]] = set()
    pairs: list[Pair] = []
    for one in order:
        for other in _others(order, one, draw):
            if used[one] == most:
                break
            gap = group[one][1] - group[other][1]
            key = (min(one, other), max(one, other))
            if gap == 0 or abs(gap) < config.min_gap or key in seen or used[other] == most:
                continue
            better, worse = (one, other) if gap > 0 else (other, one)
            where = f"{group[better][2]} and {group[worse][2]}"
            pairs.append(Pair(group[better][0], group[worse][0], abs(gap) if config.score_margins else 0.0, where))
            seen.add(key)
            used[one], used[other] = used[one] + 1, used[other] + 1
    return pairs


def _others(order: Sequence[int], one: int, draw: random.Random) -> list[int]:
    """The other answers, from a random place on round."""
    start = draw.randrange(len(order))
    return [other for other in (*order[start:], *order[:start]) if other != one]


def _given(config: PreferencesConfig, row: Row) -> Pair:
    margin = _number(row, config.margin_field) if config.margin_field else 0.0
    return Pair(_answer(config, row, config.chosen_field), _answer(config, row, config.rejected_field), margin, row.where)


def _answer(config: PreferencesConfig, row: Row, field: str) -> Answer:
    prompt = row.value(config.prompt_field) if config.prompt_field else None
    completion = row.value(field)
    for name, value in ((config.prompt_field, prompt), (field, completion)):
        if name and not isinstance(value, str) and not _is_chat(value):
            raise UserError(f"{row.where}: field '{name}' is neither text nor a list of chat messages")
    if isinstance(prompt, list) and isinstance(completion, list) and completion[: len(prompt)] == prompt:
        completion = completion[len(prompt) :]  # conversations are often given whole
    return Answer(prompt, completion)


def _number(row: Row, field: str) -> float:
    try:
        number = float(row.value(field))
    except (TypeError, ValueError):
        raise UserError(f"{row.where}: field '{field}' is {row.value(field)!r}; it must be a number") from None
    if not math.isfinite(number):
        raise UserError(f"{row.where}: field '{field}' is {number}; it must be finite")
    return number


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and "content" in one for one in value)


def _key(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)
