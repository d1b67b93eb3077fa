"""Teachers made of the student: the moving average of its weights, and the one that is shown more than the student."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from experiences import examples, experience, own_logits, token_rows
from tiny_models import language_model

from gkd_rl.errors import UserError
from gkd_rl.models.tokenizers import prompt_tokens
from gkd_rl.objective.head import logits_of
from gkd_rl.rollout.sampler import dataset_rollouts
from gkd_rl.teacher.local import LocalTeacher, TopKTeacher
from gkd_rl.teacher.own import MovingAverage, PrivilegedTeacher, privileged_prompt
from gkd_rl.types import Example, HiddenScores


@pytest.mark.parametrize("kind", ["llama", "llama:untied", "t5"])
def test_the_average_moves_towards_the_student_and_what_it_says_with_it(kind: str):
    """By hand: 0.75·(0.75·a + 0.25·b) + 0.25·c, for every weight, the head's too."""
    first, second, third = (language_model(kind, seed=seed) for seed in range(3))
    model = language_model(kind, seed=0)
    teacher, average = LocalTeacher(model, 100), MovingAverage(model, 0.75)
    average.follow(second)
    average.follow(third)
    expected = language_model(kind, seed=0)
    with torch.no_grad():
        parts = zip(*(m.module.parameters() for m in (expected, first, second, third)), strict=True)
        for target, a, b, c in parts:
            target.copy_(0.5625 * a + 0.1875 * b + 0.25 * c)
    rollouts = experience(first, None, 3, 2).rollouts
    scores, wanted = teacher.score(rollouts), LocalTeacher(expected, 100).score(rollouts)
    torch.testing.assert_close(logits_of(scores.hidden, scores.head), logits_of(wanted.hidden, wanted.head), atol=1e-4, rtol=1e-4)


def test_the_average_is_restored_whole(tmp_path: Path):
    kept, restored = (MovingAverage(language_model("llama", seed=seed), 0.5) for seed in (0, 5))
    teacher = LocalTeacher(restored.model, 100)
    kept.follow(language_model("llama", seed=1))
    torch.save(kept.state_dict(), tmp_path / "teachers.pt")
    restored.load_state_dict(torch.load(tmp_path / "teachers.pt", weights_only=True))
    rollouts = experience(language_model("llama"), None, 2, 2).rollouts
    ours, theirs = teacher.score(rollouts), LocalTeacher(kept.model, 100).score(rollouts)
    assert torch.equal(ours.hidden, theirs.hidden) and torch.equal(ours.head.weight, theirs.head.weight)


def test_an_average_of_a_bfloat16_student_does_not_lose_small_steps():
    student = language_model("llama", seed=1)
    student.module.to(torch.bfloat16)  # pyright: ignore
    average = MovingAverage(language_model("llama", seed=0), 0.9999)
    before = [parameter.clone() for parameter in average.model.module.parameters()]
    average.follow(student)
    for old, new, theirs in zip(before, average.model.module.parameters(), student.module.parameters(), strict=True):
        torch.testing.assert_close(new - old, 1e-4 * (theirs.float() - old), atol=1e-7, rtol=1e-2)


TEMPLATE = "a {completion} b {hint} {prompt}"


def with_hints(count: int) -> list[Example]:
    return [replace(example, columns={"hint": "c " * (number + 1)}) for number, example in enumerate(examples(count))]


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_the_privileged_teacher_predicts_the_same_tokens_behind_its_own_prompt(kind: str):
    student, model = language_model(kind), language_model(kind, seed=1)
    rollouts = dataset_rollouts(student, with_hints(4), 8, 0)
    teacher = PrivilegedTeacher(LocalTeacher(model, 100), TEMPLATE, student.tokenizer, 256)
    scores = teacher.score(rollouts)
    assert isinstance(scores, HiddenScores)
    logprobs = logits_of(scores.hidden, scores.head).log_softmax(-1)
    for row, (example, (prompt, completion)) in enumerate(zip(rollouts.examples, token_rows(rollouts), strict=True)):
        shown = prompt_tokens(student.tokenizer, f"a {example.completion} b {example.columns['hint']} {example.prompt}")
        assert len(shown) > len(prompt)
        with torch.no_grad():
            own = own_logits(model, shown, completion).log_softmax(-1)
        torch.testing.assert_close(logprobs[row, : len(completion)], own, atol=2e-5, rtol=0)
    assert teacher.head is not None
    assert PrivilegedTeacher(TopKTeacher(LocalTeacher(model, 100), 2), TEMPLATE, student.tokenizer, None).head is None


def test_of_a_chat_the_last_message_is_put_into_the_template():
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "1+1?"}]
    shown = privileged_prompt(Example(chat, columns={"reference": "2 {prompt}"}), "{prompt} (The answer is {reference}.) {}")
    assert shown == [chat[0], {"role": "user", "content": "1+1? (The answer is 2 {prompt}.) {}"}]
    assert chat[1]["content"] == "1+1?"


@pytest.mark.parametrize(
    ("example", "said"),
    [
        (Example("p", columns={"answer": 3}, key=5), r"names \{reference\}, which example 5 does not have; it has answer, prompt"),
        (Example("p", columns={"reference": None}, key=6), r"which example 6 does not have; it has prompt"),
    ],
)
def test_what_the_template_names_has_to_be_there(example: Example, said: str):
    with pytest.raises(UserError, match=said):
        privileged_prompt(example, "{prompt} {reference}")


def test_a_prompt_too_long_for_the_teacher_is_named():
    student = language_model("llama")
    rollouts = dataset_rollouts(student, with_hints(4), 8, 0)
    with pytest.raises(UserError, match=r"example \d has \d+ tokens with what the teacher is shown, but it reads at most 8"):
        PrivilegedTeacher(LocalTeacher(student, 100), TEMPLATE, student.tokenizer, 8).score(rollouts)
