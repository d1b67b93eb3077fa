"""The pass over chunks behind ``fused.py``. Shapes: N tokens, n tokens of a chunk, V vocabulary, H hidden, K top-k."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.objective.chunk import Chunk, chunk_losses, read_chunk, reward_gradient, slopes_of
from gkd_rl.objective.compiled import kernels_for
from gkd_rl.objective.kernel import Tiles, add_at
from gkd_rl.objective.projection import Mixture, Projection
from gkd_rl.objective.span_chunks import SpanChunks, on_kept_tokens
from gkd_rl.objective.telemetry import TeacherView, compared_tokens, interference, sums_of
from gkd_rl.objective.terms import Losses, TokenValues, losses_of, needs_whole_sequences, streams_of, with_sequences
from gkd_rl.objective.top_k import given_top_k
from gkd_rl.types import GlobalCounts, Head, TokenBatch

CHUNK_TOKENS = {"cpu": 80, "cuda": 1024}
"""Tokens per chunk for large vocabularies: enough rows for the products' speed, few enough for tiles to stay small."""

SMALL_TILE_BYTES = 8 * 2**20
"""Chunks of small vocabularies grow to this size of a tile."""

SPAN_TILES = 2
"""A teacher with another tokenizer takes so many times the tiles of one with the same."""


