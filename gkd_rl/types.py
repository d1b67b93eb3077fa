"""The records that flow through a run. All are frozen; tensors inside them are never changed in place.

Shapes: B sequences, P prompt positions, C completion positions, N valid completion tokens, V vocabulary, H hidden, K top-k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Message = Mapping[str, str]
"""One chat message: ``{"role": ..., "content": ...}``."""


@dataclass(frozen=True)
class Example:
    """One row of a task: what is asked, the dataset's own answer, and everything a reward may want to see."""

    prompt: str | Sequence[Message]
    completion: str | None = None
    """The dataset's completion (for SFT and for dataset rows at share 1−λ)."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Further columns (``reference``, ...), handed to rewards by name."""
    key: int = 0
    """Position in the task's stream: identifies the example across resumes."""


@dataclass(frozen=True)
class Head:
    """An output projection: ``logits = cap(scale · (h Wᵀ + b))`` with ``cap(z) = soft_cap · tanh(z / soft_cap)``."""

    weight: Tensor
    """[V, H]"""
    bias: Tensor | None = None
    """[V]"""
    scale: float = 1.0
    soft_cap: float | None = None
    packed: Tensor | None = None
    """The weight in a layout of oneDNN's own, for products without gradient; None: there is none."""


@dataclass(frozen=True)
class Rollouts:
    """Completions and how they came to be. Prompts are left-padded, completions right-padded, mask 1 through the first EOS."""

    examples: tuple[Example, ...]
    """length B"""
    prompt_ids: Tensor
    """[B, P] int64"""
    prompt_mask: Tensor
    """[B, P] bool"""
    completion_ids: Tensor
    """[B, C] int64"""
    completion_mask: Tensor
    """[B, C] bool"""
    logprobs: Tensor
    """[B, C] fp32: log-probability of each token under the untruncated policy at temperature 1; 0 where the mask is 0."""
    sampler_logprobs: Tensor
    """[B, C] fp32: log-probability under the distribution really sampled from (temperature, top-k, top-p)."""
    on_policy: Tensor
    """[B] bool: sampled from the policy (True) or taken from the dataset (False)."""
    group: Tensor
    """[B] int64: rows of one prompt share a number."""
    version: Tensor
    """[B] int64: number of the policy's update at which the row was sampled."""
    ended: Tensor
    """[B] bool: the completion ends with an end token (True) or was cut off at the limit of new tokens (False)."""
    inserted: Tensor
    """[B, C] bool: put there by the calculator, so not the policy's choice: no term of the objective is about such a token."""
    texts: tuple[str, ...] = ()
    """length B: decoded completions, special tokens left out."""


@dataclass(frozen=True)
class HiddenScores:
    """What a teacher says of each completion token, whole: hidden states from which its distribution is formed by ``head``."""

    hidden: Tensor
    """[B, C, H]"""
    head: Head


@dataclass(frozen=True)
class TopKScores:
    """What is left of a teacher's distribution where its logits are out of reach (a server, a file): some tokens, at temperature 1."""

    ids: Tensor
    """[B, C, K] int64: the K likeliest tokens, in any order"""
    logprobs: Tensor
    """[B, C, K] fp32: their log-probabilities"""
    token_logprobs: Tensor
    """[B, C] fp32: that of the completion's own token"""


@dataclass(frozen=True)
class MixtureScores:
    """Several teachers' whole distributions, of which Σ_m weight·q_m teaches. Weights 0 and 1 route a token to one of them."""

    parts: tuple[HiddenScores, ...]
    """length M; a teacher's hidden states are 0 where its weight is 0"""
    weights: Tensor
    """[B, C, M] fp32; sums of 1 over M at each token"""


@dataclass(frozen=True)
class MatchedHead:
    """The head of a teacher with another tokenizer, and the tokens that stand for the same text in both vocabularies."""

    head: Head
    student_ids: Tensor
    """[M] int64"""
    teacher_ids: Tensor
    """[M] int64"""


@dataclass(frozen=True)
class SpanScores:
    """What a teacher with another tokenizer says, whole. Both sides' tokens form spans of one text, with figures at their first token."""

    hidden: Tensor
    """[B, C, H]: from which the teacher predicts its next token where the span begins"""
    first_ids: Tensor
    """[B, C] int64: the teacher's first token of the span"""
    later_logprobs: Tensor
    """[B, C] fp32: Σ log q of its further tokens, at the teacher's temperature"""
    starts: Tensor
    """[B, C] bool: a span begins here"""
    realised: Tensor
    """[B, C] bool: and both sides' tokens say the same text"""
    single: Tensor
    """[B, C] bool: and it is one token on either side"""
    matched: MatchedHead


@dataclass(frozen=True)
class SpanTopKScores:
    """What is left of ``SpanScores`` if only some tokens are kept, at temperature 1."""

    ids: Tensor
    """[B, C, K] int64: the teacher's K likeliest tokens that the student has too, by the student's numbers"""
    logprobs: Tensor
    """[B, C, K] fp32: their log-probabilities; −inf where there is no further token"""
    span_logprobs: Tensor
    """[B, C] fp32: log q of the whole span; 0 where it is not ``realised``"""
    rest: Tensor
    """[B, C] fp32: the probability of everything else"""
    starts: Tensor
    """[B, C] bool, as in ``SpanScores``, like the two that follow"""
    realised: Tensor
    """[B, C] bool"""
    single: Tensor
    """[B, C] bool"""


