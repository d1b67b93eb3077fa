"""Caches with room hold what Transformers' growing ones hold."""

from __future__ import annotations

import torch
from transformers.cache_utils import DynamicLayer

from gkd_rl.models.cache import RoomyLayer


def _states(seed: int, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, rows, 2, length, 3, generator=generator)
    return keys, values


def _assert_same(ours: RoomyLayer, theirs: DynamicLayer) -> None:
    assert ours.keys is not None and theirs.keys is not None
    assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)
    assert ours.get_seq_length() == theirs.get_seq_length()


def test_writing_repeating_and_taking_rows_out_in_any_order_changes_nothing():
    ours, theirs = RoomyLayer(room=4), DynamicLayer()
    for layer in (ours, theirs):
        layer.update(*_states(0, 3, 5))
        layer.batch_repeat_interleave(2)
    _assert_same(ours, theirs)
    kept = torch.tensor([0, 2, 3, 5])
    for step in range(1, 5):
        rows = 6 if step < 3 else 4
        found, expected = (layer.update(*_states(step, rows, 1)) for layer in (ours, theirs))
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
        if step == 2:
            for layer in (ours, theirs):
                layer.batch_select_indices(kept)
        _assert_same(ours, theirs)


def test_rows_can_be_taken_out_before_the_first_token():
    ours, theirs = RoomyLayer(room=2), DynamicLayer()
    for layer in (ours, theirs):
        layer.update(*_states(0, 4, 3))
        layer.batch_select_indices(torch.tensor([1, 3]))
        layer.update(*_states(1, 2, 1))
    _assert_same(ours, theirs)


def test_room_is_taken_once_and_written_into():
    layer = RoomyLayer(room=3)
    layer.update(*_states(0, 2, 4))
    layer.update(*_states(1, 2, 1))
    assert layer.keys is not None
    place = layer.keys.data_ptr()
    for step in (2, 3):
        layer.update(*_states(step, 2, 1))
        assert layer.keys.data_ptr() == place
    layer.update(*_states(4, 2, 1))  # more than was asked for: it grows instead of writing beyond its end
    assert layer.get_seq_length() == 8


def test_rows_can_be_repeated_after_tokens_were_written():
    ours, theirs = RoomyLayer(room=4), DynamicLayer()
    for layer in (ours, theirs):
        layer.update(*_states(0, 2, 3))
        layer.update(*_states(1, 2, 1))
        layer.batch_repeat_interleave(3)
        layer.update(*_states(2, 6, 1))
    _assert_same(ours, theirs)
