"""Rewards of a run as the configuration sets them: requirements, scheduled weights, normalisation, caches; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from judge_server import judging

OWN = """
from pathlib import Path


def even(prompts, completions, **columns):
    return [float(len(one) % 2 == 0) for one in completions]


def length(prompts, completions, calls, **columns):
    with Path(calls).open("a") as file:
        file.writelines(f"{len(one)}\\n" for one in completions)
    return [len(one) / 10 for one in completions]
"""


@pytest.fixture
def rewards(tmp_path: Path) -> Any:
    """``rewards(length_settings)``: the override of a reward for even lengths, and one of the length with these settings."""
    (tmp_path / "own.py").write_text(OWN)

    def rewards(**settings: Any) -> str:
        calls = {"calls": str(tmp_path / "calls")}
        entries = [
            {"path": f"{tmp_path}/own.py:even", "name": "even", "weight": 2.0},
            {"path": f"{tmp_path}/own.py:length", "name": "length", "options": calls, **settings},
        ]
        return f"rewards={json.dumps(entries)}"

    return rewards


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_requirement_and_schedule_reach_rollouts_and_metrics(cli, small: Path, rewards, tmp_path: Path) -> None:
    run = tmp_path / "run"
    override = rewards(requires={"reward": "even"}, weight={"start": 1.0, "end": 3.0, "steps": 2})
    assert cli("train", small, f"run_dir={run}", "max_steps=3", override).status == 0
    assert [row["weight_length"] for row in _rows(run, "metrics.jsonl")] == [1.0, 2.0, 3.0]
    rows = _rows(run, "rollouts.jsonl")
    assert len(rows) == 18
    for row in rows:
        even, weight = len(row["completion"]) % 2 == 0, float(row["step"])
        assert row["rewards"] == {"even": float(even), "length": pytest.approx(len(row["completion"]) / 10) if even else None}
        assert row["reward"] == pytest.approx(2.0 + weight * len(row["completion"]) / 10 if even else 0.0, abs=1e-4)
    saved = yaml.safe_load((run / "config.yaml").read_text())["rewards"][1]
    assert saved["requires"] == {"reward": "even", "at_least": 1.0} and saved["weight"] == {"start": 1.0, "end": 3.0, "steps": 2}


def test_normalised_rewards_make_the_advantages_and_leave_the_rewards_as_they_are(cli, small: Path, rewards, tmp_path: Path) -> None:
    run = tmp_path / "run"
    override = rewards(normalize="batch")
    assert cli("train", small, f"run_dir={run}", "max_steps=1", override, "objective.advantage.kind=batch").status == 0
    rows = _rows(run, "rollouts.jsonl")
    lengths = [len(row["completion"]) / 10 for row in rows]
    mean = sum(lengths) / 6
    deviation = (sum((value - mean) ** 2 for value in lengths) / 5) ** 0.5
    totals = [2 * row["rewards"]["even"] + (value - mean) / (deviation + 1e-4) for row, value in zip(rows, lengths, strict=True)]
    expected = [total - sum(totals) / 6 for total in totals]
    assert [row["advantage"] for row in rows] == pytest.approx(expected, abs=1e-3)
    assert [row["reward"] for row in rows] == pytest.approx(
        [2 * r["rewards"]["even"] + v for r, v in zip(rows, lengths, strict=True)], abs=1e-4
    )


def test_a_cache_spares_calls_and_changes_nothing(cli, small: Path, rewards, tmp_path: Path) -> None:
    calls, logs = [], []
    for number, settings in enumerate(({}, {"cache": True}, {"cache": str(tmp_path / "kept")}, {"cache": str(tmp_path / "kept")})):
        (tmp_path / "calls").unlink(missing_ok=True)
        run = tmp_path / f"run{number}"
        assert cli("train", small, f"run_dir={run}", rewards(**settings, retries=1, threads=2)).status == 0
        calls.append(len((tmp_path / "calls").read_text().splitlines()) if (tmp_path / "calls").exists() else 0)
        logs.append((run / "metrics.jsonl").read_text())
    assert logs[1:] == logs[:1] * 3
    assert calls[0] >= calls[1] == calls[2] > 0 and calls[3] == 0
    assert (tmp_path / "run1" / "reward-cache" / "length.sqlite").is_file()


def test_a_judge_behind_a_server_rewards_a_run_and_its_cost_is_in_the_summary(cli, small: Path, tmp_path: Path) -> None:
    with judging(lambda question: f'{{"score": {len(question) % 11}}}') as server:
        options = {"url": server.url, "model": "m", "rubric": "{completion}", "price_per_million_completion_tokens": 1e6}
        judge = {"path": "reward_models.LLMJudge", "name": "judge", "options": options, "timeout": 60, "threads": 2, "cache": True}
        run = tmp_path / "run"
        done = cli("train", small, f"run_dir={run}", f"rewards={json.dumps([judge])}")
        assert done.status == 0, done.err
    for row in _rows(run, "rollouts.jsonl"):
        assert row["reward"] == pytest.approx(len(row["completion"]) % 11 / 10)
    asked = json.loads((run / "summary.json").read_text())["judges"]["judge"]
    assert asked["requests"] == len(server.requests) > 0
    assert asked["completion_tokens"] == asked["cost"] == 10 * asked["requests"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weight": "much"}, "rewards[1].weight is 'much'; it must be a finite number, or {start: NUMBER, end: NUMBER, steps: NUMBER}"),
        ({"weight": {"start": 0, "end": 1}}, "rewards[1].weight is {'start': 0, 'end': 1}; a weight that changes is {start: NUMBER"),
        ({"weight": {"start": 0, "end": 1, "steps": 0}}, "rewards[1].weight.steps is 0; it must be a whole number of at least 1"),
        ({"requires": {"reward": "evn"}}, "reward 'length' requires 'evn', which is none of them; did you mean 'even'?"),
        ({"requires": {}}, "rewards[1].requires names no reward"),
        ({"retries": -1}, "rewards[1].retries is -1; it must be at least 0"),
        ({"threads": 0}, "rewards[1].threads is 0; it must be at least 1"),
        ({"cache": 3}, "rewards[1].cache is 3; it must be true, false or the path of a folder"),
    ],
)
def test_settings_that_cannot_work_are_refused(refused_run, rewards, settings: dict[str, Any], said: str) -> None:
    assert said in refused_run(rewards(**settings))