def most_chunk_tokens(vocabulary: int, device: str) -> int:
    """Tokens per chunk by default; ``device``: its type."""
    return max(CHUNK_TOKENS.get(device, 256), SMALL_TILE_BYTES // (4 * vocabulary))


@dataclass
class Gradients:
    """Gradients of the loss in the student's hidden states and head, fp32."""

    hidden: Tensor
    weight: Tensor | None
    bias: Tensor | None


class Sweep:
    """One micro-batch on its way through the chunks; afterwards holds per-token values, losses and sums."""

    values: TokenValues
    losses: Losses
    sums: dict[str, Tensor]

    def __init__(
        self, batch: TokenBatch, config: ObjectiveConfig, counts: GlobalCounts, chunk_tokens: int | None, compile: bool | None
    ) -> None:
        self.token_ids = batch.token_ids
        self.student = Projection(batch.student_hidden, batch.student_head)
        self.spans = None
        if batch.teacher_spans is not None:
            self.spans = SpanChunks(batch.teacher_spans, batch.token_ids, self.student, config.divergence)
            config = on_kept_tokens(config)
        self.config = config
        self.teacher = _teacher(batch)
        self.given = self.spans or given_top_k(batch, config.divergence)
        uses_reference = config.surrogate.reference_kl_weight != 0 or config.divergence.extrapolation != 1.0
        self.reference = _projection(batch.reference_hidden, batch.reference_head) if uses_reference else None
        self.vocabulary = len(self.student.weight)
        for other in (self.teacher, self.reference):
            assert other is None or other.vocabulary == self.vocabulary, "heads are cut to one vocabulary"
        device = batch.token_ids.device
        self.kernels = kernels_for(config, self.student.soft_cap, self.vocabulary, device, compile)
        most = most_chunk_tokens(self.vocabulary, device.type)
        self.chunk = chunk_tokens or (most if self.spans is None else max(1, most // SPAN_TILES))
        self.streams = streams_of(batch, config, counts)
        stride = config.telemetry.interference_stride if self.teacher or self.given is not None else 0
        self.compared = compared_tokens(self.streams, stride).cpu()
        self.compares = stride > 0

    def run(self, weight: bool, bias: bool, needs_gradient: bool) -> Gradients | None:
        """Goes over all chunks once; makes the gradients that are asked for."""
        if needs_whole_sequences(self.config):
            self._look_ahead()
        made = self._empty_gradients(weight, bias) if needs_gradient else None
        values, views = _Whole[TokenValues](len(self.token_ids)), _Whole[TeacherView](len(self.token_ids))
        compared = [self._visit(where, made, values, views) for where in self._slices()]
        assert values.record is not None, "there is a chunk, if an empty one"
        self.values = values.record
        self.losses = losses_of(self.values, self.streams, self.config)
        self.sums = sums_of(self.losses, self.values, self.streams, views.record, self.config)
        if made is not None and self.compares:
            self.sums |= interference(*(torch.cat(parts) for parts in zip(*compared, strict=True)))
        return made

    def _visit(
        self, where: slice, made: Gradients | None, values: _Whole[TokenValues], views: _Whole[TeacherView]
    ) -> tuple[Tensor, Tensor]:
        """Records a chunk's figures and adds its gradients; returns those of reward and divergence at the compared tokens [M, H]."""
        tiles = self._tiles(where)
        chunk = self._read(tiles, where)
        values.put(chunk.values, where)
        if chunk.view is not None:
            views.put(chunk.view, where)
        nothing = self.student.hidden.new_empty(0, self.student.hidden.shape[1], dtype=self.student.dtype)
        if made is None:
            return nothing, nothing
        losses, tokens = chunk_losses(chunk, self.streams, self.config), self._compared_in(where)
        by_reward = self._reward_gradient(tiles, chunk, losses, tokens) if len(tokens) else nothing
        gradient = self._logit_gradient(tiles, chunk, losses)
        # The teacher's tile makes room for what the products below need.
        del tiles
        self._add_gradients(made, gradient, where)
        return by_reward, made.hidden[where][tokens] - by_reward

    def _compared_in(self, where: slice) -> Tensor:
        """Which of a chunk's tokens are compared [M]."""
        inside = self.compared[(self.compared >= where.start) & (self.compared < where.stop)] - where.start
        return inside.to(self.token_ids.device)

    def _slices(self) -> Iterator[slice]:
        """Chunks of tokens; one empty chunk if there are no tokens."""
        count = len(self.token_ids)
        for start in range(0, max(count, 1), self.chunk):
            yield slice(start, min(start + self.chunk, count))

    def _tiles(self, where: slice) -> Tiles:
        return Tiles(
            self.student.logits(where),
            None if self.teacher is None else self.teacher.logits(where),
            None if self.reference is None else self.reference.logits(where),
        )

    def _read(self, tiles: Tiles, where: slice) -> Chunk:
        """The chunk's per-token values."""
        given = None if self.given is None else self.given.rows(where)
        return read_chunk(tiles, self.kernels.figures(tiles, self.config), self.token_ids[where], where, given, self.config)

    def _look_ahead(self) -> None:
        """Log-probabilities of all tokens, for terms that depend on whole sequences."""
        values = _Whole[TokenValues](len(self.token_ids))
        teacher_matters = self.config.surrogate.teacher_in_ratio > 0 or self.config.divergence.use != "loss"
        for where in self._slices():
            tiles = self._tiles(where) if teacher_matters else Tiles(self.student.logits(where), None, None)
            values.put(self._read(tiles, where).values, where)
        assert values.record is not None, "there is a chunk, if an empty one"
        self.streams = with_sequences(self.streams, values.record.logprob, values.record.teacher_logprob, self.config)

    def _empty_gradients(self, weight: bool, bias: bool) -> Gradients:
        dtype = self.student.dtype
        return Gradients(
            torch.zeros_like(self.student.hidden, dtype=dtype),
            torch.zeros_like(self.student.weight, dtype=dtype) if weight else None,
            torch.zeros(self.vocabulary, dtype=dtype, device=self.token_ids.device) if bias else None,
        )

    def _reward_gradient(self, tiles: Tiles, chunk: Chunk, losses: Losses, tokens: Tensor) -> Tensor:
        """Gradient of the reward's term at the hidden states of some tokens [M, H]."""
        return self.student.to_hidden(reward_gradient(tiles, chunk, losses, tokens, self.kernels.gradient_, self.student.soft_cap))

    def _logit_gradient(self, tiles: Tiles, chunk: Chunk, losses: Losses) -> Tensor:
        """Gradient of the loss in the chunk's uncapped logits [n, V], written over the student's tile."""
        cap = self.student.soft_cap
        slopes, kept_slopes = slopes_of(chunk, losses.reward, losses.divergence, losses.cross_entropy)
        if self.spans is not None and kept_slopes is not None:
            kept_slopes = self.spans.carry(kept_slopes, chunk.where)
            slopes = slopes._replace(divergence=kept_slopes.sum(-1))
        ids = chunk.token_ids[:, None]
        at_token = tiles.student.gather(-1, ids)
        at_kept = None if chunk.kept is None else tiles.student.gather(-1, chunk.kept)
        gradient = self.kernels.gradient_(tiles, chunk.rows, slopes)
        add_at(gradient, at_token, ids, slopes.logprob[:, None], cap)
        if chunk.kept is not None and at_kept is not None and kept_slopes is not None:
            add_at(gradient, at_kept, chunk.kept, kept_slopes / self.config.divergence.temperature, cap)
        return gradient

    def _add_gradients(self, made: Gradients, gradient: Tensor, where: slice) -> None:
        """Adds a chunk's part to the gradients, from its gradient in the uncapped logits [n, V]."""
        made.hidden[where] = self.student.to_hidden(gradient)
        if made.weight is not None:
            self.student.add_to_weight_(made.weight, gradient, where)
        if made.bias is not None:
            self.student.add_to_bias_(made.bias, gradient)


def _teacher(batch: TokenBatch) -> Projection | Mixture | None:
    if batch.teacher_weights is not None:
        return Mixture([Projection(hidden, head) for hidden, head in batch.teacher_parts], batch.teacher_weights)
    return _projection(batch.teacher_hidden, batch.teacher_head)


def _projection(hidden: Tensor | None, head: Head | None) -> Projection | None:
    return None if hidden is None or head is None else Projection(hidden, head)


Record = TypeVar("Record", TokenValues, TeacherView)


class _Whole(Generic[Record]):
    """Chunks' records as one [N], without gradient; what does not exist stays None.

    Written into place: figures kept chunk by chunk would lie between the tiles and keep their memory from being used again.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.record: Record | None = None

    def put(self, part: Record, where: slice) -> None:
        columns: dict[str, Any] = {f.name: getattr(part, f.name) for f in fields(part)}
        if self.record is None:
            empty: dict[str, Any] = {
                name: None if column is None else column.detach().new_empty(self.tokens) for name, column in columns.items()
            }
            self.record = cast(Record, type(part)(**empty))
        for name, column in columns.items():
            if column is not None:
                getattr(self.record, name)[where] = column.detach()
