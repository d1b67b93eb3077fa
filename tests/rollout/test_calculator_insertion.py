"""The calculator stops at ``<<expression=``, writes the result into the answer, and the model goes on from there."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from experiences import gradient, token_rows
from rollout_checks import forward_logprobs
from tokenizer_zoo import tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from writer_of_sums import WORDS, marks, writer

from gkd_rl.config.objective import CorrectionConfig, DivergenceConfig, ObjectiveConfig, SurrogateConfig
from gkd_rl.errors import UserError
from gkd_rl.learner import Learner, local_counts, row_weights
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.objective.schedule import TermWeights
from gkd_rl.rollout.calculator import Calculator, require_marks
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.rows import chosen_tokens, join
from gkd_rl.rollout.sampler import InProcessSampler, dataset_rollouts
from gkd_rl.run_log import rollout_rows
from gkd_rl.tasks.calculator import recompute
from gkd_rl.teacher.local import LocalTeacher
from gkd_rl.types import Example, Experience, GlobalCounts, Rollouts

LOSSLESS = ("bytes", "more bytes", "sentencepiece", "no prefix")


def samples(model: LanguageModel, calculator: bool = True, count: int = 8, max_rows: int = 64, **params) -> Rollouts:
    rows = [Example(" " * (1 + key % 3), key=key) for key in range(count)]
    settings = SamplingParams(**{"max_new_tokens": 24, "calculator": calculator, **params})
    return InProcessSampler(model, max_rows).sample(rows, 4, settings, seed=3)


@pytest.fixture(scope="module", params=["llama", "t5"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return writer(request.param)


def words_of(rollouts: Rollouts) -> list[list[tuple[str, bool]]]:
    """Each answer's tokens, and whether they were inserted."""
    return [
        [(WORDS[token], bool(flag)) for token, flag in zip(completion, flags, strict=False)]
        for (_, completion), flags in zip(token_rows(rollouts), rollouts.inserted, strict=True)
    ]


def test_every_sum_is_finished_with_its_result_and_nothing_else_is_touched(model: LanguageModel):
    finished = begun = left = 0
    for row in words_of(samples(model)):
        text, due = "", list[str]()
        for word, inserted in row:
            assert inserted == bool(due) and word == (due.pop(0) if due else word)
            text += word
            asked = re.search(r"<<(\d+(?:\+\d+)*)=(1?)\Z", text)
            if asked and not inserted and "=" in word:
                result = str(sum(map(int, asked[1].split("+"))))
                finished, begun, left = finished + 1, begun + bool(asked[2]), left + (not result.startswith(asked[2]))
                due = [*result.removeprefix(asked[2]), ">>"] if result.startswith(asked[2]) else []
    assert finished > 30 and begun > left > 0, "results begun by the token of the equals sign are finished, wrong ones left alone"


def test_rows_are_the_same_up_to_the_first_insertion_and_go_on_from_the_right_number(model: LanguageModel):
    with_it, without = words_of(samples(model)), words_of(samples(model, calculator=False))
    changed = 0
    for ours, plain in zip(with_it, without, strict=True):
        first = next((place for place, (_, inserted) in enumerate(ours) if inserted), len(ours))
        assert ours[:first] == plain[:first] and not any(inserted for _, inserted in plain)
        changed += ours[first:] != plain[first:]
    assert changed > 10


def test_log_probabilities_are_the_trainers_of_inserted_tokens_too(model: LanguageModel):
    """So the cache holds what was inserted, not what was drawn in its place."""
    rollouts = samples(model)
    mask, inserted = rollouts.completion_mask, rollouts.inserted
    torch.testing.assert_close(rollouts.logprobs[mask], forward_logprobs(model, rollouts)[mask], atol=1e-4, rtol=0)
    assert not rollouts.sampler_logprobs[inserted].any(), "they are certain"
    assert torch.equal(rollouts.sampler_logprobs[~inserted], rollouts.logprobs[~inserted])
    assert inserted.any() and not (inserted & ~mask).any()


def test_a_row_depends_neither_on_its_batch_nor_on_who_has_finished(model: LanguageModel):
    together = words_of(samples(model))
    for max_rows in (4, 12):
        assert words_of(samples(model, max_rows=max_rows)) == together
    assert words_of(samples(model, max_new_tokens=9)) == [row[:9] for row in together]


