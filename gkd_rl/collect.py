"""One step's experience: examples, rollouts, rewards, advantages and the teacher's scores of this rank."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext

from gkd_rl.config.run import RolloutConfig
from gkd_rl.config.validate import needs_teacher
from gkd_rl.errors import UserError
from gkd_rl.models.tokenizers import prompt_tokens
from gkd_rl.objective.gate import row_gates
from gkd_rl.objective.schedule import value_at
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.first_batch import first_answers
from gkd_rl.rollout.resample import Judged, replace_flat_groups
from gkd_rl.rollout.rows import join
from gkd_rl.rollout.sampler import dataset_rollouts
from gkd_rl.run import Run
from gkd_rl.run_log import rollout_health, step_flops
from gkd_rl.scoring import combined_rewards, global_advantages, score_rollouts
from gkd_rl.tasks.base import stream_example
from gkd_rl.types import Example, Experience, Rollouts, TeacherScores


def collect(run: Run, step: int) -> tuple[Experience, dict[str, float]]:
    """This rank's rollouts of ``step`` with rewards, advantages and the teacher's scores."""
    config, parts, times = run.config, run.parts, run.times
    with times.phase("sample"):  # where sampling runs ahead: the wait for it
        judged, replaced = run.processes.together(lambda: judge_step(run, step) if run.ahead is None else run.ahead.take(step))
    figures = run.processes.sum({"groups_resampled": float(replaced)}) if config.rollout.max_resamples else {}
    if run.ahead is not None:
        with times.phase("sync"):
            parts.sampler.sync(step)
        if step + 1 < config.max_steps:
            run.ahead.start(step + 1)
    rollouts, rewards = judged.rollouts, judged.rewards
    with times.phase("reward"):
        weighted = parts.rewards.at(step)
        combined = combined_rewards(weighted, rewards, judged.components, rollouts.group, run.processes)
        advantages = global_advantages(combined, rollouts.group, config.objective.advantage, run.processes)
        figures |= {f"weight_{name}": weighted.weights[name] for name in parts.rewards.scheduled}
    with times.phase("teacher"):
        teacher, reference = run.processes.together(lambda: _scores(run, rollouts))
    gates = row_gates(rewards, rollouts.group, config.objective.gate)
    experience = Experience(rollouts, rewards, judged.components, advantages, teacher, reference, gates)
    figures |= rollout_health(experience, run.processes)
    if config.rollout.on_policy_schedule.kind != "constant":
        figures["on_policy_share"] = share_at(run, step)
    if config.rollout.calculator:
        counts = {"tokens": float(rollouts.completion_mask.sum()), "inserted": float(rollouts.inserted.sum())}
        counts = run.processes.sum(counts)
        figures["calculator_share"] = counts["inserted"] / max(counts["tokens"], 1.0)
    if config.task.long_prompts == "drop" and parts.task.train_size is None:  # of a task with an end, they were left out beforehand
        kept = run.processes.sum({"prompts": float(len(rollouts.group.unique()))})["prompts"]
        figures["prompts_left_out"] = config.rollout.prompts_per_step - kept
    scoring = (parts.teaching.parameters if teacher is not None else 0) + (parts.reference.parameters if parts.reference else 0)
    student = parts.student.parameters, parts.student.trained_parameters
    figures |= step_flops(rollouts, *student, scoring, config.rollout.passes, config.rollout.per_prompt, run.processes)
    return experience, figures


def _scores(run: Run, rollouts: Rollouts) -> tuple[TeacherScores | None, TeacherScores | None]:
    """What teacher and reference say of the rollouts."""
    teaching, reference = run.parts.teaching, run.parts.reference
    shared = teaching.shares_student or (reference is not None and reference.under_adapter)
    with run.engine.states_away(), run.engine.gathered() if shared else nullcontext():
        taught = teaching.teacher.score(rollouts) if teaching.teacher is not None and needs_teacher(run.config) else None
        return taught, reference.score(rollouts) if reference is not None else None


def judge_step(run: Run, step: int) -> tuple[Judged, int]:
    """The step's rollouts with rewards; fresh prompts take the place of groups that were judged alike, where that is asked for."""
    pad = int(run.parts.student.tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
    rounds = run.config.rollout.max_resamples
    with run.engine.gathered():
        judged = _with_rewards(run, _rollouts(run, _examples(run, step), step), step)
        if not rounds:
            return judged, 0
        sampled_anew = lambda examples: _with_rewards(run, _sampled(run, examples), step)
        return replace_flat_groups(judged, rounds, lambda place: _fresh_example(run, place), sampled_anew, pad)


def _with_rewards(run: Run, rollouts: Rollouts, step: int) -> Judged:
    with run.times.phase("reward"):
        return Judged(rollouts, *score_rollouts(run.parts.rewards.at(step), rollouts))


def _fresh_example(run: Run, place: int) -> Example | None:
    """The stream's example at a place, None where its prompt is too long."""
    config = run.config
    example = stream_example(run.parts.task, place, config.seed, config.task.train_examples)
    length = len(prompt_tokens(run.parts.student.tokenizer, example.prompt))
    return example if length <= config.task.max_prompt_tokens else None


def _examples(run: Run, step: int) -> list[Example]:
    """This rank's examples of ``step``; the cut over ranks changes nothing of what is drawn."""
    config = run.config
    count = config.rollout.prompts_per_step
    places = range(step * count, (step + 1) * count)
    examples = [stream_example(run.parts.task, i, config.seed, config.task.train_examples) for i in places]
    tokenizer, limit = run.parts.student.tokenizer, config.task.max_prompt_tokens
    kept = [e for e in examples if len(prompt_tokens(tokenizer, e.prompt)) <= limit]
    if (len(kept) < len(examples) and config.task.long_prompts != "drop") or not kept:
        raise UserError(f"a prompt of step {step + 1} is over task.max_prompt_tokens={limit}; raise it, or set task.long_prompts=drop")
    return run.processes.share(kept)


def share_at(run: Run, step: int) -> float:
    """λ at ``step``: the share of examples that the student answers itself."""
    rollout = run.config.rollout
    return value_at(rollout.on_policy_share, rollout.on_policy_schedule, step, run.config.max_steps, run.history)


def _rollouts(run: Run, examples: list[Example], step: int) -> Rollouts:
    """Sampled rows for a share λ of the examples, given completions for the others (the same coins in every rerun)."""
    config, rollout = run.config, run.config.rollout
    share = share_at(run, step)
    coins = [_coin(config.seed, e.key if rollout.mixing == "example" else f"step {step}") for e in examples]
    sampled = [e for e, coin in zip(examples, coins, strict=True) if coin < share]
    others = [e for e, coin in zip(examples, coins, strict=True) if coin >= share]
    parts: list[Rollouts] = []
    if sampled or not others:  # a rank may have no examples at all
        parts.append(_sampled(run, sampled) if step or rollout.first_batch is None else _shared(run, sampled))
    if others:
        parts.append(_given(run, others))
    return join(parts, int(run.parts.student.tokenizer.pad_token_id))  # pyright: ignore[reportArgumentType]


def _sampled(run: Run, examples: Sequence[Example]) -> Rollouts:
    rollout = run.config.rollout
    with run.times.phase("sample"):
        return run.parts.sampler.sample(examples, rollout.per_prompt, sampling_params(rollout), run.config.seed)


def _shared(run: Run, examples: Sequence[Example]) -> Rollouts:
    """The first step's sampled answers, which other runs begin with too."""
    return first_answers(run.config, run.parts.student, examples, lambda: _sampled(run, examples))


def _given(run: Run, examples: Sequence[Example]) -> Rollouts:
    """Off-policy rows: the dataset's completions, or the teacher's."""
    rollout, version = run.config.rollout, run.parts.sampler.version
    if run.parts.completions is not None:
        with run.times.phase("teacher"):
            return run.parts.completions.rollouts(examples, rollout.per_prompt, version)
    rows = [example for example in examples for _ in range(rollout.per_prompt)]
    return dataset_rollouts(run.parts.student, rows, rollout.max_new_tokens, version)


def sampling_params(rollout: RolloutConfig) -> SamplingParams:
    """How the configuration has completions sampled."""
    return SamplingParams(
        max_new_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        top_k=rollout.top_k,
        top_p=rollout.top_p,
        min_p=rollout.min_p,
        min_new_tokens=rollout.min_new_tokens,
        stop=tuple(rollout.stop),
        stop_token_ids=tuple(rollout.stop_token_ids),
        calculator=rollout.calculator,
    )


def _coin(seed: int, key: int | str) -> float:
    digest = hashlib.blake2b(f"lambda/{seed}/{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
