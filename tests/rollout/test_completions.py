"""The teacher's completions: sampled once, kept, given out as off-policy rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from experiences import examples, token_rows
from tiny_models import language_model

from gkd_rl.errors import UserError
from gkd_rl.rollout.completions import TeacherCompletions
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.sampler import InProcessSampler

STUDENT, TEACHER = language_model("llama"), language_model("llama", seed=9)


class Counting(InProcessSampler):
    """Counts the prompts it was asked."""

    asked = 0

    def sample(self, examples, per_prompt, params, seed):
        self.asked += len(examples)
        return super().sample(examples, per_prompt, params, seed)


def _store(folder: Path, rank: int = 0, temperature: float = 1.0, **settings) -> tuple[TeacherCompletions, Counting]:
    sampler = Counting(TEACHER, 64)
    params = SamplingParams(6, temperature=temperature)
    return TeacherCompletions(STUDENT, sampler, params, 3, folder, {"teacher.path": "a", **settings}, rank), sampler


def test_rows_are_the_teachers_answers_and_off_policy(tmp_path: Path):
    store, _ = _store(tmp_path, temperature=0.0)
    rollouts = store.rollouts(examples(5), 1, version=7)
    greedy = InProcessSampler(TEACHER, 64).sample(examples(5), 1, SamplingParams(6, temperature=0.0), 0)
    assert token_rows(rollouts) == token_rows(greedy) and torch.equal(rollouts.ended, greedy.ended)
    assert not rollouts.on_policy.any() and rollouts.version.tolist() == [7] * 5
    assert rollouts.group.tolist() == [example.key for example in examples(5)]


def test_a_prompt_is_answered_once_however_often_it_comes(tmp_path: Path):
    store, sampler = _store(tmp_path)
    first = token_rows(store.rollouts(examples(4), 2, 0))
    assert token_rows(store.rollouts(examples(4), 2, 5)) == first and sampler.asked == 4
    assert first[0] != first[1]  # two completions of one prompt
    assert token_rows(store.rollouts(examples(6), 2, 5))[:8] == first and sampler.asked == 6


def test_a_store_on_disk_serves_every_rank_and_a_lost_one_comes_back_the_same(tmp_path: Path):
    first = token_rows(_store(tmp_path / "a")[0].rollouts(examples(4), 2, 0))
    again, sampler = _store(tmp_path / "a", rank=1)
    assert token_rows(again.rollouts(examples(4), 2, 0)) == first and sampler.asked == 0
    other, _ = _store(tmp_path / "b")
    parts = token_rows(other.rollouts(examples(4)[2:], 2, 0)), token_rows(other.rollouts(examples(4)[:2], 2, 0))
    assert parts[1] + parts[0] == first


def test_a_line_that_was_cut_off_is_sampled_again(tmp_path: Path):
    first = token_rows(_store(tmp_path)[0].rollouts(examples(4), 1, 0))
    path = tmp_path / "rank-0.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    for asked in (1, 0):
        store, sampler = _store(tmp_path)
        assert token_rows(store.rollouts(examples(4), 1, 0)) == first and sampler.asked == asked


def test_a_folder_of_other_settings_is_refused(tmp_path: Path):
    _store(tmp_path)[0].rollouts(examples(1), 1, 0)
    with pytest.raises(UserError, match=r"made with teacher\.path=a, not b; choose another folder"):
        _store(tmp_path, **{"teacher.path": "b"})
