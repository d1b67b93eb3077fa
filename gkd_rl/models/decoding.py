"""What incremental decoding carries from token to token. Shapes: B sequences, P prompt positions, H hidden."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from transformers.cache_utils import Cache


@dataclass
class DecodingState:
    """What incremental decoding carries from token to token."""

    cache: Cache
    mask: Tensor
    """[B, P + room] (causal) or [B, P] (encoder-decoder): which positions may be attended to."""
    position: Tensor
    """[B, 1]: position of the token that comes next."""
    length: int = 0
    """positions read so far, padding included (causal)"""
    padded: bool = True
    """whether the mask leaves anything out"""
    capacity: int = 0
    """positions that the cache has memory for, where its layers are fixed; 0: they grow (causal)"""
    encoded: Tensor | None = None
    """[B, P, H]: the encoder's output; None for causal models."""

    def repeat(self, times: int) -> None:
        """Repeat every row ``times`` over: one prefill serves a whole group."""
        self.cache.batch_repeat_interleave(times)  # pyright: ignore[reportAttributeAccessIssue]
        self._each(lambda t: t.repeat_interleave(times, dim=0))

    def select(self, rows: Tensor) -> None:
        """Keep only ``rows``: finished ones cost nothing any more."""
        self.cache.batch_select_indices(rows)  # pyright: ignore[reportAttributeAccessIssue]
        self._each(lambda t: t[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        self.mask, self.position = change(self.mask), change(self.position)
        self.encoded = None if self.encoded is None else change(self.encoded)