def test_answers_that_end_within_a_result_insert_no_more(model: LanguageModel):
    whole = samples(model, count=16)
    found = [(text, re.search(r"=\d(?=\d+>>)", text)) for text in whole.texts]
    stops = tuple({text[: within.end()] for text, within in found if within})
    cut = samples(model, count=16, stop=stops)
    for before, after in zip(whole.texts, cut.texts, strict=True):
        ends = [before.index(stop) + len(stop) for stop in stops if stop in before]
        assert after == before[: min(ends, default=len(before))]
    assert len(stops) > 5 and not (cut.inserted & ~cut.completion_mask).any()


def test_answers_with_right_results_stay_as_they_are():
    """A model that knows its sums: inserting and recomputing both change nothing."""
    model = writer("llama", noise=0.0)
    head = model.module.get_output_embeddings().weight.detach()  # pyright: ignore
    script = ["<<", "3", "+", "4", "=", "7", ">>", " "]
    for word, follower in zip(script, [*script[1:], "<<"], strict=True):
        head[:, WORDS.index(word)] = 0
        head[WORDS.index(follower), WORDS.index(word)] = 9
    with_it, without = samples(model), samples(model, calculator=False)
    assert with_it.texts == without.texts and torch.equal(with_it.completion_ids, without.completion_ids)
    assert set(with_it.texts) == {"<<3+4=7>> " * 3} and all(recompute(text) == text for text in with_it.texts)
    assert with_it.inserted.sum(1).tolist() == [6] * len(with_it.texts)


@pytest.mark.parametrize("family", LOSSLESS)
@pytest.mark.parametrize(
    ("said", "inserted"),
    [
        ("Natalia sold <<48/2=", "24>>"),
        ("1 <<3-5=", "-2>>"),
        ("<<1/4*(2+1)=", "0.75>>"),
        ("<<2+2=4>> and <<1000*2,000=", "2000000>>"),
        ("é <<50%*30=", "15>>"),
        ("<<1/3=", ""),
        ("<<x+1=", ""),
        ("<<1/0=", ""),
        ("<<9**9**9**9=", ""),
        ("48/2=", ""),
        ("<<2+2=4>> 5=", ""),
        ("<<2+2=4=", ""),
        ("<<2+2=4", ""),
        ("<<=", ""),
        ("", ""),
    ],
)
def test_what_is_inserted_is_the_text_of_the_result(family: str, said: str, inserted: str):
    one = tokenizer(family)
    ids = list(one(said, add_special_tokens=False)["input_ids"])
    tokens = Calculator(one).inserted(ids)
    assert one.decode(ids + tokens) == said + inserted and bool(tokens) == bool(inserted)


def test_a_result_that_the_tokenizer_cannot_write_is_left_to_the_model():
    one = marks()  # without a point
    half, two = (Calculator(one).inserted(one(f"<<{asked}=", add_special_tokens=False)["input_ids"]) for asked in ("2/4", "4/2"))
    assert half == [] and one.decode(two) == "2>>"


def test_an_equals_sign_may_be_a_byte():
    one = tokenizer("sentencepiece")
    ids = [*one("<<48/2", add_special_tokens=False)["input_ids"], one.convert_tokens_to_ids("<0x3D>")]
    assert one.decode(ids + Calculator(one).inserted(ids)) == "<<48/2=24>>"


@pytest.mark.parametrize("glued", ["=", ")=", "=-", "=7"])
@pytest.mark.parametrize("result", ["-2", "7", "70"])
def test_tokens_that_say_more_than_the_equals_sign(glued: str, result: str):
    """The beginning of a result is finished, and one that is wrong is left alone."""
    one = Tokenizer.from_str(tokenizer("bytes").backend_tokenizer.to_str())  # pyright: ignore
    own = PreTrainedTokenizerFast(tokenizer_object=one, eos_token="<end>", pad_token="<pad>")
    own.add_tokens([glued])
    before, _, begun = glued.partition("=")
    ids = [*own(f"<<{'(' if before else ''}0+{result}")["input_ids"], own.convert_tokens_to_ids(glued)]
    told = own.decode(Calculator(own).inserted(ids))
    assert told == (f"{result}>>".removeprefix(begun) if result.startswith(begun) else "")


