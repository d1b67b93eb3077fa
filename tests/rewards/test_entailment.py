"""Entailment of completions by documents: equal to forward passes by hand over windows and sentences that are enumerated."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from reward_models import EntailmentReward, InputError, WeightedSum

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "!", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
DOCUMENTS = ["A B C", " ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), "Z Y X W V U T S R Q P O N M L K J I H G", "A A"]
COMPLETIONS = ["A B! C D! E", "F G H", "X! Y! Z!", "Q"]
LONGEST = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random classifier of pairs of BERT form whose answers differ widely from input to input."""
    folder = tmp_path_factory.mktemp("nli")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    special = [("[CLS]", 1), ("[SEP]", 2)]
    pair = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special)
    tokenizer.post_processor = pair  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_max_length=LONGEST,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    torch.manual_seed(0)
    names = {0: "CONTRADICTION", 1: "ENTAILMENT", 2: "NEUTRAL"}
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        id2label=names,
        label2id={label: i for i, label in names.items()},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def _support(folder: Path, document: str, hypothesis: str, overlap: int, longest: int = LONGEST) -> float:
    """The best window's probability, windows and passes made by hand."""
    ids = {word: i for i, word in enumerate(WORDS)}
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    premise, said = ([ids[word] for word in text.replace("!", " !").split()] for text in (document, hypothesis))
    room = longest - 3 - len(said)
    best = -1.0
    for start in range(0, max(1, len(premise) - overlap), room - overlap):
        window = premise[start : start + room]
        row = torch.tensor([[1, *window, 2, *said, 2]])
        kinds = torch.tensor([[0] * (len(window) + 2) + [1] * (len(said) + 1)])
        with torch.no_grad():
            logits = model(input_ids=row, token_type_ids=kinds).logits[0]
        best = max(best, logits.softmax(-1)[1].item())
    return best


@pytest.mark.parametrize("overlap", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_the_best_window_of_the_whole_completion_counts(folder: Path, overlap: int, batch_size: int):
    reward = EntailmentReward(folder, overlap=overlap, batch_size=batch_size, device="cpu")
    expected = [_support(folder, *pair, overlap) for pair in zip(DOCUMENTS, COMPLETIONS, strict=True)]
    assert reward([""] * 4, COMPLETIONS, document=DOCUMENTS) == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.1


@pytest.mark.parametrize("per_sentence", ["min", "mean"])
def test_sentences_are_judged_one_by_one(folder: Path, per_sentence):
    reward = EntailmentReward(folder, per_sentence=per_sentence, overlap=1, device="cpu", label="entailment")
    sentences = [["A B!", "C D!", "E"], ["F G H"], ["X!", "Y!", "Z!"], ["Q"]]
    supports = [[_support(folder, document, one, 1) for one in of_row] for document, of_row in zip(DOCUMENTS, sentences, strict=True)]
    expected = [min(of_row) if per_sentence == "min" else sum(of_row) / len(of_row) for of_row in supports]
    assert reward([""] * 4, COMPLETIONS, document=DOCUMENTS) == pytest.approx(expected, abs=1e-5)


def test_prompts_and_chats_are_read_and_the_label_is_found_by_name_or_number(folder: Path):
    chats = [[{"role": "user", "content": "A B C"}]]
    by_prompt = EntailmentReward(folder, document_field=None, label=1, overlap=1, device="cpu")
    assert by_prompt(chats, [[{"role": "assistant", "content": "A"}]]) == pytest.approx([_support(folder, "A B C", "A", 1)], abs=1e-5)
    others = [EntailmentReward(folder, label=name, overlap=1, device="cpu") for name in ("contradiction", "Neutral", "ENTAILMENT")]
    shares = [reward([""], ["A"], document=["A B C"])[0] or 0.0 for reward in others]
    assert sum(shares) == pytest.approx(1.0, abs=1e-5) and len({round(share, 3) for share in shares}) == 3


def test_an_empty_completion_is_supported_by_nothing_and_a_missing_document_does_not_apply(folder: Path):
    for per_sentence in (None, "min", "mean"):
        reward = EntailmentReward(folder, per_sentence=per_sentence, overlap=1, device="cpu")  # pyright: ignore[reportArgumentType]
        total = WeightedSum([("entailed", reward, 1.0)])
        assert total([""] * 3, ["", " \n", "A"], document=["A B", "A", None]) == [0.0, 0.0, None]
        assert total([], [], document=[]) == []


def test_long_hypotheses_are_refused_or_cut(folder: Path):
    long = "A B C D E F G H I J K L"
    with pytest.raises(InputError, match="row 1 has a hypothesis of 12 tokens, and at most half of max_length=16"):
        EntailmentReward(folder, overlap=1, device="cpu")(["", ""], ["A", long], document=["A", "Z"])
    cut = EntailmentReward(folder, overlap=1, truncate="right", device="cpu")
    assert cut([""], [long], document=["Z Y"]) == pytest.approx([_support(folder, "Z Y", "A B C D E F G H", 1)], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": 5}, "overlap is 5; it must be at least 0 and below 5"),
        ({"overlap": -1}, "overlap is -1"),
        ({"overlap": 1, "per_sentence": "max"}, "per_sentence is 'max'; choose min or mean"),
        ({"overlap": 1, "truncate": "left"}, "truncate is 'left'; choose right"),
        ({"overlap": 1, "label": "entails"}, "no label 'entails' .*labels: CONTRADICTION, ENTAILMENT, NEUTRAL"),
        ({"overlap": 1, "document_field": "article"}, "no column 'article' with the documents; did you mean 'articles'"),
    ],
)
def test_what_cannot_work_is_refused(folder: Path, options: dict, message: str):
    with pytest.raises(InputError, match=message):
        EntailmentReward(folder, device="cpu", **options)([""], ["A"], articles=["A"])


def test_the_tokenizer_of_the_test_marks_the_second_text(folder: Path):
    assert AutoTokenizer.from_pretrained(folder)("A", "B")["token_type_ids"] == [0, 0, 0, 1, 1]
