"""Sampling in the process: batched incremental decoding with a cache, over the very weights that are trained.

A group's prompt is read once and its cache repeated; finished rows are taken out of the batch.

Shapes: B sequences, P prompt positions, C completion positions, H hidden, G rollouts per prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gkd_rl.models.language_model import LanguageModel, encode_prompts
from gkd_rl.models.placement import placed
from gkd_rl.models.tokenizers import completion_tokens, prompt_tokens
from gkd_rl.objective.head import logits_of, packed_head
from gkd_rl.progress import Advance, progress
from gkd_rl.rollout.calculator import Calculator, Insertions
from gkd_rl.rollout.drawing import SamplingParams, draw, row_uniforms
from gkd_rl.rollout.stopping import Stopping
from gkd_rl.types import Example, Rollouts


class Sampler(Protocol):
    """Anything that answers prompts with the present policy."""

    version: int
    """updates that the policy had which it samples from"""

    def sample(self, examples: Sequence[Example], per_prompt: int, params: SamplingParams, seed: int) -> Rollouts:
        """``per_prompt`` completions of every example; rows of one example stand together."""
        ...

    def sync(self, version: int) -> None:
        """Take over the trained policy, which has had ``version`` updates. Every rank calls it, holding the whole model."""
        ...


class InProcessSampler:
    """Decodes with the trained model itself: nothing to copy, nothing to synchronise but the version."""

    def __init__(self, model: LanguageModel, max_rows: int, device: torch.device | None = None) -> None:
        """``device``: where a model goes to sample that waits elsewhere; None: it is there."""
        self.model = model
        self.device = device
        self.max_rows = max_rows
        self.version = 0

    def sync(self, version: int) -> None:
        self.version = version

    @torch.no_grad()
    def sample(self, examples: Sequence[Example], per_prompt: int, params: SamplingParams, seed: int) -> Rollouts:
        rows = min(self.max_rows, len(examples) * per_prompt)
        with placed(self.model, self.device), self.model.many_steps(rows):
            return self._sample(examples, per_prompt, params, seed)

    def _sample(self, examples: Sequence[Example], per_prompt: int, params: SamplingParams, seed: int) -> Rollouts:
        prompts = [prompt_tokens(self.model.tokenizer, example.prompt) for example in examples]
        drawn = empty_rows(self.model, len(prompts) * per_prompt, params.max_new_tokens)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        size = max(1, self.max_rows // per_prompt)
        with progress("sampling", len(prompts) * per_prompt * params.max_new_tokens, "tokens") as advance:
            for chunk in (order[i : i + size] for i in range(0, len(order), size)):
                rows = torch.tensor([i * per_prompt + g for i in chunk for g in range(per_prompt)], device=drawn.ids.device)
                keys = [(seed, examples[i].key, g) for i in chunk for g in range(per_prompt)]
                uniforms = row_uniforms(keys, params.max_new_tokens).to(drawn.ids.device)
                out = self._decode([prompts[i] for i in chunk], per_prompt, params, uniforms, advance)
                drawn.ids[rows], drawn.logprobs[rows], drawn.sampler_logprobs[rows] = out[:3]
                drawn.lengths[rows], drawn.ended[rows], drawn.inserted[rows] = out[3:]
        return sampled_rollouts(self.model, examples, prompts, per_prompt, drawn, self.version)

    def _decode(self, prompts: list[list[int]], per_prompt: int, params: SamplingParams, uniforms: Tensor, advance: Advance):
        """Of one chunk: ids, log-probabilities under policy and sampler [B, C], lengths [B], whether rows ended themselves [B], and
        which tokens were inserted [B, C]."""
        model, rows = self.model, len(prompts) * per_prompt
        stopping = Stopping(model, params)
        insertions = Insertions(Calculator(model.tokenizer)) if params.calculator else None
        hidden, state = model.begin(*encode_prompts(model, prompts), params.max_new_tokens)
        if per_prompt > 1:
            hidden = hidden.repeat_interleave(per_prompt, dim=0)
            state.repeat(per_prompt)
        head = packed_head(model.head, rows)
        pad = int(model.tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
        ids = torch.full((rows, params.max_new_tokens), pad, device=hidden.device)
        logprobs = torch.zeros(ids.shape, device=hidden.device)
        sampler_logprobs = torch.zeros(ids.shape, device=hidden.device)
        inserted = torch.zeros(ids.shape, dtype=torch.bool, device=hidden.device)
        lengths = torch.full((rows,), params.max_new_tokens, device=hidden.device)
        alive = torch.arange(rows, device=hidden.device)
        ended = torch.zeros(rows, dtype=torch.bool, device=hidden.device)
        whole = torch.zeros(rows, dtype=torch.bool, device=hidden.device)
        for position in range(params.max_new_tokens):
            logits = logits_of(hidden, head)
            due = None if insertions is None else insertions.due(alive, logits)
            tokens, policy, sampler = draw(logits, uniforms[alive, position], params, stopping.banned(position), consume=True)
            if due is not None:
                places = due.places
                tokens[places], policy[places], sampler[places] = due.tokens, due.logprobs, 0.0
                inserted[alive[places], position] = ~ended[places]
            running = alive[~ended]
            ids[running, position] = tokens[~ended]
            logprobs[running, position], sampler_logprobs[running, position] = policy[~ended], sampler[~ended]
            advance(rows, len(running))
            ending = stopping.ending(ids[alive], position, tokens) & ~ended
            lengths[alive[ending]], whole[alive[ending]] = position + 1, True
            ended = ended | ending
            if insertions is not None:
                insertions.look(alive, ids[alive], position)
            if bool(ended.all()) or position + 1 == params.max_new_tokens:
                break
            if int(ended.sum()) * 8 >= len(ended):  # taking rows out copies the cache once: wait until an eighth has ended
                keep = (~ended).nonzero()[:, 0]
                state.select(keep)
                alive, tokens, ended = alive[keep], tokens[keep], ended[keep]
            hidden = model.advance(tokens, state)
        advance(rows * (params.max_new_tokens - position - 1), 0)
        return ids, logprobs, sampler_logprobs, lengths, whole, inserted


@dataclass(frozen=True)
class Drawn:
    """What a sampler drew, row by row, padded to a common width."""

    ids: Tensor
    """[B, C] int64"""
    lengths: Tensor
    """[B] int64"""
    ended: Tensor
    """[B] bool"""
    logprobs: Tensor
    """[B, C] fp32 under the untruncated policy"""
    sampler_logprobs: Tensor
    """[B, C] fp32 under the distribution really sampled from"""
    inserted: Tensor
    """[B, C] bool: not drawn, but put there by the calculator"""


def empty_rows(model: LanguageModel, rows: int, width: int, device: torch.device | None = None) -> Drawn:
    """Room for ``rows`` completions of at most ``width`` tokens, all padding; by default on the model's device."""
    device = device or model.device
    pad = int(model.tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
    return Drawn(
        ids=torch.full((rows, width), pad, device=device),
        lengths=torch.zeros(rows, dtype=torch.long, device=device),
        ended=torch.zeros(rows, dtype=torch.bool, device=device),
        logprobs=torch.zeros(rows, width, device=device),
        sampler_logprobs=torch.zeros(rows, width, device=device),
        inserted=torch.zeros(rows, width, dtype=torch.bool, device=device),
    )


def sampled_rollouts(
    model: LanguageModel, examples: Sequence[Example], prompts: Sequence[Sequence[int]], per_prompt: int, drawn: Drawn, version: int
) -> Rollouts:
    """Rollouts of ``per_prompt`` rows for each example and its prompt's tokens, cut to the longest row."""
    device = drawn.ids.device
    width = int(drawn.lengths.max()) if len(drawn.lengths) else 1
    mask = torch.arange(width, device=device) < drawn.lengths[:, None]
    rows = [example for example in examples for _ in range(per_prompt)]
    prompt_ids, prompt_mask = encode_prompts(model, [prompt for prompt in prompts for _ in range(per_prompt)])
    return Rollouts(
        examples=tuple(rows),
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=drawn.ids[:, :width],
        completion_mask=mask,
        logprobs=drawn.logprobs[:, :width],
        sampler_logprobs=drawn.sampler_logprobs[:, :width],
        on_policy=torch.ones(len(rows), dtype=torch.bool, device=device),
        group=torch.tensor([example.key for example in rows], dtype=torch.long, device=device),
        version=torch.full((len(rows),), version, device=device),
        ended=drawn.ended,
        inserted=drawn.inserted[:, :width],
        texts=decode(model, drawn.ids[:, :width], mask),
    )


def dataset_rollouts(model: LanguageModel, examples: Sequence[Example], max_new_tokens: int, version: int) -> Rollouts:
    """The dataset's own completions in the form of rollouts: off-policy rows.

    Raises ``UserError`` for an example without one, or with one of more than ``max_new_tokens`` tokens.
    """
    rows = [completion_tokens(model.tokenizer, example, max_new_tokens) for example in examples]
    return given_rollouts(model, examples, rows, [True] * len(rows), version)


def given_rollouts(
    model: LanguageModel, examples: Sequence[Example], rows: Sequence[Sequence[int]], ended: Sequence[bool], version: int
) -> Rollouts:
    """Off-policy rows whose completions are given as tokens; ``ended`` says which of them were not cut off."""
    prompt_ids, prompt_mask = encode_prompts(model, [prompt_tokens(model.tokenizer, e.prompt) for e in examples])
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), int(model.tokenizer.pad_token_id))  # pyright: ignore[reportArgumentType]
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
    ids = ids.to(model.device)
    mask = torch.arange(width, device=ids.device) < torch.tensor([len(row) for row in rows], device=ids.device)[:, None]
    zeros = torch.zeros(ids.shape, device=ids.device)
    return Rollouts(
        examples=tuple(examples),
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=ids,
        completion_mask=mask,
        logprobs=zeros,
        sampler_logprobs=zeros,
        on_policy=torch.zeros(len(rows), dtype=torch.bool, device=ids.device),
        group=torch.tensor([e.key for e in examples], device=ids.device),
        version=torch.full((len(rows),), version, device=ids.device),
        ended=torch.tensor(ended, dtype=torch.bool, device=ids.device),
        inserted=torch.zeros_like(mask),
        texts=decode(model, ids, mask),
    )


def decode(model: LanguageModel, ids: Tensor, mask: Tensor) -> tuple[str, ...]:
    """Texts of completions, special tokens left out."""
    kept = [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
    return tuple(model.tokenizer.batch_decode(kept, skip_special_tokens=True)) if kept else ()
