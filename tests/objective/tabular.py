"""A policy that is a table, and every answer that it can give: expectations are sums. Shapes: V vocabulary, N tokens, P prefixes.

An answer has ``length`` tokens, always. The table has one row of logits for each prefix; an enumeration has one sequence for each
answer y, weighted by its probability, so that one gradient of the objective is the expected gradient that sampling estimates.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cached_property

import torch
from token_batches import Objective, logits_batch
from torch import Tensor

from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.types import GlobalCounts, TokenBatch

COUNTS = GlobalCounts(1.0, 1.0, 1.0)


class Tabular:
    """Student, teacher and another policy over all answers of ``length`` tokens."""

    def __init__(self, vocabulary: int = 3, length: int = 2, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.vocabulary, self.length = vocabulary, length
        self.prefixes = [prefix for n in range(length) for prefix in itertools.product(range(vocabulary), repeat=n)]
        self.answers = list(itertools.product(range(vocabulary), repeat=length))
        shape = (len(self.prefixes), vocabulary)
        self.student, self.teacher, self.other = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
        self.student.requires_grad_()
        self.rewards = torch.rand(len(self.answers), generator=generator, dtype=torch.float64)

    @cached_property
    def rows(self) -> Tensor:
        """[N] number of the prefix before each token of each answer."""
        return torch.tensor([self.prefixes.index(answer[:n]) for answer in self.answers for n in range(self.length)])

    @cached_property
    def ids(self) -> Tensor:
        """[N] the tokens."""
        return torch.tensor(self.answers).flatten()

    def token_logprobs(self, table: Tensor) -> Tensor:
        """[N] log-probability of each token under a table."""
        return table.log_softmax(-1)[self.rows, self.ids]

    def logprobs(self, table: Tensor) -> Tensor:
        """[answers] log-probability of each answer under a table."""
        return self.token_logprobs(table).reshape(-1, self.length).sum(1)

    def prefix_mass(self, table: Tensor) -> Tensor:
        """[P] probability that an answer begins with the prefix."""
        chances = self.logprobs(table).exp()
        return torch.stack([chances[[a[: len(prefix)] == prefix for a in self.answers]].sum() for prefix in self.prefixes])

    def of_answers(self, values: Tensor) -> Tensor:
        """[N] a value of each answer, for each of its tokens."""
        return values.repeat_interleave(self.length)

    def batch(self, sampled_from: Tensor | None = None, **changes) -> TokenBatch:
        """All answers, each weighted by its probability under the policy that samples (the student unless given)."""
        chances = self.of_answers(self.logprobs(self.student if sampled_from is None else sampled_from).exp()).detach()
        batch = logits_batch(
            self.student[self.rows], self.ids, self.teacher[self.rows], divergence_weights=chances, reward_weights=0 * chances
        )
        return replace(batch, sequence_index=torch.arange(len(self.ids)) // self.length, **changes)

    def gradient(self, objective: Objective, batch: TokenBatch, config: ObjectiveConfig) -> Tensor:
        """[P, V] the objective's expected gradient in the student's table."""
        return torch.autograd.grad(objective(batch, config, COUNTS).loss, self.student)[0]

    def exact(self, expectation: Tensor) -> Tensor:
        """[P, V] gradient of a quantity of the student's table."""
        return torch.autograd.grad(expectation, self.student)[0]