def test_a_tokenizer_that_cannot_write_marks_is_refused():
    require_marks(tokenizer("bytes"), "here")
    require_marks(tokenizer("sentencepiece"), "here")
    with pytest.raises(UserError, match=r"rollout\.calculator: the tokenizer of t5 writes <<48/2=24>> as '.*'; set it to false"):
        require_marks(tokenizer("unigram"), "t5")


@pytest.fixture(scope="module")
def batch(model: LanguageModel) -> Experience:
    """Sampled rows with insertions, dataset rows, and a teacher's scores."""
    given = dataset_rollouts(model, [Example(" ", "<<1+1=2>>", key=90)], 24, 0)
    rollouts = join([samples(model), given], 0)
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(len(rollouts.examples), generator=generator)
    rewards[-1] = torch.nan
    teacher = LocalTeacher(language_model_like(model), 10_000).score(rollouts)
    return Experience(rollouts, rewards, {"right": rewards}, torch.randn(len(rewards), generator=generator), teacher)


def language_model_like(model: LanguageModel) -> LanguageModel:
    kind = "t5" if model.module.config.is_encoder_decoder else "llama"
    return writer(kind, noise=0.2)


OBJECTIVES = {
    "full": ObjectiveConfig(),
    "sequences": ObjectiveConfig(
        divergence=DivergenceConfig(mean="sequence"),
        surrogate=SurrogateConfig(mean="sequence", ratio="sequence", correction=CorrectionConfig("truncate", "sequence")),
    ),
    "k1": ObjectiveConfig(divergence=DivergenceConfig(kind="reverse_kl", estimator="k1", use="advantage", discount=0.9)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_stands_at_inserted_tokens_reaches_no_gradient(model: LanguageModel, batch: Experience, name: str):
    """Neither their log-probabilities nor the teacher's word on them; at chosen tokens both count."""
    weights = TermWeights(0.5, 0.5, 0.1)
    took = partial(gradient, model, config=OBJECTIVES[name], weights=weights)
    before = took([batch])
    for where, counts in ((batch.rollouts.inserted, False), (chosen_tokens(batch.rollouts), True)):
        noise = torch.where(where, torch.randn(where.shape, generator=torch.Generator().manual_seed(1)), 0.0)
        r = replace(batch.rollouts, logprobs=batch.rollouts.logprobs + noise, sampler_logprobs=batch.rollouts.sampler_logprobs - noise)
        teacher = replace(batch.teacher, hidden=batch.teacher.hidden + noise[..., None])  # pyright: ignore
        after = took([replace(batch, rollouts=r, teacher=teacher)])
        assert torch.equal(before, after) != counts


def test_means_are_over_chosen_tokens(batch: Experience):
    chosen, own = chosen_tokens(batch.rollouts).sum(1), batch.rollouts.on_policy
    counts = local_counts([batch], ObjectiveConfig())
    assert counts == {"reward": chosen[own].sum(), "divergence": chosen.sum(), "cross_entropy": chosen[~own].sum()}
    assert chosen[~own].tolist() == batch.rollouts.completion_mask[~own].sum(1).tolist(), "the dataset's marks are all learned from"
    torch.testing.assert_close(row_weights(batch, "divergence", OBJECTIVES["sequences"]), 1 / chosen)


def test_stored_rows_have_all_tokens_and_figures_of_chosen_ones(model: LanguageModel, batch: Experience):
    learner = Learner(model, ObjectiveConfig(), TermWeights(0.5, 0.5, 0.0), GlobalCounts(1.0, 1.0, 1.0), records=[], logged_choices=2)
    learner.loss(batch)
    assert learner.records is not None
    for row, (_, completion), flags in zip(
        rollout_rows(1, learner.records), token_rows(batch.rollouts), batch.rollouts.inserted, strict=True
    ):
        assert row["tokens"] == completion
        for name, nothing in {"logprobs": None, "divergence": None, "student_top": [], "teacher_top": []}.items():
            assert [value == nothing for value in row[name]] == flags[: len(completion)].tolist()
