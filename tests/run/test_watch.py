"""Reward hacking: seen in the figures of a run, not in those of a healthy one; and a real run that hacks its reward."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from gkd_rl.config.load import load_config
from gkd_rl.config.watch import WatchConfig
from gkd_rl.errors import UserError
from gkd_rl.objective.schedule import TermWeights
from gkd_rl.training import train
from gkd_rl.watch import Watch

ROOT = Path(__file__).resolve().parents[2]
CALM = {"reward": 0.4, "truncated": 0.02, "length": 30.0, "distinct_2": 0.7, "entropy": 0.6, "reverse_kl": 0.3}


def _course(changes: dict[str, float], steps: int = 40, noise: float = 0.03, seed: int = 0) -> list[dict[str, float]]:
    """Figures that go in a straight line from ``CALM`` to ``changes``, with noise as a share of their size."""
    rng = random.Random(seed)
    rows = []
    for step in range(steps):
        way = step / (steps - 1)
        row = {name: start + way * (changes.get(name, start) - start) for name, start in CALM.items()}
        rows.append({name: value * (1 + rng.gauss(0, noise)) for name, value in row.items()} | {"step": step + 1})
    return rows


def _findings(rows: list[dict[str, float]], accuracies: dict[int, float] | None = None, config: WatchConfig | None = None) -> list[str]:
    watch = Watch(config or WatchConfig(), examples=200, accuracies=[0.3] if accuracies else [])
    found = [watch.observe(row | ({"eval_accuracy": accuracies[row["step"]]} if row["step"] in (accuracies or {}) else {})) for row in rows]
    return [sentence for sentence in found if sentence]


@pytest.mark.parametrize("seed", range(20))
def test_a_run_that_goes_nowhere_is_not_suspected(seed: int):
    assert _findings(_course({}, steps=100, seed=seed), {50: 0.28, 100: 0.32}) == []


def test_better_answers_are_not_suspected_though_they_grow_longer_and_surer():
    rows = _course({"reward": 0.8, "length": 80.0, "entropy": 0.1})
    assert _findings(rows, {10: 0.4, 20: 0.5, 30: 0.6, 40: 0.7}) == []


def test_a_rising_reward_with_falling_accuracy_is_found_once():
    (sentence,) = _findings(_course({"reward": 0.8}), {10: 0.3, 20: 0.1, 30: 0.05, 40: 0.05})
    assert sentence.startswith("step 20: the reward went from 0.4") and "held-out accuracy went from 0.3 to 0.1" in sentence


def test_accuracy_that_falls_with_the_reward_is_no_hacking():
    assert _findings(_course({"reward": 0.1}), {20: 0.1, 40: 0.0}) == []


HACKED = {"reward": 0.9, "length": 90.0, "distinct_2": 0.2}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (HACKED, True),
        ({"reward": 0.9, "truncated": 0.5, "reverse_kl": 2.0}, True),
        ({"reward": 0.9, "entropy": 0.1, "length": 60.0}, True),
        ({"reward": 0.9, "length": 60.0}, False),  # one symptom alone
        ({"length": 60.0, "distinct_2": 0.3}, False),  # the reward does not rise
        (
            {"reward": 0.9, "length": 20.0, "distinct_2": 0.9, "entropy": 0.9, "truncated": 0.0, "reverse_kl": 0.1},
            False,
        ),  # all the good way
    ],
)
def test_without_evaluations_two_symptoms_beside_a_rising_reward_count(changes: dict[str, float], found: bool):
    assert len(_findings(_course(changes))) == found


def test_the_settings_decide():
    assert _findings(_course(HACKED), config=WatchConfig(action="off")) == []
    assert _findings(_course(HACKED), config=WatchConfig(symptoms=3)) == []
    late, soon = (_findings(_course(HACKED), config=WatchConfig(window=window))[0] for window in (20, 5))
    assert late.startswith("step 40:") and int(soon.split()[1][:-1]) < 25


def test_a_watch_that_is_saved_and_restored_comes_to_the_same_finding():
    rows = _course(HACKED)
    whole, first = Watch(WatchConfig(), 200), Watch(WatchConfig(), 200)
    for row in rows[:17]:
        first.observe(row)
    second = Watch(WatchConfig(), 200)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert len(second.steps) == 17
    found = [whole.observe(row) for row in rows]
    assert [second.observe(row) for row in rows[17:]] == found[17:] and any(found[17:])
    assert len(whole.steps) == 20  # no more than two windows are kept


@pytest.mark.parametrize(("action", "expected"), [("raise_alpha", (0.1, 0.9)), ("warn", (0.7, 0.3))])
def test_alpha_is_raised_where_that_is_asked_for_and_only_after_a_finding(action, expected: tuple[float, float]):
    watch = Watch(WatchConfig(action=action, alpha=0.9), 200)
    scheduled = TermWeights(0.7, 0.3, 0.5)
    assert watch.weights(scheduled) == scheduled
    for row in _course(HACKED):
        watch.observe(row)
    raised = watch.weights(scheduled)
    assert (raised.reward, raised.divergence, raised.cross_entropy) == pytest.approx((*expected, 0.5))
    assert watch.weights(TermWeights(0.05, 0.95, 0.0)) == TermWeights(pytest.approx(0.05), 0.95, 0.0)  # never lowered


STEPS = 8
REWARD = """
def longer(prompts, completions, **columns):
    return [min(1.0, len(text) / 80) for text in completions]
