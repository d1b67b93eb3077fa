"""From rollouts to rewards: what a reward is given, and which rows it is asked about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from experiences import examples
from tiny_models import language_model

from gkd_rl.config.run import RewardConfig
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.rows import join
from gkd_rl.rollout.sampler import InProcessSampler, dataset_rollouts
from gkd_rl.scoring import make_rewards, score_rollouts
from gkd_rl.types import Example, Rollouts
from reward_models.combine import WeightedSum


class Recorder:
    """A reward that keeps what it was given, and gives each row its number, or None where ``skip`` says so."""

    def __init__(self, skip: Sequence[int] = ()) -> None:
        self.skip = skip
        self.prompts: Sequence[Any] = ()
        self.completions: Sequence[Any] = ()
        self.columns: dict[str, Any] = {}

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        self.prompts, self.completions, self.columns = prompts, completions, columns
        return [None if i in self.skip else float(i + 1) for i in range(len(completions))]


def _rollouts(rows: list[Example], dataset: int = 0) -> Rollouts:
    model = language_model("llama")
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    parts = [InProcessSampler(model, 8).sample(rows, 2, SamplingParams(4), 0)]
    return join([*parts, dataset_rollouts(model, examples(dataset, 50), 4, 0)] if dataset else parts, 0)


def test_sampled_rows_are_judged_with_their_columns_and_dataset_rows_are_not():
    recorder = Recorder()
    rows = [Example("a", columns={"reference": "1", "level": 2}, key=0), Example("b", columns={"reference": "2"}, key=1)]
    rollouts = _rollouts(rows, dataset=2)
    totals, components = score_rollouts(WeightedSum([("own", recorder, 0.5)]), rollouts)
    assert recorder.prompts == ["a", "a", "b", "b"]
    assert recorder.completions == list(rollouts.texts[:4])
    ids = [ids[kept].tolist() for ids, kept in zip(rollouts.completion_ids[:4], rollouts.completion_mask[:4].bool(), strict=True)]
    assert recorder.columns == {"reference": ["1", "1", "2", "2"], "level": [2, 2, None, None], "completion_ids": ids}
    assert totals[:4].tolist() == [0.5, 1.0, 1.5, 2.0] and totals[4:].isnan().all()
    assert components["own"][:4].tolist() == [1.0, 2.0, 3.0, 4.0] and components["own"][4:].isnan().all()


def test_rewards_add_up_by_weight_where_they_apply():
    rewards = WeightedSum([("one", Recorder(skip=[0, 1]), 1.0), ("two", Recorder(skip=[0]), 10.0)])
    totals, components = score_rollouts(rewards, _rollouts(examples(2)))
    assert math.isnan(totals[0]) and totals[1:].tolist() == [20.0, 33.0, 44.0]
    assert components["one"].isnan().tolist() == [True, True, False, False]
    assert components["two"].isnan().tolist() == [True, False, False, False]


def test_chats_are_judged_in_the_chats_form():
    recorder = Recorder()
    rollouts = _rollouts([Example([{"role": "user", "content": "a b"}])])
    score_rollouts(WeightedSum([("own", recorder, 1.0)]), rollouts)
    assert recorder.prompts == [[{"role": "user", "content": "a b"}]] * 2
    assert recorder.completions == [[{"role": "assistant", "content": text}] for text in rollouts.texts]


def test_rollouts_without_rows_or_rewards_have_no_reward():
    rewards = WeightedSum([("own", Recorder(), 1.0)])
    totals, components = score_rollouts(rewards, _rollouts([]))
    assert totals.shape == components["own"].shape == (0,)
    rollouts = _rollouts(examples(1))
    only_dataset = replace(rollouts, on_policy=torch.zeros(2, dtype=torch.bool))
    for given in (score_rollouts(None, rollouts), score_rollouts(rewards, only_dataset)):
        assert given[0].isnan().all()


def test_a_reward_is_named_by_the_last_part_of_its_path_unless_it_has_a_name():
    path = "reward_models.ArithmeticVerifier"
    rewards = make_rewards([RewardConfig(path=path, weight=2.0), RewardConfig(path=path, name="right")])
    assert [(name, weight) for name, _, weight in rewards.rewards] == [("ArithmeticVerifier", 2.0), ("right", 1.0)]
