"""A teacher with another tokenizer: what it keeps of rows is what it predicts of their text; with the same tokenizer nothing changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from experiences import examples, gradient, own_logits, rows_of
from tiny_models import build, language_model, letters, save, word_tokenizer
from tokenizer_zoo import LINES, tokenizer

from gkd_rl.config.objective import DivergenceConfig, ObjectiveConfig
from gkd_rl.config.run import Config, TeacherConfig
from gkd_rl.errors import UserError
from gkd_rl.models.language_model import LanguageModel, wrap
from gkd_rl.models.pieces import pieces_of
from gkd_rl.objective.head import logits_of
from gkd_rl.objective.schedule import TermWeights
from gkd_rl.processes import Processes
from gkd_rl.rollout.buffer import SamplingBuffer
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.rows import join, score_tensors
from gkd_rl.rollout.sampler import InProcessSampler, dataset_rollouts
from gkd_rl.teacher.build import build_teaching, check_teaching
from gkd_rl.teacher.local import LocalTeacher
from gkd_rl.teacher.other_tokenizer import Reteller, SpanTeacher
from gkd_rl.types import Example, Experience, Rollouts, SpanScores, SpanTopKScores

ALONE = TermWeights(0.0, 1.0, 0.0)


def zoo_model(family: str, kind: str = "llama", seed: int = 0) -> LanguageModel:
    one = tokenizer(family)
    return wrap(build(kind, one, seed, vocab_size=max(one.get_vocab().values()) + 1), one)


def span_teacher(
    student: LanguageModel, model: LanguageModel, k: int | None = None, temperature: float = 1.0, window: int | None = None
) -> SpanTeacher:
    reteller = Reteller(pieces_of(student.tokenizer, "here"), pieces_of(model.tokenizer, "there"))
    return SpanTeacher(LocalTeacher(model, 100), reteller, k, temperature, window)


def some_rows(student: LanguageModel, sampled: int = 3) -> Rollouts:
    """Sampled rows, most of them cut off and none of them sensible, and the lines of the zoo as the dataset's."""
    rows = [Example(f"Say {number}:", line, key=number) for number, line in enumerate(LINES)]
    drawn = InProcessSampler(student, 64).sample(rows[:sampled], 2, SamplingParams(9), seed=3)
    return join([drawn, dataset_rollouts(student, rows, 200, 0)], 0)


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("families", [("bytes", "sentencepiece"), ("more bytes", "bytes"), ("sentencepiece", "unigram")], ids=" ".join)
def test_scores_are_the_teachers_predictions_where_spans_begin(families: tuple[str, str], kind: str):
    student, model = zoo_model(families[0]), zoo_model(families[1], kind, seed=1)
    rollouts, teacher = some_rows(student), span_teacher(student, model, temperature=0.7)
    scores = teacher.score(rollouts)
    assert isinstance(scores, SpanScores)
    logits = logits_of(scores.hidden, scores.matched.head)
    unrealised = 0
    for number, example in enumerate(rollouts.examples):
        ids = rollouts.completion_ids[number][rollouts.completion_mask[number]].tolist()
        row = teacher.reteller.row(example, ids, bool(rollouts.ended[number]))
        with torch.no_grad():
            own = own_logits(model, row.prompt, row.completion)
        assert scores.starts[number].nonzero()[:, 0].tolist() == [span.student[0] for span in row.spans]
        for span in row.spans:
            place, (first, last) = span.student[0], span.teacher
            torch.testing.assert_close(logits[number, place], own[first], atol=3e-5, rtol=0)
            assert scores.realised[number, place] == span.realised
            assert scores.single[number, place] == (span.realised and span.student[1] - place == 1 == last - first)
            unrealised += not span.realised
            assert span.realised or not scores.later_logprobs[number, place]
            if span.realised:
                lq = (own / 0.7).log_softmax(-1)
                later = sum(float(lq[at, row.completion[at]]) for at in range(first + 1, last))
                assert scores.later_logprobs[number, place].item() == pytest.approx(later, abs=2e-4)
                assert scores.first_ids[number, place] == row.completion[first]
    inside = ~scores.starts
    assert not scores.realised[inside].any() and not scores.later_logprobs[inside].any() and not scores.hidden[inside].any()
    assert scores.single.any() and scores.later_logprobs.min() < 0 and unrealised, "rows that show all of it"


def test_a_teacher_without_rows_says_nothing():
    student, model = zoo_model("bytes"), zoo_model("sentencepiece")
    rollouts = InProcessSampler(student, 4).sample([], 2, SamplingParams(3), 0)
    for k in (None, 4):
        assert not span_teacher(student, model, k).score(rollouts).starts.any()


