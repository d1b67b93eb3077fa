"""Key-value caches with room: memory for every token to come is taken once, and each decoding step writes into it.

Transformers' ``DynamicLayer`` copies the whole cache at every token. Shapes: B sequences, T positions so far, R room.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache, StaticLayer


class RoomyLayer(DynamicLayer):
    """A ``DynamicLayer`` whose tensors [B, heads, T, width] are views of larger ones [B, heads, T + R, width].

    The first write (the prompt's) is kept as it is; memory for ``room`` more positions is taken with the second, so that a group can be
    repeated in between without copying empty room.
    """

    def __init__(self, room: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.room = room
        self.stores: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return self.keys, self.values
        assert self.keys is not None and self.values is not None
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        if self.stores is None or end > self.stores[0].shape[-2]:
            self.stores = _with_room(self.keys, self.room), _with_room(self.values, self.room)
        keys, values = self.stores
        keys[:, :, start:end], values[:, :, start:end] = key_states, value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.stores = None

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.stores is None:
            return super().batch_select_indices(indices)
        assert self.keys is not None and self.values is not None
        end, kept = self.keys.shape[-2], len(indices)
        chosen = self.keys[indices], self.values[indices]
        keys, values = self.stores = self.stores[0][:kept], self.stores[1][:kept]
        keys[:, :, :end], values[:, :, :end] = chosen
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]


CAPACITY_STEP = 64
"""Fixed layers have memory for a multiple of so many positions: each number of positions is compiled for."""


class FixedLayer(StaticLayer):
    """Keys and values [B, heads, T, width] that are handed out whole at every step, and a place to write that is a tensor: what a
    compiler can make one graph of. Positions not yet written have to be masked."""

    def __init__(self, keys: Tensor, values: Tensor, capacity: int) -> None:
        super().__init__(capacity)
        self.keys, self.values = (_zeros_behind(states, capacity) for states in (keys, values))
        self.dtype, self.device, self.batch_size, self.num_heads = keys.dtype, keys.device, *keys.shape[:2]
        self.cumulative_length = torch.tensor(keys.shape[-2], device=keys.device)
        self.is_initialized = True

    def batch_select_indices(self, indices: Tensor) -> None:
        assert self.keys is not None and self.values is not None
        self.keys, self.values, self.batch_size = self.keys[indices], self.values[indices], len(indices)


def _zeros_behind(states: Tensor, capacity: int) -> Tensor:
    batch, heads, length, width = states.shape
    store = states.new_zeros(batch, heads, capacity, width)  # a masked position still takes part, with weight 0: no NaN may stand there
    store[:, :, :length] = states
    return store


def fix(cache: Cache, room: int) -> int:
    """Make every layer a ``FixedLayer`` with ``room`` for more positions; returns T."""
    length = cache.get_seq_length()
    capacity = -(-(length + room) // CAPACITY_STEP) * CAPACITY_STEP
    cache.layers = [FixedLayer(keys, values, capacity) for keys, values in states_of(cache)]  # pyright: ignore[reportAttributeAccessIssue]
    return capacity


def states_of(cache: Cache) -> Iterator[tuple[Tensor, Tensor]]:
    """Keys and values of each layer."""
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer | StaticLayer) and layer.keys is not None and layer.values is not None
        yield layer.keys, layer.values


def _with_room(states: Tensor, room: int) -> Tensor:
    batch, heads, length, width = states.shape
    store = states.new_empty(batch, heads, length + room, width)
    store[:, :, :length] = states
    return store


def decoder_cache(config: PreTrainedConfig, room: int) -> DynamicCache:
    """A cache for a decoder-only model; layers that are not plain attention (sliding windows) stay Transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def encoder_decoder_cache(room: int) -> EncoderDecoderCache:
    """A cache for an encoder-decoder model: the decoder's own positions have room, those of the encoder never grow."""
    own = DynamicCache()
    own.layer_class_to_replicate = partial(RoomyLayer, room)  # pyright: ignore[reportAttributeAccessIssue]
    return EncoderDecoderCache(own, DynamicCache())


def has_one_mask(cache: Cache) -> bool:
    """Whether every layer attends to all positions, so that one mask serves all."""
    return all(type(layer) is RoomyLayer for layer in cache.layers)
