"""The likeliest tokens of student and teacher, as they are logged with rollouts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from token_batches import logits_batch, token_batch

from gkd_rl.objective import top_choices as module
from gkd_rl.objective.head import logits_of
from gkd_rl.objective.top_choices import top_choices
from gkd_rl.types import Head


@pytest.mark.parametrize("tile", [2**24, 20])
def test_choices_are_those_of_a_softmax_at_temperature_1(monkeypatch: pytest.MonkeyPatch, tile: int):
    monkeypatch.setattr(module, "_TILE", tile)
    batch = token_batch(tokens=7, vocabulary=9)
    assert batch.teacher_hidden is not None and batch.teacher_head is not None
    ours, theirs = top_choices(batch, 4)
    assert theirs is not None
    for made, hidden, head in ((ours, batch.student_hidden, batch.student_head), (theirs, batch.teacher_hidden, batch.teacher_head)):
        expected = logits_of(hidden, head).softmax(-1).topk(4, -1)
        torch.testing.assert_close(made.probabilities, expected.values.detach())
        assert torch.equal(made.ids, expected.indices) and not made.probabilities.requires_grad


def test_a_vocabulary_of_few_tokens_has_no_more():
    assert top_choices(token_batch(tokens=3, vocabulary=2), 5)[0].ids.shape == (3, 2)


def test_a_mixture_of_teachers_shows_the_mixture():
    logits = torch.tensor([[2.0, 0.0, -1.0]]).log_softmax(-1), torch.tensor([[-3.0, 0.0, 1.0]]).log_softmax(-1)
    head = Head(torch.eye(3))
    batch = replace(
        logits_batch(torch.zeros(1, 3), torch.tensor([0])),
        teacher_hidden=None, teacher_head=None,
        teacher_weights=torch.tensor([[0.25, 0.75]]), teacher_parts=tuple((part, head) for part in logits),
    )  # fmt: skip
    theirs = top_choices(batch, 3)[1]
    assert theirs is not None
    expected = (0.25 * logits[0].exp() + 0.75 * logits[1].exp()).topk(3, -1)
    torch.testing.assert_close(theirs.probabilities, expected.values)
    assert torch.equal(theirs.ids, expected.indices)


def test_of_a_teacher_that_gives_some_tokens_the_likeliest_of_them_are_shown():
    batch = replace(
        logits_batch(torch.zeros(1, 5), torch.tensor([0])),
        teacher_hidden=None, teacher_head=None,
        teacher_top_ids=torch.tensor([[4, 2, 3]]), teacher_top_logprobs=torch.tensor([[0.1, 0.6, 0.2]]).log(),
    )  # fmt: skip
    theirs = top_choices(batch, 2)[1]
    assert theirs is not None and theirs.ids.tolist() == [[2, 3]]
    torch.testing.assert_close(theirs.probabilities, torch.tensor([[0.6, 0.2]]))


def test_without_a_teacher_there_are_the_students_alone():
    batch = replace(token_batch(), teacher_hidden=None, teacher_head=None)
    assert top_choices(batch, 2)[1] is None
