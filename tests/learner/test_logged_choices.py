"""What a row of ``rollouts.jsonl`` says of the likeliest tokens, against the models themselves."""

from __future__ import annotations

import pytest
import torch
from experiences import examples
from tiny_models import language_model

from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.learner import Learner, local_counts
from gkd_rl.objective.schedule import TermWeights
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.sampler import InProcessSampler
from gkd_rl.run_log import rollout_rows
from gkd_rl.teacher.local import LocalTeacher
from gkd_rl.types import Experience, GlobalCounts


def _rows(choices: int) -> tuple[list[dict], torch.Tensor, torch.Tensor]:
    """Rows of two answers of different lengths, and [B, C, V] probabilities of student and teacher."""
    student, teacher = language_model("llama", seed=1), language_model("llama", seed=2)
    for model in (student, teacher):
        with torch.no_grad():  # sure of some tokens, of others not
            model.head.weight.mul_(6)
    rollouts = InProcessSampler(student, 64).sample(examples(2), 2, SamplingParams(7), seed=3)
    size = len(rollouts.examples)
    rewards = torch.arange(size).float()
    experience = Experience(rollouts, rewards, {"r": rewards}, rewards - rewards.mean(), LocalTeacher(teacher, 512).score(rollouts))
    config = ObjectiveConfig()
    learner = Learner(
        student, config, TermWeights(0.5, 0.5, 0.0), GlobalCounts(**local_counts([experience], config)), records=[], logged_choices=choices
    )
    learner.loss(experience)
    assert learner.records is not None
    given = (rollouts.prompt_ids, rollouts.prompt_mask, rollouts.completion_ids, rollouts.completion_mask)
    with torch.no_grad():
        probabilities = [(model.completion_hidden(*given) @ model.head.weight.T).softmax(-1) for model in (student, teacher)]
    return rollout_rows(1, learner.records), probabilities[0], probabilities[1]


@pytest.mark.parametrize("choices", [1, 3])
def test_rows_hold_the_likeliest_tokens_until_they_cover_nearly_all(choices: int):
    rows, ours, theirs = _rows(choices)
    lengths = set()
    for name, expected in (("student_top", ours), ("teacher_top", theirs)):
        for i, row in enumerate(rows):
            assert len(row[name]) == len(row["tokens"])
            for t, logged in enumerate(row[name]):
                top = expected[i, t].topk(choices)
                wanted, covered = [], 0.0
                for number, p in zip(top.indices.tolist(), top.values.tolist(), strict=True):
                    if covered < 0.999:
                        wanted.append([number, pytest.approx(p, abs=2e-4)])
                    covered += p
                assert logged == wanted
                lengths.add(len(logged))
    assert lengths == set(range(1, choices + 1))


def test_none_are_logged_where_none_are_asked_for():
    rows, *_ = _rows(0)
    assert rows and not any(name.endswith("_top") for row in rows for name in row)
