"""A teacher in the process that has another tokenizer than the student.

It reads the prompt and the student's answer as text, in tokens of its own. Both sides' tokens are aligned into spans
(``spans.py``), on which the objective compares the two (``objective/spans.py``).

Shapes: B sequences, C and L completion positions of student and teacher, H hidden, K kept tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gkd_rl.errors import UserError
from gkd_rl.models.language_model import encode_prompts
from gkd_rl.models.pieces import Pieces, matched_tokens
from gkd_rl.models.tokenizers import prompt_tokens
from gkd_rl.objective.head import in_fp32, logits_of
from gkd_rl.objective.numerics import log_probs
from gkd_rl.objective.spans import outcomes_of
from gkd_rl.rollout.rows import score_tensors
from gkd_rl.teacher.local import SCORED_TOKENS, LocalTeacher
from gkd_rl.teacher.own import privileged_prompt
from gkd_rl.teacher.spans import Piece, Span, common_spans, text_of, without_leading_spaces
from gkd_rl.types import Example, MatchedHead, Rollouts, SpanScores, SpanTopKScores


@dataclass(frozen=True)
class Retold:
    """A row in the teacher's tokens."""

    prompt: list[int]
    completion: list[int]
    """closed by the teacher's EOS, also where the student's answer is cut off: the state behind its last token is that which predicts it"""
    spans: list[Span]


class Reteller:
    """From the student's rows to the teacher's. ``template``: of the prompt that the teacher sees (``teacher.privileged``)."""

    def __init__(self, student: Pieces, teacher: Pieces, template: str | None = None) -> None:
        self.student, self.teacher, self.template = student, teacher, template

    def row(self, example: Example, ids: Sequence[int], ended: bool) -> Retold:
        """The row of an example and its completion ``ids``; its closing special token, if it ``ended`` by one, is the teacher's EOS."""
        prompt = example.prompt if self.template is None else privileged_prompt(example, self.template)
        closed = ended and len(ids) > 0 and ids[-1] in self.student.special
        body = list(ids[:-1] if closed else ids)
        # What a chat's template ends with says nothing of the answer's first space: each tokenizer begins a text as it is used to.
        alone = not isinstance(prompt, str)
        said, theirs, ours = self._same_text(self.student.of(body), self.student.text(body, alone), alone)
        spans = common_spans(ours, theirs)
        if closed:
            spans.append(Span((len(body), len(body) + 1), (len(said), len(said) + 1), True))
        end = self.teacher.tokenizer.eos_token_id
        assert isinstance(end, int)
        return Retold(prompt_tokens(self.teacher.tokenizer, prompt, "teacher"), [*said, end], spans)

    def _same_text(self, ours: list[Piece], text: str, alone: bool) -> tuple[list[int], Sequence[Piece], Sequence[Piece]]:
        """The teacher's tokens of the student's text, and both sides' pieces: of all ways the first that gives the very text.

        Next best is one that differs in leading spaces, which some tokenizers add and others drop. If neither is to be had (a text that
        the teacher cannot write), the difference is left to the alignment.
        """
        ways = [(ids, self.teacher.of(ids)) for ids in self._ways(text, alone)]
        for ids, theirs in ways:
            if text_of(theirs) == text_of(ours):
                return ids, theirs, ours
        for ids, theirs in ways:
            if text_of(theirs).lstrip(b" ") == text_of(ours).lstrip(b" "):
                return ids, without_leading_spaces(theirs), without_leading_spaces(ours)
        return *ways[0], ours

    def _ways(self, text: str, alone: bool) -> Iterator[list[int]]:
        """Tokenizations of a text, also as it is behind other text: there no space is put before it."""
        encode = lambda part: list(self.teacher.tokenizer(part, add_special_tokens=False)["input_ids"])
        yield encode(text)
        line, behind = encode("\n"), encode("\n" + text)
        if not alone and behind[: len(line)] == line:
            yield behind[len(line) :]


