"""The pass over chunks behind ``fused.py``. Shapes: N tokens, n tokens of a chunk, V vocabulary, H hidden, K top-k."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from gkd_rl.config.objective import ObjectiveConfig
from gkd_rl.objective.chunk import Chunk, chunk_losses, read_chunk, reward_gradient, slopes_of
from gkd_rl.objective.compiled import kernels_for
from gkd_rl.objective.kernel import Tiles, add_at
from gkd_rl.objective.projection import Projection
from gkd_rl.objective.telemetry import TeacherView, compared_tokens, interference, sums_of
from gkd_rl.objective.terms import Losses, TokenValues, losses_of, needs_whole_sequences, streams_of, with_sequences
from gkd_rl.types import GlobalCounts, Head, TokenBatch

CHUNK_TOKENS = {"cpu": 80, "cuda": 1024}
"""Tokens per chunk for large vocabularies: enough rows for the products' speed, few enough for tiles to stay small."""

SMALL_TILE_BYTES = 8 * 2**20
"""Chunks of small vocabularies grow to this size of a tile."""


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
        self.config = config
        self.token_ids = batch.token_ids
        self.student = Projection(batch.student_hidden, batch.student_head)
        self.teacher = _projection(batch.teacher_hidden, batch.teacher_head)
        uses_reference = config.surrogate.reference_kl_weight != 0 or config.divergence.extrapolation != 1.0
        self.reference = _projection(batch.reference_hidden, batch.reference_head) if uses_reference else None
        self.vocabulary = len(self.student.weight)
        for other in (self.teacher, self.reference):
            assert other is None or len(other.weight) == self.vocabulary, "heads are cut to one vocabulary"
        device = batch.token_ids.device
        self.kernels = kernels_for(config, self.student.soft_cap, self.vocabulary, device, compile)
        self.chunk = chunk_tokens or max(CHUNK_TOKENS.get(device.type, 256), SMALL_TILE_BYTES // (4 * self.vocabulary))
        self.streams = streams_of(batch, config, counts)
        stride = config.telemetry.interference_stride if self.teacher else 0
        self.compared = compared_tokens(self.streams, stride)
        self.compares = stride > 0

    def run(self, weight: bool, bias: bool, needs_gradient: bool) -> Gradients | None:
        """Goes over all chunks once; makes the gradients that are asked for."""
        if needs_whole_sequences(self.config):
            self._look_ahead()
        made = self._empty_gradients(weight, bias) if needs_gradient else None
        chunks: list[Chunk] = []
        compared: list[tuple[Tensor, Tensor]] = []
        for where in self._slices():
            tiles = self._tiles(where)
            chunk = read_chunk(tiles, self.kernels.figures(tiles, self.config), self.token_ids[where], where, self.config)
            if made is not None:
                compared.append(self._add_gradients(made, tiles, chunk))
            chunks.append(chunk)
        self._finish(chunks, compared)
        return made

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

    def _look_ahead(self) -> None:
        """Log-probabilities of all tokens, for terms that depend on whole sequences."""
        values = [
            read_chunk(tiles, self.kernels.figures(tiles, self.config), self.token_ids[where], where, self.config).values
            for where in self._slices()
            for tiles in (self._tiles(where),)
        ]
        self.streams = with_sequences(
            self.streams, *(_joined([getattr(v, name) for v in values]) for name in ("logprob", "teacher_logprob")), self.config
        )

    def _empty_gradients(self, weight: bool, bias: bool) -> Gradients:
        dtype = self.student.dtype
        return Gradients(
            torch.zeros_like(self.student.hidden, dtype=dtype),
            torch.zeros_like(self.student.weight, dtype=dtype) if weight else None,
            torch.zeros(self.vocabulary, dtype=dtype, device=self.token_ids.device) if bias else None,
        )

    def _add_gradients(self, made: Gradients, tiles: Tiles, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Adds the chunk's part of the gradients; returns those of reward and divergence at the compared tokens [M, H]."""
        student, where, cap = self.student, chunk.where, self.student.soft_cap
        losses = chunk_losses(chunk, self.streams, self.config)
        slopes, kept_slopes = slopes_of(chunk, losses.reward, losses.divergence, losses.cross_entropy)
        tokens = self.compared[(self.compared >= where.start) & (self.compared < where.stop)] - where.start
        by_reward = student.to_hidden(reward_gradient(tiles, chunk, losses, tokens, self.config, cap))
        ids = chunk.token_ids[:, None]
        at_token = tiles.student.gather(-1, ids)
        at_kept = None if chunk.kept is None else tiles.student.gather(-1, chunk.kept)
        gradient = self.kernels.gradient_(tiles, chunk.rows, slopes)
        add_at(gradient, at_token, ids, slopes.logprob[:, None], cap)
        if chunk.kept is not None and at_kept is not None and kept_slopes is not None:
            add_at(gradient, at_kept, chunk.kept, kept_slopes / self.config.divergence.temperature, cap)
        made.hidden[where] = student.to_hidden(gradient)
        if made.weight is not None:
            student.add_to_weight_(made.weight, gradient, where)
        if made.bias is not None:
            student.add_to_bias_(made.bias, gradient)
        return by_reward, made.hidden[where][tokens] - by_reward

    def _finish(self, chunks: Sequence[Chunk], compared: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Joins the chunks' values and takes losses and sums of the whole micro-batch."""
        names = [f.name for f in fields(TokenValues)]
        self.values = TokenValues(**{name: _joined([getattr(c.values, name) for c in chunks]) for name in names})
        self.losses = losses_of(self.values, self.streams, self.config)
        views = [c.view for c in chunks if c.view is not None]
        names = [f.name for f in fields(TeacherView)]
        view = TeacherView(**{name: _joined([getattr(v, name) for v in views]) for name in names}) if views else None
        self.sums = sums_of(self.losses, self.values, self.streams, view, self.config)
        if compared and self.compares:
            self.sums |= interference(*(torch.cat(parts) for parts in zip(*compared, strict=True)))


def _projection(hidden: Tensor | None, head: Head | None) -> Projection | None:
    return None if hidden is None or head is None else Projection(hidden, head)


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The chunks' parts as one tensor [N] without gradient; None where the quantity does not exist."""
    return torch.cat([part.detach() for part in parts if part is not None]) if parts[0] is not None else None
