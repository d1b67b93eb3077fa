"""Teachers made of the student itself: a moving average of its weights, and one that sees what the student does not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gkd_rl.errors import UserError
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.models.lora import merged
from gkd_rl.models.tokenizers import prompt_tokens
from gkd_rl.teacher.local import Teacher
from gkd_rl.types import Example, Heads, Message, Rollouts, TeacherScores

FIELD = re.compile(r"\{(\w+)\}")


class MovingAverage:
    """θ̄ ← decay·θ̄ + (1−decay)·θ of the student's weights (with its adapter, if it has one), in fp32, written into ``model``."""

    def __init__(self, model: LanguageModel, decay: float) -> None:
        self.model = model
        self.decay = decay

    @torch.no_grad()
    def follow(self, student: LanguageModel) -> None:
        """One step towards the student; its parameters have to be whole here."""
        with merged(student.module):
            theirs = dict(student.module.named_parameters())
            for name, average in self.model.module.named_parameters():
                average.lerp_(theirs[name].to(average.device, average.dtype), 1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights."""
        return {name: parameter.detach() for name, parameter in self.model.module.named_parameters()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """What ``state_dict`` gave, written in place: the teacher's head shares these tensors."""
        for name, parameter in self.model.module.named_parameters():
            parameter.copy_(state[name])


class PrivilegedTeacher:
    """A teacher whose prompt is ``template`` filled with the example's own prompt and columns; completions stay what they are."""

    def __init__(self, inner: Teacher, template: str, tokenizer: PreTrainedTokenizerBase, window: int | None) -> None:
        self.inner = inner
        self.template = template
        self.tokenizer = tokenizer
        self.window = window

    @property
    def head(self) -> Heads | None:
        """The inner teacher's."""
        return self.inner.head

    def score(self, rollouts: Rollouts) -> TeacherScores:
        """What the teacher predicts at each completion token behind its own prompt.

        Raises ``UserError`` for an example that lacks a field of the template, and for one that is too long for the teacher.
        """
        prompts = [prompt_tokens(self.tokenizer, privileged_prompt(example, self.template)) for example in rollouts.examples]
        for example, prompt, completion in zip(rollouts.examples, prompts, rollouts.completion_mask.sum(1).tolist(), strict=True):
            if self.window is not None and len(prompt) + completion > self.window:
                raise UserError(
                    f"teacher.privileged: example {example.key} has {len(prompt) + completion} tokens with what the teacher is shown, but "
                    f"it reads at most {self.window}; shorten the template or lower task.max_prompt_tokens"
                )
        ids, mask = self._padded(prompts)
        device = rollouts.prompt_ids.device
        return self.inner.score(replace(rollouts, prompt_ids=ids.to(device), prompt_mask=mask.to(device)))

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        width = max((len(prompt) for prompt in prompts), default=1)
        ids = torch.full((len(prompts), width), int(self.tokenizer.pad_token_id))  # pyright: ignore[reportArgumentType]
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long), True
        return ids, mask


def privileged_prompt(example: Example, template: str) -> str | Sequence[Message]:
    """The example's prompt (of a chat, its last message) put into ``template`` with the completion and columns that it names.

    Raises ``UserError`` with the fields that there are, for one that there is not.
    """
    fields = {name: str(value) for name, value in example.columns.items() if value is not None}
    if example.completion is not None:
        fields["completion"] = example.completion

    def filled(prompt: str) -> str:
        return FIELD.sub(lambda found: _field(found[1], {**fields, "prompt": prompt}, example), template)

    if isinstance(example.prompt, str):
        return filled(example.prompt)
    last = example.prompt[-1]
    return [*example.prompt[:-1], {**last, "content": filled(last["content"])}]


def _field(name: str, fields: Mapping[str, str], example: Example) -> str:
    if name not in fields:
        raise UserError(
            f"teacher.privileged names {{{name}}}, which example {example.key} does not have; it has {', '.join(sorted(fields))}"
        )
    return fields[name]