@pytest.mark.parametrize("k", [3, 1000])
def test_kept_tokens_give_the_gradient_of_the_whole_teacher(k: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gkd_rl.teacher.other_tokenizer.SCORED_TOKENS", 7)
    student, model = zoo_model("bytes"), zoo_model("sentencepiece", seed=1)
    config = ObjectiveConfig(divergence=DivergenceConfig(kind="reverse_kl", estimator="top_k", top_k=k, mean="sequence"))
    rows = some_rows(student)
    whole, kept = (with_scores(rows, span_teacher(student, model, each)) for each in (None, k))
    assert isinstance(kept.teacher, SpanTopKScores)
    expected = gradient(student, [whole], config, ALONE)
    torch.testing.assert_close(gradient(student, [kept], config, ALONE), expected, rtol=1e-4, atol=1e-6)
    cut = rows_of(kept, [3, 0, 9], [1, 2, 8, 11, 10], [4, 5, 6, 7])
    torch.testing.assert_close(gradient(student, cut, config, ALONE), expected, rtol=1e-4, atol=1e-6)


def with_scores(rollouts: Rollouts, teacher) -> Experience:
    nothing = torch.full((len(rollouts.examples),), torch.nan)
    return Experience(rollouts, nothing, {}, torch.zeros(len(nothing)), teacher.score(rollouts))


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("divergence", ["gjsd", "forward_kl", "reverse_kl"])
def test_with_the_students_own_tokenizer_the_gradient_is_the_ordinary_one(kind: str, divergence: str):
    student, model = language_model(kind), language_model("llama:untied", seed=1)
    config = ObjectiveConfig(divergence=DivergenceConfig(kind=divergence, temperature=1.3, teacher_temperature=0.8))  # pyright: ignore
    rows = dataset_rollouts(student, examples(7), 8, 0)
    ordinary, other = with_scores(rows, LocalTeacher(model, 100)), with_scores(rows, span_teacher(student, model, temperature=0.8))
    assert other.teacher.single[rows.completion_mask].all()  # pyright: ignore
    expected = gradient(student, [ordinary], config, ALONE)
    torch.testing.assert_close(gradient(student, [other], config, ALONE), expected, rtol=1e-5, atol=1e-6)


def test_a_teacher_of_other_words_for_the_same_tokens_is_not_the_same():
    """The letters are numbered backwards: read by number they would say other things, read by text they are the ordinary ones."""
    student, same = language_model("llama:untied"), language_model("llama:untied", seed=1)
    order = torch.tensor([0, 1, *range(11, 1, -1)])
    turned = build("llama:untied", letters(12, names="jihgfedcba"), 1)
    turned.load_state_dict(same.module.state_dict())
    for weight in (turned.get_input_embeddings().weight, turned.get_output_embeddings().weight):  # pyright: ignore
        weight.data = weight.data[order]
    other = wrap(turned, letters(12, names="jihgfedcba"))
    rows = dataset_rollouts(student, examples(5), 8, 0)
    config = ObjectiveConfig()
    expected = gradient(student, [with_scores(rows, LocalTeacher(same, 100))], config, ALONE)
    torch.testing.assert_close(
        gradient(student, [with_scores(rows, span_teacher(student, other))], config, ALONE), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("k", [None, 5])
def test_scores_in_the_buffer_come_back(k: int | None, tmp_path: Path):
    student, model = zoo_model("bytes"), zoo_model("more bytes", seed=1)
    teacher = span_teacher(student, model, k)
    buffer, restored = SamplingBuffer(0, 0), SamplingBuffer(0, 0)
    buffer.add(with_scores(some_rows(student), teacher), 0, 2)
    torch.save(buffer.state_dict(), tmp_path / "buffer.pt")
    restored.load_state_dict(torch.load(tmp_path / "buffer.pt", weights_only=True), teacher.head)
    config = ObjectiveConfig(divergence=DivergenceConfig(estimator="top_k" if k else "full", top_k=4))
    ours, theirs = ([*each.updates(1, 1, 0)] for each in (buffer, restored))
    assert torch.equal(gradient(student, ours, config, ALONE), gradient(student, theirs, config, ALONE))
    tensors = (score_tensors(part.teacher) for (part,) in (ours, theirs) if part.teacher is not None)
    first, second = tensors
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_an_answer_too_long_in_the_teachers_tokens_is_named():
    student, model = zoo_model("more bytes"), zoo_model("sentencepiece")
    with pytest.raises(UserError, match=r"teacher.other_tokenizer: example \d has \d+ of the teacher's tokens, but it reads at most 20;"):
        span_teacher(student, model, window=20).score(some_rows(student))
    encoder = zoo_model("sentencepiece", "t5")
    rows = dataset_rollouts(student, [replace(examples(1)[0], prompt="a b " * 9, completion="c d " * 9)], 50, 0)
    span_teacher(student, encoder, window=30).score(rows)  # each side has the window to itself
    with pytest.raises(UserError, match="reads at most 30"):
        span_teacher(student, zoo_model("sentencepiece"), window=30).score(rows)


def test_teachers_are_built_as_configured_and_need_a_common_token(tmp_path: Path):
    student, processes = zoo_model("bytes"), Processes(1)
    stranger, wordless = (save(m.module, m.tokenizer, tmp_path / n) for m, n in ((zoo_model("words"), "a"), (language_model("llama"), "b")))
    settings = TeacherConfig(path=str(stranger), other_tokenizer=True, privileged="{prompt} {hint}", top_k=5)
    config = Config(teacher=settings, objective=ObjectiveConfig(divergence=DivergenceConfig(teacher_temperature=0.7)))
    check_teaching(config, student.tokenizer)
    teaching = build_teaching(config, processes, student.tokenizer)
    assert isinstance(teaching.teacher, SpanTeacher) and teaching.judge is teaching.teacher and teaching.model is not None
    assert (teaching.teacher.temperature, teaching.teacher.k, teaching.teacher.reteller.template) == (0.7, 5, "{prompt} {hint}")
    numbers = word_tokenizer({"<pad>": 0, "<eos>": 1, "1": 2, "2": 3})
    with pytest.raises(UserError, match=r"teacher.other_tokenizer: no token has the same text"):
        check_teaching(replace(config, teacher=replace(settings, path=str(wordless))), numbers)
