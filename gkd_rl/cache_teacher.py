"""``gkd-rl cache-teacher``: the teacher's scores of the dataset's completions, written to disk once. Resumable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gkd_rl.build import build_parts
from gkd_rl.config.run import Config
from gkd_rl.config.validate import validate
from gkd_rl.console import Terminal
from gkd_rl.errors import UserError
from gkd_rl.models.tokenizers import completion_tokens, prompt_tokens
from gkd_rl.processes import Processes
from gkd_rl.rollout.sampler import dataset_rollouts
from gkd_rl.tasks.base import training_example
from gkd_rl.teacher.build import teacher_name
from gkd_rl.teacher.cache import CacheHeader, TeacherCache
from gkd_rl.types import Example, TopKScores

ROWS_PER_SHARD = 256


def cache_teacher(config: Config, out: str) -> int:
    """Score the completions of all training examples with ``config.teacher`` into the folder ``out``; returns the rows there.

    Rows that are there already are left out. Raises ``UserError`` for a teacher without ``top_k``, several teachers, one with
    another tokenizer, a task without end, and a folder that holds other scores.
    """
    config = replace(config, teacher=replace(config.teacher, cache=None))
    if config.teacher.kind == "ema":
        raise UserError("cache-teacher keeps what a teacher says once, and teacher.kind 'ema' changes at every step; set another kind")
    if config.teachers or config.teacher.top_k is None:
        what = "one teacher, and teachers names several" if config.teachers else "log-probabilities of some tokens; set teacher.top_k"
        raise UserError(f"cache-teacher keeps {what}")
    if config.teacher.other_tokenizer:
        raise UserError(
            "cache-teacher keeps scores by the student's tokens; set teacher.other_tokenizer=false, with a teacher of its family"
        )
    if config.teacher.shard:
        raise UserError("cache-teacher has ranks score for themselves, which a teacher of teacher.shard cannot; set it to false")
    validate(config)
    processes = Processes(config.engine.threads)
    terminal = Terminal(processes.is_main)
    parts = build_parts(config, processes)
    size = config.task.train_examples or parts.task.train_size
    if size is None:
        raise UserError(f"task.path: {config.task.path} has no end; set task.train_examples to the number of examples to cache")
    if parts.teaching.teacher is None:
        raise UserError("cache-teacher needs a teacher; set teacher.path or teacher.url")
    cache = TeacherCache(Path(out))
    if processes.is_main:
        cache.begin(CacheHeader(teacher_name(config.teacher), config.teacher.top_k, config.teacher.draws))
    processes.barrier()
    tokenizer, limit = parts.student.tokenizer, config.rollout.max_new_tokens

    def missing() -> Iterator[Example]:
        for number in range(min(size, parts.task.train_size or size)):
            example = training_example(parts.task, number)
            prompt = prompt_tokens(tokenizer, example.prompt)
            if len(prompt) <= config.task.max_prompt_tokens and not cache.holds(prompt, completion_tokens(tokenizer, example, limit)):
                yield example

    examples = processes.share(list(missing()))
    first = len(cache)
    with terminal.bar("scoring", len(examples)) as bar:
        for start in range(0, len(examples), ROWS_PER_SHARD):
            rollouts = dataset_rollouts(parts.student, examples[start : start + ROWS_PER_SHARD], limit, 0)
            scores = parts.teaching.teacher.score(rollouts)
            assert isinstance(scores, TopKScores)
            cache.add(rollouts, scores, f"{first:08d}-{processes.rank:03d}-{start // ROWS_PER_SHARD:05d}")
            bar.advance(len(rollouts.examples))
    processes.barrier()
    rows = len(TeacherCache(Path(out)))
    terminal.say(f"{out} holds {rows} rows; teacher.cache={out} trains on them")
    processes.close()
    return rows
