"""Sampling by vLLM: an engine inside the process, or a server. Its tokens and the log-probabilities of its sampled distribution are
taken as they are; those of the policy come from the trainer's forward pass, so that importance ratios are the trainer's.

Shapes: B sequences, C completion positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from gkd_rl.config.run import VllmConfig
from gkd_rl.errors import UserError
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.models.lora import merged
from gkd_rl.models.tokenizers import prompt_tokens
from gkd_rl.objective.head import in_fp32
from gkd_rl.processes import Processes
from gkd_rl.rollout.drawing import SamplingParams, row_seed
from gkd_rl.rollout.rescoring import token_logprobs, with_policy_logprobs
from gkd_rl.rollout.sampler import Drawn, empty_rows, sampled_rollouts
from gkd_rl.rollout.stopping import Stopping
from gkd_rl.types import Example, Rollouts

NEVER = -100.0
"""vLLM's least bias of a logit."""
PROBE = 8
"""Tokens sampled after each delivery of weights to see whether they arrived."""
CLOSE = 0.25
"""Mean gap in log-probability that rounding (of bfloat16) may leave between vLLM and the trainer."""


@dataclass(frozen=True)
class Request:
    """One row to sample."""

    prompt: list[int]
    settings: dict[str, Any]
    """Keyword arguments of vLLM's ``SamplingParams``; the server's requests have fields of the same names."""


@dataclass(frozen=True)
class Answer:
    """One sampled row."""

    tokens: list[int]
    logprobs: list[float]
    """of each token under the distribution really sampled from"""
    ended: bool


class Backend(Protocol):
    """Where vLLM runs."""

    max_tokens: int
    """prompt and completion of one row together, at most"""

    def deliver(self, model: LanguageModel, version: int) -> None:
        """Put the model's present weights in."""
        ...

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """One row for each request, in their order."""
        ...


class VllmSampler:
    """Samples with vLLM; ``sync`` puts the trained weights in, and comes before the first ``sample``."""

    def __init__(self, model: LanguageModel, backend: Backend, processes: Processes, shared: bool, token_budget: int) -> None:
        self.model = model
        self.backend = backend
        self.processes = processes
        self.shared = shared
        """whether all ranks use one backend, which the main process alone delivers to"""
        self.token_budget = token_budget
        self.version = -1

    def sync(self, version: int) -> None:
        if version == self.version:
            return
        problem = None
        try:
            if self.processes.is_main or not self.shared:
                self.backend.deliver(self.model, version)
                self._require_same_policy()
        except UserError as error:
            problem = str(error)
        problems = [p for p in self.processes.gather(problem) if p]
        if problems:
            raise UserError(problems[0])
        self.version = version

    @torch.no_grad()
    def _require_same_policy(self) -> None:
        """A few tokens, scored by both: weights that did not arrive, or another model, would train on nonsense without a word."""
        end = int(self.model.tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]
        settings = _settings(self.model, SamplingParams(min(PROBE, self.backend.max_tokens - 1)), [])
        (answer,) = self.backend.answer([Request([end], {**settings, "seed": 0})])
        prompt, tokens = (torch.tensor([row], device=self.model.device) for row in ([end], answer.tokens))
        hidden = self.model.completion_hidden(prompt, torch.ones_like(prompt).bool(), tokens, torch.ones_like(tokens).bool())
        ours = token_logprobs(hidden[0], tokens[0], in_fp32(self.model.head))
        gap = (ours - torch.tensor(answer.logprobs, device=ours.device)).abs().mean()
        if not gap < CLOSE:
            raise UserError(
                f"vLLM's log-probabilities are {gap:.2f} per token away from the student's after its weights were put in, so it runs "
                "another model; serve the student itself, or set rollout.sampler=native"
            )

    @torch.no_grad()
    def sample(self, examples: Sequence[Example], per_prompt: int, params: SamplingParams, seed: int) -> Rollouts:
        assert self.version >= 0, "sync comes before the first sample"
        prompts = [prompt_tokens(self.model.tokenizer, example.prompt) for example in examples]
        stopping = Stopping(self.model, params)
        common = _settings(self.model, params, stopping.ends.tolist())
        requests = [
            Request(prompt, {**common, "seed": row_seed((seed, example.key, g))})
            for example, prompt in zip(examples, prompts, strict=True)
            for g in range(per_prompt)
        ]
        answers = self.backend.answer(requests) if requests else []
        assert len(answers) == len(requests)
        drawn = _cut(_padded(self.model, answers, params), stopping)
        rollouts = sampled_rollouts(self.model, examples, prompts, per_prompt, drawn, self.version)
        return with_policy_logprobs(self.model, rollouts, self.token_budget)


