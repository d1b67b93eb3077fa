"""Times of phases within phases, and the arithmetic that a step costs."""

from __future__ import annotations

import time

import pytest
from experiences import examples
from tiny_models import language_model

from gkd_rl.console import PhaseTimes
from gkd_rl.processes import Processes
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.rows import join
from gkd_rl.rollout.sampler import InProcessSampler, dataset_rollouts
from gkd_rl.run_log import step_flops


def test_a_phase_within_another_counts_once():
    times = PhaseTimes()
    with times.phase("outer"):
        time.sleep(0.02)
        for _ in range(2):
            with times.phase("inner"):
                time.sleep(0.05)
    assert 0.1 <= times.seconds["inner"] < 0.2 and 0.02 <= times.seconds["outer"] < 0.1


def test_what_a_device_has_still_to_do_belongs_to_its_phase():
    times = PhaseTimes(synchronize=lambda: time.sleep(0.05))
    with times.phase("student"):
        pass
    assert times.seconds["student"] >= 0.05


def test_flops_count_a_groups_prompt_once_and_every_token_of_each_pass():
    model = language_model("llama")
    sampled = InProcessSampler(model, 64).sample(examples(2), 3, SamplingParams(6), seed=1)
    flops = step_flops(sampled, student=10, trained=10, scoring=107, passes=4, per_prompt=3, processes=Processes())
    prompt, completion = int(sampled.prompt_mask.sum()), int(sampled.completion_mask.sum())
    assert flops["flops_generation"] == pytest.approx(2 * 10 * (prompt / 3 + completion))
    assert flops["flops_teacher"] == 2 * 107 * (prompt + completion)
    assert flops["flops_student"] == 6 * 10 * 4 * (prompt + completion)
    mixed = join([sampled, dataset_rollouts(model, examples(2), 6, 0)], 0)
    more = step_flops(mixed, 10, 3, 107, 4, 3, Processes())
    tokens = int(mixed.prompt_mask.sum() + mixed.completion_mask.sum())
    assert more["flops_generation"] == flops["flops_generation"]
    assert more["flops_student"] == (4 * 10 + 2 * 3) * 4 * tokens, "frozen weights have no gradient of their own"
