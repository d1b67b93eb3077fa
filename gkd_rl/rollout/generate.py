"""Sampling by Hugging Face's ``generate``: the oracle for the other samplers, and what still works where a model's cache is unusual.

Truncation is Transformers' own (temperature, top-k, top-p, min-p, least length). The draw is ours, with the uniform numbers of
``drawing.py``: rows depend on seed, example and place alone, and the global random state is neither read nor moved.

Shapes: B sequences, P prompt positions, C completion positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    StoppingCriteria,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gkd_rl.models.language_model import LanguageModel, encode_prompts
from gkd_rl.models.tokenizers import prompt_tokens
from gkd_rl.progress import progress
from gkd_rl.rollout.drawing import SamplingParams, row_uniforms
from gkd_rl.rollout.rescoring import with_policy_logprobs
from gkd_rl.rollout.sampler import empty_rows, sampled_rollouts
from gkd_rl.rollout.stopping import Stopping
from gkd_rl.types import Example, Rollouts


class GenerateSampler:
    """Samples with the trained model's ``generate``; log-probabilities of the policy come from the trainer's forward pass."""

    def __init__(self, model: LanguageModel, max_rows: int, token_budget: int) -> None:
        self.model = model
        self.max_rows = max_rows
        self.token_budget = token_budget
        self.version = 0

    def sync(self, version: int) -> None:
        self.version = version

    @torch.no_grad()
    def sample(self, examples: Sequence[Example], per_prompt: int, params: SamplingParams, seed: int) -> Rollouts:
        prompts = [prompt_tokens(self.model.tokenizer, example.prompt) for example in examples]
        keys = [(seed, example.key, g) for example in examples for g in range(per_prompt)]
        drawn = empty_rows(self.model, len(keys), params.max_new_tokens)
        order = sorted(range(len(keys)), key=lambda row: len(prompts[row // per_prompt]))
        with progress("sampling", len(keys), "rows") as advance:
            for chunk in (order[i : i + self.max_rows] for i in range(0, len(order), self.max_rows)):
                rows = torch.tensor(chunk, device=drawn.ids.device)
                uniforms = row_uniforms([keys[row] for row in chunk], params.max_new_tokens).to(drawn.ids.device)
                out = self._generate([prompts[row // per_prompt] for row in chunk], params, uniforms)
                drawn.ids[rows], drawn.sampler_logprobs[rows], drawn.lengths[rows], drawn.ended[rows] = out
                advance(len(chunk))
        rollouts = sampled_rollouts(self.model, examples, prompts, per_prompt, drawn, self.version)
        return with_policy_logprobs(self.model, rollouts, self.token_budget)

    def _generate(self, prompts: list[list[int]], params: SamplingParams, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of one chunk: ids and the sampler's log-probabilities [B, C], lengths and whether rows ended themselves [B]."""
        prompt_ids, prompt_mask, start = self.model.generation_inputs(*encode_prompts(self.model, prompts))
        stopping = Stopping(self.model, params)
        draw, watch = _Draw(uniforms, start, params.temperature == 0), _Watch(stopping, start, len(prompts))
        with _plain_settings(self.model, params.max_new_tokens):
            ids = self.model.module.generate(  # pyright: ignore[reportCallIssue]
                prompt_ids,
                attention_mask=prompt_mask.long(),
                logits_processor=LogitsProcessorList([*_truncation(self.model, params, start, stopping.ends), draw]),
                stopping_criteria=StoppingCriteriaList([watch]),
            )[:, start:]
        lengths = torch.where(watch.ended, watch.lengths, ids.shape[1])
        mask = torch.arange(params.max_new_tokens, device=ids.device) < lengths[:, None]
        pad = int(self.model.tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
        ids = torch.nn.functional.pad(ids, (0, params.max_new_tokens - ids.shape[1]))
        return ids.masked_fill(~mask, pad), draw.logprobs.masked_fill(~mask, 0.0), lengths, watch.ended


def _truncation(model: LanguageModel, params: SamplingParams, start: int, ends: Tensor) -> Iterator[LogitsProcessor]:
    """Transformers' processors in the order in which ``generate`` itself would put them."""
    embedded: int = model.module.get_output_embeddings().weight.shape[0]  # pyright: ignore[reportAssignmentType, reportOptionalMemberAccess]
    device = str(model.device)
    if embedded > model.vocabulary:  # models pad their vocabularies with rows that mean nothing
        yield SuppressTokensLogitsProcessor(list(range(model.vocabulary, embedded)), device=device)
    if params.min_new_tokens:
        yield MinNewTokensLengthLogitsProcessor(start, params.min_new_tokens, ends.tolist(), device=device)
    if params.temperature not in (0, 1):
        yield TemperatureLogitsWarper(params.temperature)
    if params.top_k:
        yield TopKLogitsWarper(params.top_k)
    if params.top_p < 1:
        yield TopPLogitsWarper(params.top_p)
    if params.min_p > 0:
        yield MinPLogitsWarper(params.min_p)


class _Draw(LogitsProcessor):
    """Draws a token per row by inversion, keeps its log-probability, and leaves nothing else for ``generate`` to choose."""

    def __init__(self, uniforms: Tensor, start: int, greedy: bool) -> None:
        self.uniforms = uniforms
        self.start = start
        self.greedy = greedy
        self.logprobs = torch.zeros(uniforms.shape, device=uniforms.device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.greedy:
            return scores
        place = input_ids.shape[1] - self.start
        chances = scores.double().softmax(-1)
        sums = chances.cumsum(-1)
        target = self.uniforms[:, place, None] * sums[:, -1:]
        tokens = torch.searchsorted(sums, target, right=True).clamp_max(scores.shape[-1] - 1)
        self.logprobs[:, place] = chances.gather(-1, tokens)[:, 0].log().float()
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens, 0.0)


class _Watch(StoppingCriteria):
    """Ends rows as ``Stopping`` says, and remembers where."""

    def __init__(self, stopping: Stopping, start: int, rows: int) -> None:
        self.stopping = stopping
        self.start = start
        self.ended = torch.zeros(rows, dtype=torch.bool, device=stopping.ends.device)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=stopping.ends.device)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        place = input_ids.shape[1] - self.start - 1
        ending = self.stopping.ending(input_ids[:, self.start :], place, input_ids[:, -1]) & ~self.ended
        self.lengths[ending] = place + 1
        self.ended = self.ended | ending
        return self.ended


@contextmanager
def _plain_settings(model: LanguageModel, max_new_tokens: int) -> Iterator[None]:
    """``generate`` fills what a call leaves open from the model's own settings (penalties, forced tokens): here it finds none."""
    kept = model.module.generation_config
    model.module.generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=model.tokenizer.pad_token_id,
        decoder_start_token_id=getattr(model.module.config, "decoder_start_token_id", None),
    )
    try:
        yield
    finally:
        model.module.generation_config = kept