def checkpoint_weights(module: PreTrainedModel) -> dict[str, Tensor]:
    """Weights under the names that they have in a checkpoint, tied ones under each of theirs: vLLM's reload does not tie again.

    An adapter is merged into them.
    """
    with merged(module):
        return revert_weight_conversion(module, module.state_dict())


def require_vllm(config: VllmConfig) -> None:
    """Raise ``UserError`` where an engine in this process is asked for and vLLM is not installed."""
    if config.url is None and find_spec("vllm") is None:
        raise UserError("rollout.sampler is 'vllm' but vLLM is not installed; pip install 'gkd-rl[vllm]', or set rollout.vllm.url")


def _settings(model: LanguageModel, params: SamplingParams, ends: list[int]) -> dict[str, Any]:
    """Every setting is named: a server fills what is left open from the model's own defaults."""
    embedded: int = model.module.get_input_embeddings().weight.shape[0]  # pyright: ignore[reportAssignmentType, reportIndexIssue]
    return {
        "max_tokens": params.max_new_tokens,
        "min_tokens": params.min_new_tokens,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": list(params.stop),
        "stop_token_ids": ends,
        "ignore_eos": True,  # the end tokens above are all there are
        "logprobs": 0,  # of the sampled token alone
        "logit_bias": dict.fromkeys(range(model.vocabulary, embedded), NEVER) or None,  # rows that mean nothing
    }


def _padded(model: LanguageModel, answers: Sequence[Answer], params: SamplingParams) -> Drawn:
    """Filled in host memory: one transfer to the device instead of several for every row."""
    drawn = empty_rows(model, len(answers), params.max_new_tokens, torch.device("cpu"))
    for row, answer in enumerate(answers):
        length = len(answer.tokens)
        if not 0 < length <= params.max_new_tokens or len(answer.logprobs) != length:
            raise UserError(
                f"vLLM answered with {length} tokens and {len(answer.logprobs)} log-probabilities where 1 to {params.max_new_tokens} "
                "of each were asked for; its version may be too old"
            )
        drawn.ids[row, :length] = torch.tensor(answer.tokens)
        if params.temperature > 0:  # vLLM scores a greedy choice as if it had been drawn
            drawn.sampler_logprobs[row, :length] = torch.tensor(answer.logprobs)
        drawn.lengths[row], drawn.ended[row] = length, answer.ended
    return Drawn(**{item.name: getattr(drawn, item.name).to(model.device) for item in fields(drawn)})


def _cut(drawn: Drawn, stopping: Stopping) -> Drawn:
    """Rows cut where ``Stopping`` ends them: vLLM overlooks stop texts among the first ``min_new_tokens`` tokens."""
    if not stopping.texts:
        return drawn
    ended = torch.zeros_like(drawn.ended)
    lengths = drawn.lengths.clone()
    for position in range(int(lengths.max()) if len(lengths) else 0):
        ending = stopping.ending(drawn.ids, position, drawn.ids[:, position]) & ~ended & (position < drawn.lengths)
        lengths[ending] = position + 1
        ended = ended | ending
    kept = torch.arange(drawn.ids.shape[1], device=lengths.device) < lengths[:, None]
    pad = int(stopping.tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
    return replace(
        drawn,
        ids=drawn.ids.masked_fill(~kept, pad),
        sampler_logprobs=drawn.sampler_logprobs.masked_fill(~kept, 0.0),
        lengths=lengths,
        ended=ended | drawn.ended,
    )
