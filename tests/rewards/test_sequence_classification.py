"""Classifier checkpoints as rewards, with tiny randomly initialised models: equal to a forward pass by hand."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from reward_models import InputError, SequenceClassificationReward, WeightedSum

WORDS = ["[PAD]", "[CLS]", "[UNK]", "user", "assistant", ":", *"abcdefghijklmnopqrstuvwxyz"]
PROMPTS = ["a b ", "c ", "d e f g ", "h ", "a ", "b c d e f ", "x y ", "z "]
COMPLETIONS = ["m n", "o p q r s t", "u", "v w x y z a b c", "a", "b", "c d e", "f g h i j k l m n o"]
TEMPLATE = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"


def _tokenizer(folder: Path, chat: bool = False) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A", special_tokens=[("[CLS]", 1)])  # pyright: ignore
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", unk_token="[UNK]")
    wrapped.chat_template = TEMPLATE if chat else None
    wrapped.save_pretrained(folder)


def _llama_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=1,  # pyright: ignore[reportCallIssue]
        pad_token_id=0,
        max_position_embeddings=64,
    )


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Threads cost more than they save at this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scalar reward model of Llama form, one with a chat template, and a classifier of three labels of BERT form."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    scalar = LlamaForSequenceClassification(_llama_config())
    for name, chat in (("scalar", False), ("chat", True)):
        scalar.save_pretrained(folder / name)
        _tokenizer(folder / name, chat)
    names = {0: "contradiction", 1: "neutral", 2: "entailment"}
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        id2label=names,
        label2id={label: i for i, label in names.items()},
    )
    BertForSequenceClassification(config).save_pretrained(folder / "nli")
    _tokenizer(folder / "nli")
    return folder


@cache
def _loaded(folder: Path):
    return AutoModelForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def _logits_by_hand(folder: Path, text: str, special_tokens: bool = True) -> torch.Tensor:
    model, tokenizer = _loaded(folder)
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=special_tokens)
    with torch.no_grad():
        return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[0]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_scalar_head_gives_its_value_whatever_the_batch_size(checkpoints: Path, batch_size: int):
    reward = SequenceClassificationReward(checkpoints / "scalar", batch_size=batch_size, device="cpu")
    texts = [prompt + completion for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
    expected = [_logits_by_hand(checkpoints / "scalar", text).item() for text in texts]
    assert reward(prompts=PROMPTS, completions=COMPLETIONS, reference=["?"] * 8) == pytest.approx(expected, abs=1e-6)
    assert len({round(value, 4) for value in expected}) == len(expected)


@pytest.mark.parametrize("label", ["entailment", 2])
def test_several_labels_give_the_probability_of_the_chosen_one(checkpoints: Path, label: int | str):
    reward = SequenceClassificationReward(
        checkpoints / "nli", label=label, template="{document} : {completion}", batch_size=3, device="cpu"
    )
    texts = [f"{document}: {completion}" for document, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
    expected = [_logits_by_hand(checkpoints / "nli", text).softmax(-1)[2].item() for text in texts]
    assert reward(prompts=[""] * 8, completions=COMPLETIONS, document=PROMPTS) == pytest.approx(expected, abs=1e-6)


def test_chat_messages_go_through_the_chat_template(checkpoints: Path):
    prompts = [[{"role": "user", "content": prompt.strip()}] for prompt in PROMPTS]
    answers = [[{"role": "assistant", "content": completion}] for completion in COMPLETIONS]
    texts = [f"user : {prompt.strip()} assistant : {c} " for prompt, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    expected = [_logits_by_hand(checkpoints / "chat", text, special_tokens=False).item() for text in texts]
    reward = SequenceClassificationReward(checkpoints / "chat", batch_size=4, device="cpu")
    assert reward(prompts=prompts, completions=answers) == pytest.approx(expected, abs=1e-6)
    assert reward(prompts=prompts, completions=COMPLETIONS) == pytest.approx(expected, abs=1e-6)


def test_chat_messages_without_a_chat_template_are_joined_by_lines(checkpoints: Path):
    reward = SequenceClassificationReward(checkpoints / "scalar", device="cpu")
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    chat = reward(prompts=[messages], completions=[[{"role": "assistant", "content": "c"}]])
    assert chat == reward(prompts=["a\nb\n"], completions=["c"])


def test_a_long_input_is_an_error_or_cut_on_the_named_side(checkpoints: Path):
    folder = checkpoints / "scalar"
    with pytest.raises(InputError, match="row 1 has 7 tokens for the reward model scalar, which reads 5; set truncate"):
        SequenceClassificationReward(folder, max_length=5, device="cpu")(["", "a b c "], ["a", "d e f"])
    with pytest.raises(InputError, match="which reads 64"):
        SequenceClassificationReward(folder, device="cpu")([""], ["a " * 80])
    for side, kept in (("right", "a b c d"), ("left", "c d e f")):
        reward = SequenceClassificationReward(folder, max_length=5, truncate=side, device="cpu")  # pyright: ignore
        assert reward(["a b c "], ["d e f"]) == pytest.approx([_logits_by_hand(folder, kept).item()], abs=1e-6)


def test_it_works_in_a_weighted_sum_and_on_no_rows(checkpoints: Path):
    reward = SequenceClassificationReward(checkpoints / "scalar", device="cpu")
    total = WeightedSum([("model", reward, 2.0)])
    assert total(PROMPTS, COMPLETIONS) == [2.0 * (value or 0.0) for value in reward(PROMPTS, COMPLETIONS)]
    assert total([], []) == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("scaler", {}, "no reward model at .*did you mean '.*scalar'"),
        ("scalar", {"label": 0}, "has one output"),
        ("nli", {}, "has 3 labels; choose the rewarded one by label: contradiction, neutral, entailment"),
        ("nli", {"label": "entailmant"}, "no label 'entailmant'; did you mean 'entailment'"),
        ("nli", {"label": 3}, "no label 3"),
        ("scalar", {"batch_size": 0}, "batch_size is 0"),
        ("scalar", {"max_length": 0}, "max_length is 0"),
        ("scalar", {"truncate": "middle"}, "truncate is 'middle'"),
        ("scalar", {"dtype": "int8"}, "dtype is 'int8'"),
        ("scalar", {"template": "{prompt"}, "template '{prompt' cannot be read"),
    ],
)
def test_what_does_not_suit_the_checkpoint_is_refused(checkpoints: Path, name: str, options: dict, message: str):
    with pytest.raises(InputError, match=message):
        SequenceClassificationReward(checkpoints / name, **options)


def test_a_template_field_without_a_column_is_named(checkpoints: Path):
    reward = SequenceClassificationReward(checkpoints / "scalar", template="{documnt} {completion}", device="cpu")
    with pytest.raises(InputError, match="needs a column 'documnt'; did you mean 'document'"):
        reward(["p"], ["c"], document=["d"])


def test_a_checkpoint_without_a_trained_head_is_refused(tmp_path: Path):
    LlamaForCausalLM(_llama_config()).save_pretrained(tmp_path)
    _tokenizer(tmp_path)
    with pytest.raises(InputError, match=r"not a trained sequence classifier: its weights lack score\.weight"):
        SequenceClassificationReward(tmp_path)


def test_pickled_weights_are_refused_unless_trusted(tmp_path: Path):
    model = LlamaForSequenceClassification(_llama_config())
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    _tokenizer(tmp_path)
    with pytest.raises(InputError, match="no safetensors weights; pickled weights can run code"):
        SequenceClassificationReward(tmp_path)
    trusted = SequenceClassificationReward(tmp_path, trust_pickle=True, device="cpu")
    assert trusted(["a "], ["b"]) == pytest.approx([model.eval()(torch.tensor([[1, 6, 7]])).logits.item()], abs=1e-6)


def test_code_of_a_checkpoint_is_not_run(checkpoints: Path, tmp_path: Path):
    (tmp_path / "evil.py").write_text("raise SystemExit('code of the checkpoint was run')\n")
    config = json.loads((checkpoints / "scalar" / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((checkpoints / "scalar" / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="cannot be loaded as a sequence classifier"):
        SequenceClassificationReward(tmp_path)


def test_a_model_that_waits_elsewhere_comes_for_a_call_and_goes_back(checkpoints: Path, monkeypatch: pytest.MonkeyPatch):
    reward = SequenceClassificationReward(checkpoints / "scalar")
    expected = reward(PROMPTS, COMPLETIONS)
    there, moves = torch.device("cpu", 0), []  # the same memory under another name: no second device is needed to see the moves
    monkeypatch.setattr(reward.classifier, "device", there)
    real = reward.classifier.model.to
    monkeypatch.setattr(reward.classifier.model, "to", lambda device: moves.append(device) or real(device))
    assert reward(PROMPTS, COMPLETIONS) == expected
    assert moves == [there, torch.device("cpu")]
    monkeypatch.setattr(reward.classifier, "_batch", lambda rows: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reward(PROMPTS, COMPLETIONS)
    assert moves == [there, torch.device("cpu")] * 2
    with pytest.raises(InputError, match="offload is for a model on a GPU"):
        SequenceClassificationReward(checkpoints / "scalar", device="cpu", offload=True)
