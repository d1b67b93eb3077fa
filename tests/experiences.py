"""Real experiences of tiny models: sampled and dataset rows, rewards, advantages and the teacher's scores. And plain gradients."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gkd_rl.config.objective import AdvantageConfig, ObjectiveConfig
from gkd_rl.learner import Learner, local_counts
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.objective.advantage import advantages
from gkd_rl.objective.schedule import TermWeights
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.rows import join, take_experience
from gkd_rl.rollout.sampler import InProcessSampler, dataset_rollouts
from gkd_rl.teacher.local import LocalTeacher
from gkd_rl.types import Example, Experience, GlobalCounts, Rollouts


def examples(count: int, start: int = 0) -> list[Example]:
    """Prompts and completions of random letters, of 1 to 7 and 1 to 5 tokens."""
    made = []
    for key in range(start, start + count):
        rng = random.Random(key)
        prompt, completion = (" ".join(rng.choices("abcdefgh", k=rng.randint(1, most))) for most in (7, 5))
        made.append(Example(prompt, completion, {"reference": str(key)}, key))
    return made


def experience(
    student: LanguageModel,
    teacher: LanguageModel | None,
    prompts: int = 4,
    per_prompt: int = 2,
    dataset: int = 0,
    max_new_tokens: int = 6,
    start: int = 0,
) -> Experience:
    """``prompts`` × ``per_prompt`` sampled rows and ``dataset`` rows; rewards are random, and the second row's does not apply."""
    rows = examples(prompts + dataset, start)
    sampled = InProcessSampler(student, 64).sample(rows[:prompts], per_prompt, SamplingParams(max_new_tokens), seed=3)
    parts = [sampled] + ([dataset_rollouts(student, rows[prompts:], max_new_tokens, 0)] if dataset else [])
    rollouts = join(parts, 0)
    rewards = torch.rand(len(rollouts.examples), generator=torch.Generator().manual_seed(start))
    rewards[~rollouts.on_policy] = torch.nan
    rewards[1] = torch.nan
    return Experience(
        rollouts=rollouts,
        rewards=rewards,
        components={"random": rewards},
        advantages=advantages(rewards, rollouts.group, AdvantageConfig()),
        teacher=None if teacher is None else LocalTeacher(teacher, 256).score(rollouts),
    )


def in_double(experience: Experience) -> Experience:
    """The teacher's scores in float64, for comparisons beyond rounding."""
    assert experience.teacher is not None
    head = experience.teacher.head
    double = replace(head, weight=head.weight.double(), bias=None if head.bias is None else head.bias.double())
    return replace(experience, teacher=replace(experience.teacher, hidden=experience.teacher.hidden.double(), head=double))


def rows_of(experience: Experience, *cuts: Sequence[int]) -> list[Experience]:
    """Several parts of an experience, by row numbers."""
    return [take_experience(experience, torch.tensor(cut, dtype=torch.long)) for cut in cuts]


def gradient(model: LanguageModel, parts: Sequence[Experience], config: ObjectiveConfig, weights: TermWeights) -> Tensor:
    """The gradient [all parameters] of one update from micro-batches ``parts``."""
    learner = Learner(model, config, weights, GlobalCounts(**local_counts(parts, config)))
    model.module.zero_grad()
    for part in parts:
        learner.loss(part).backward()
    return flat_gradient(model)


def flat_gradient(model: LanguageModel) -> Tensor:
    """The gradients of all parameters, one after the other."""
    return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.detach().flatten() for p in model.module.parameters()])


def own_logits(model: LanguageModel, prompt: list[int], completion: list[int]) -> Tensor:
    """[C, V]: logits of each completion token by the model's own forward pass over one row without padding."""
    if model.module.config.is_encoder_decoder:
        start = model.module.config.decoder_start_token_id
        inputs = torch.tensor([[start, *completion[:-1]]])
        return model.module(input_ids=torch.tensor([prompt]), decoder_input_ids=inputs).logits[0, :, : model.vocabulary]
    logits = model.module(input_ids=torch.tensor([prompt + completion])).logits[0, :, : model.vocabulary]
    return logits[len(prompt) - 1 : -1]


def token_rows(r: Rollouts) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion ids of each row, without padding."""
    return [
        (r.prompt_ids[i][r.prompt_mask[i]].tolist(), r.completion_ids[i][r.completion_mask[i]].tolist()) for i in range(len(r.examples))
    ]