TeacherScores = HiddenScores | TopKScores | MixtureScores | SpanScores | SpanTopKScores
"""What a teacher says of each completion token."""

Heads = Head | tuple[Head, ...] | MatchedHead
"""What stored hidden states are completed with: one teacher's head, or those of several."""


@dataclass(frozen=True)
class Gates:
    """Factors on the weights that a row has in the two terms."""

    reward: Tensor
    """[B] fp32"""
    divergence: Tensor
    """[B] fp32"""


@dataclass(frozen=True)
class Experience:
    """Rollouts with everything that rewards and teacher said of them. The unit that the buffer stores and cuts."""

    rollouts: Rollouts
    rewards: Tensor
    """[B] fp32: weighted sum of rewards; NaN where none applies (dataset rows)"""
    components: Mapping[str, Tensor]
    """name of each reward → [B] fp32, NaN where it does not apply"""
    advantages: Tensor
    """[B] fp32; 0 where there is no reward"""
    teacher: TeacherScores | None = None
    """None where no term needs the teacher"""
    reference: TeacherScores | None = None
    """what the initial student predicts; None where no term needs it"""
    gates: Gates | None = None
    """factors on the rows' weights; None: all 1"""


@dataclass(frozen=True)
class TokenBatch:
    """The objective's input: N valid completion tokens of one micro-batch, padding already removed.

    ``*_weights`` hold, per token, term weight × gate × 1/(length) for sequence means, and 0 where a term does not apply. They are not
    divided by the global counts: the caller passes those apart.
    """

    student_hidden: Tensor
    """[N, H], with gradient"""
    student_head: Head
    token_ids: Tensor
    """[N] int64"""
    reward_weights: Tensor
    """[N] fp32"""
    divergence_weights: Tensor
    """[N] fp32"""
    cross_entropy_weights: Tensor
    """[N] fp32"""
    advantages: Tensor
    """[N] fp32"""
    old_logprobs: Tensor
    """[N] fp32: the policy's log-probabilities when the row was sampled (before any update on it)."""
    sampler_logprobs: Tensor
    """[N] fp32: those of the distribution really sampled from; equal to ``old_logprobs`` if the sampler is exact."""
    sequence_index: Tensor
    """[N] int64: row of the micro-batch that each token belongs to (for sequence importance ratios)."""
    teacher_hidden: Tensor | None = None
    """[N, H_teacher]; None where no term needs the teacher"""
    teacher_head: Head | None = None
    teacher_parts: tuple[tuple[Tensor, Head], ...] = ()
    """in the place of ``teacher_hidden``: several teachers' hidden states [N, H_m] and heads"""
    teacher_weights: Tensor | None = None
    """[N, M] fp32: the weight of each in the mixture of their probabilities at temperature 1"""
    teacher_top_ids: Tensor | None = None
    """[N, K] int64, in the place of ``teacher_hidden``: the teacher's likeliest tokens"""
    teacher_top_logprobs: Tensor | None = None
    """[N, K] fp32: their log-probabilities at temperature 1"""
    teacher_logprobs: Tensor | None = None
    """[N] fp32: that of the token itself"""
    teacher_spans: SpanScores | SpanTopKScores | None = None
    """in the place of all these, of a teacher with another tokenizer: [N, ...] in the place of [B, C, ...]"""
    reference_hidden: Tensor | None = None
    """[N, H_reference]: a frozen reference policy (the initial student); None where no term needs it"""
    reference_head: Head | None = None


@dataclass(frozen=True)
class GlobalCounts:
    """Denominators of the terms' means, over all ranks and micro-batches of one update (tokens, or sequences)."""

    reward: float
    divergence: float
    cross_entropy: float


@dataclass(frozen=True)
class TopChoices:
    """The likeliest tokens of a distribution, likeliest first."""

    ids: Tensor
    """[N, K] int64"""
    probabilities: Tensor
    """[N, K] fp32"""


@dataclass(frozen=True)
class ObjectiveResult:
    """What the objective returns for one micro-batch."""

    loss: Tensor
    """scalar with gradient: Σ over terms of (sum over tokens / global count)"""
    sums: Mapping[str, Tensor]
    """detached fp32 scalars, sums over this micro-batch's tokens (names in the objective's documentation)"""
    token_logprobs: Tensor
    """[N] fp32, detached: log-probability of each token under the present student"""
    token_divergence: Tensor
    """[N] fp32, detached, unweighted"""
    token_entropy: Tensor
    """[N] fp32, detached"""
    student_top: TopChoices | None = None
    """the student's likeliest tokens; None where they are not logged"""
    teacher_top: TopChoices | None = None
    """the teacher's likewise; None also where it has none to show"""