class SpanTeacher:
    """A Hugging Face model with a tokenizer of its own.

    Args:
        whole: the model.
        reteller: from the student's tokens to its own.
        k: shared tokens whose log-probabilities are kept; None: hidden states, from which all of them come.
        temperature: at which its probabilities are taken.
        window: the longest sequence that it reads; None: any.
    """

    def __init__(self, whole: LocalTeacher, reteller: Reteller, k: int | None, temperature: float, window: int | None) -> None:
        self.whole, self.reteller, self.k, self.temperature, self.window = whole, reteller, k, temperature, window
        pairs = torch.tensor(matched_tokens(reteller.student, reteller.teacher), device=whole.model.device)
        self.matched = MatchedHead(whole.head, pairs[:, 0].contiguous(), pairs[:, 1].contiguous())

    @property
    def head(self) -> MatchedHead | None:
        """What stored hidden states are completed with."""
        return self.matched if self.k is None else None

    @torch.no_grad()
    def score(self, rollouts: Rollouts) -> SpanScores | SpanTopKScores:
        """What the teacher predicts where spans begin. Raises ``UserError`` for a row that is too long for it in its own tokens."""
        counts, ended = rollouts.completion_mask.sum(1).tolist(), rollouts.ended.tolist()
        ids = [row[:count] for row, count in zip(rollouts.completion_ids.tolist(), counts, strict=True)]
        rows = [self.reteller.row(*each) for each in zip(rollouts.examples, ids, ended, strict=True)]
        for example, row in zip(rollouts.examples, rows, strict=True):
            self._require_room(example, row)
        whole = self._whole(rollouts, rows)
        return whole if self.k is None else self._kept(whole, rollouts.completion_ids, self.k)

    def _require_room(self, example: Example, row: Retold) -> None:
        both = len(row.prompt), len(row.completion)
        needed = max(both) if self.whole.model.module.config.is_encoder_decoder else sum(both)
        if self.window is not None and needed > self.window:
            raise UserError(
                f"teacher.other_tokenizer: example {example.key} has {needed} of the teacher's tokens, but it reads at most {self.window}; "
                "lower task.max_prompt_tokens or rollout.max_new_tokens"
            )

    def _whole(self, rollouts: Rollouts, rows: Sequence[Retold]) -> SpanScores:
        shape, device = rollouts.completion_ids.shape, rollouts.completion_ids.device
        completion_ids, completion_mask = _right_padded([row.completion for row in rows], device)
        prompt_ids, prompt_mask = encode_prompts(self.whole.model, [row.prompt for row in rows])
        retold = replace(
            rollouts, prompt_ids=prompt_ids, prompt_mask=prompt_mask, completion_ids=completion_ids, completion_mask=completion_mask
        )
        hidden = self.whole.score(retold).hidden
        at = [(number, *span.student, *span.teacher, span.realised) for number, row in enumerate(rows) for span in row.spans]
        row, start, end, first, last, realised = torch.tensor(at, dtype=torch.long, device=device).reshape(-1, 6).unbind(1)
        scores = SpanScores(
            hidden=hidden.new_zeros(*shape, hidden.shape[-1]),
            first_ids=torch.zeros(shape, dtype=torch.long, device=device),
            later_logprobs=torch.zeros(shape, device=device),
            starts=torch.zeros(shape, dtype=torch.bool, device=device),
            realised=torch.zeros(shape, dtype=torch.bool, device=device),
            single=torch.zeros(shape, dtype=torch.bool, device=device),
            matched=self.matched,
        )
        scores.hidden[row, start] = hidden[row, first]
        scores.first_ids[row, start] = completion_ids[row, first]
        scores.starts[row, start] = True
        scores.realised[row, start] = realised.bool()
        scores.single[row, start] = realised.bool() & (end - start == 1) & (last - first == 1)
        self._add_later(scores.later_logprobs, hidden, completion_ids, rows)
        return scores

    def _add_later(self, later_logprobs: Tensor, hidden: Tensor, completion_ids: Tensor, rows: Sequence[Retold]) -> None:
        """Adds, at the student's token where a span begins, the log-probabilities of the teacher's tokens behind its first."""
        head, width = in_fp32(self.whole.head), later_logprobs.shape[1]
        at = [
            (number, place, number * width + span.student[0])
            for number, row in enumerate(rows)
            for span in row.spans
            for place in range(span.teacher[0] + 1, span.teacher[1] if span.realised else 0)
        ]
        for some in torch.tensor(at, dtype=torch.long, device=hidden.device).reshape(-1, 3).split(SCORED_TOKENS):
            row, place, target = some.unbind(1)
            lq = log_probs(logits_of(hidden[row, place], head), self.temperature)
            own = lq.gather(-1, completion_ids[row, place, None]).squeeze(-1)
            later_logprobs.view(-1).index_add_(0, target, own)

    def _kept(self, scores: SpanScores, token_ids: Tensor, k: int) -> SpanTopKScores:
        head, mask = in_fp32(self.whole.head), scores.starts
        places, kept = mask.nonzero(), []
        for some in places.split(SCORED_TOKENS):
            row, column = some.unbind(1)
            part: dict[str, Any] = {name: value[row, column] for name, value in score_tensors(scores).items()}
            kept.append(outcomes_of(logits_of(part["hidden"], head), replace(scores, **part), token_ids[row, column], k, self.temperature))
        size = min(k, len(self.matched.student_ids))
        ids = torch.zeros(*mask.shape, size, dtype=torch.long, device=mask.device)
        whole = SpanTopKScores(
            ids=ids,
            logprobs=torch.zeros(ids.shape, device=mask.device),
            span_logprobs=torch.zeros(mask.shape, device=mask.device),
            rest=torch.zeros(mask.shape, device=mask.device),
            starts=mask,
            realised=scores.realised,
            single=scores.single,
        )
        for name in ("ids", "logprobs", "span_logprobs", "rest"):
            if kept:
                getattr(whole, name)[mask] = torch.cat([getattr(part, name) for part in kept])
        return whole


def _right_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, L] of rows of tokens."""
    width = max((len(row) for row in rows), default=1)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long).reshape(len(rows), width)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    return ids.to(device), (torch.arange(width) < lengths[:, None]).to(device)