"""


def _hackable_run(tmp_path: Path, name: str, *overrides: str) -> list[dict]:
    (tmp_path / "longer.py").write_text(REWARD)
    settings = [
        *(f"run_dir={tmp_path / name}", f'rewards=[{{path: "{tmp_path}/longer.py:longer"}}]', "rollout.prompts_per_step=48"),
        *("rollout.passes=3", "optimizer.warmup_steps=0", "optimizer.schedule=constant", "optimizer.lr=2e-3", "watch.window=3"),
        *("evaluation.examples=60", "evaluation.during_examples=60", "evaluation.every=4", "evaluation.teacher=false"),
        *("log_rollouts_every=0", "checkpoint.every=0", "engine.threads=1", f"max_steps={STEPS}", *overrides),
    ]
    train(load_config(ROOT / "configs" / "arithmetic.yaml", settings))
    return [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_that_hacks_its_reward_is_caught_and_the_teacher_holds_it_back(tmp_path: Path, capsys: pytest.CaptureFixture):
    hacked = _hackable_run(tmp_path, "alone", "objective.alpha=0", "watch.action=raise_alpha", "watch.alpha=0.8")
    said = capsys.readouterr().out
    (row,) = [json.loads(line) for line in (tmp_path / "alone" / "watch.jsonl").read_text().splitlines()]
    assert "this looks like reward hacking" in said and "α is at least 0.8" in said
    best = row["most_rewarded"][0]
    assert best["reward"] == pytest.approx(min(1.0, len(best["completion"]) / 80)) and best["prompt"]
    weights = [(line["reward_weight"], line["divergence_weight"]) for line in hacked]
    assert weights == [(1.0, 0.0)] * row["step"] + [(pytest.approx(0.2), 0.8)] * (STEPS - row["step"])

    held = _hackable_run(tmp_path, "held", "objective.alpha=0.5")
    assert not (tmp_path / "held" / "watch.jsonl").exists()
    reached = row["step"] - 1
    assert hacked[reached]["length"] > 1.2 * held[reached]["length"]


def test_stop_ends_the_run_and_keeps_the_step(tmp_path: Path):
    with pytest.raises(UserError, match=r"reward hacking: step \d+: .*resume=auto goes on from it"):
        _hackable_run(tmp_path, "run", "objective.alpha=0", "watch.action=stop")
    (kept,) = (tmp_path / "run" / "checkpoints").iterdir()
    step = json.loads((tmp_path / "run" / "watch.jsonl").read_text())["step"]
    assert kept.name == f"step-{step:08d}"
    rows = _hackable_run(tmp_path, "run", "objective.alpha=0", "watch.action=stop", "resume=auto")
    assert len(rows) == STEPS  # what was said is not said again
