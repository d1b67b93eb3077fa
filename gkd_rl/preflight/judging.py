"""Checks of the rewards on real rows: references that can be read, and rewards that tell right answers from others."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gkd_rl.preflight.finding import Finding
from gkd_rl.preflight.trial import Trial
from gkd_rl.scoring import score_texts
from gkd_rl.types import Example
from reward_models.combine import WeightedSum

JUDGED = 32
"""Held-out rows that rewards judge."""
READ = 500
"""Training rows whose references are read, beside all held-out ones."""
SHOWN = 3
MOST_UNREADABLE = 0.01
"""Share of unreadable references from which on the run should not be started."""
RIGHT = 0.9
"""Share of references that the verifier should call right."""


def references(trial: Trial) -> Finding:
    """Share of rows that can be judged: given the row's own solution (or nothing where it has none), the verifier and some reward apply.

    An unreadable reference gives None in the place of a reward.
    """
    total, verifier = trial.rewards
    rows = [*trial.held_out, *trial.training[:READ]]
    texts = [_solution(row) or "" for row in rows]
    unread = _rows_of_none(rows, _first(trial, verifier, rows, texts))
    if total is not verifier:
        unread |= _rows_of_none(rows, _totals(trial, total, rows, texts))
    names = " and ".join(f"'{name}'" for name in dict.fromkeys([verifier.rewards[0][0], *(name for name, _, _ in total.rewards)]))
    detail = f"{len(rows) - len(unread):,} of {len(rows):,} rows can be judged by {names}"
    if not unread:
        return Finding("pass", detail)
    shown = ", ".join(f"example {row.key}: {_reference(row)}" for row in list(unread.values())[:SHOWN])
    status = "fail" if len(unread) > MOST_UNREADABLE * len(rows) else "warn"
    return Finding(status, f"{detail}; not {shown}", "mend or remove these rows: their answers earn nothing, right or wrong")


def _rows_of_none(rows: Sequence[Example], values: Sequence[float | None]) -> dict[int, Example]:
    """Place → row, where there is no value."""
    return {place: row for place, (row, value) in enumerate(zip(rows, values, strict=True)) if value is None}


def rewards(trial: Trial) -> Finding:
    """Mean reward of the rows' own solutions, of empty answers, and of other rows' solutions: the first has to be the highest."""
    total, verifier = trial.rewards
    rows = [row for row in trial.held_out if _solution(row) is not None][: JUDGED + 1]
    if len(rows) < 2:
        return Finding("skip", "the held-out rows have no solutions to judge")
    own = [_solution(row) or "" for row in rows]
    answers = {"their solutions": own, "nothing": [""] * len(own), "other rows' solutions": [*own[1:], own[0]]}
    means = {name: _mean(_totals(trial, total, rows, texts)) for name, texts in answers.items()}
    right = [value for value in _first(trial, verifier, rows, own) if value is not None]
    share = sum(value >= 1 for value in right) / len(right) if right else 0.0
    said = ", ".join(f"{mean:.3g} for {name}" for name, mean in means.items())
    detail = f"{said}; {share:.0%} of the solutions count as right"
    high, *others = means.values()
    if not all(high > other for other in others):
        return Finding("fail", f"{detail}: the reward does not tell solutions from other answers", "mend the reward, or the references")
    if share < RIGHT and trial.config.rewards is None:
        return Finding("warn", detail, "see which solutions the reward calls wrong (gkd-rl grade)")
    return Finding("pass", detail)


def _solution(row: Example) -> str | None:
    """The row's completion, or its reference where that is a text."""
    reference = row.columns.get("reference")
    return row.completion if row.completion is not None else reference if isinstance(reference, str) else None


def _reference(row: Example) -> str:
    text = repr(row.columns.get("reference", row.columns))
    return text if len(text) <= 60 else f"{text[:60]}..."


def _columns(trial: Trial, rows: Sequence[Example], texts: Sequence[str]) -> list[dict]:
    return [{**row.columns, "completion_ids": trial.tokenizer(text)["input_ids"]} for row, text in zip(rows, texts, strict=True)]


def _totals(trial: Trial, rewards: WeightedSum, rows: Sequence[Example], texts: Sequence[str]) -> list[float | None]:
    return score_texts(rewards, [row.prompt for row in rows], texts, _columns(trial, rows, texts))[0]


def _first(trial: Trial, verifier: WeightedSum, rows: Sequence[Example], texts: Sequence[str]) -> list[float | None]:
    """What the first reward gives, which decides whether an answer is right."""
    return next(iter(score_texts(verifier, [row.prompt for row in rows], texts, _columns(trial, rows, texts))[1].values()))


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else math.nan
