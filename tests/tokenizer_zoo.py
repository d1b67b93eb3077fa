"""Small tokenizers of the families that language models have, trained on the spot on a few lines of text."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

LINES = [
    "The answer is 42. Natalia sold 48/2 = 24 clips in May.",
    "Wie spät ist es? Über München fliegen Vögel, süß und schön.",
    "Le café coûte 3€ à Paris; la crème brûlée 5€.",
    "数学の答えは四十二です。日本語の文。",
    "def f(x):\n    return x + 1\n\nprint(f(41))",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9",
]
CHAT = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
FAMILIES = ("bytes", "more bytes", "sentencepiece", "no prefix", "unigram", "words")


@cache
def tokenizer(family: str, chat: bool = False) -> PreTrainedTokenizerBase:
    """One of ``FAMILIES``: byte-level BPE, small and larger; BPE with byte fallback, which puts a space before a text or does not; a
    unigram model of T5's kind, which loses what it cannot write; whole words."""
    inner = {"bytes": _byte_level, "more bytes": lambda: _byte_level(400), "unigram": _unigram, "words": _words}.get(
        family, lambda: _sentencepiece(family == "sentencepiece")
    )()
    end = {"bytes": "<end>", "more bytes": "<|im_end|>"}.get(family, "</s>")
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=end, pad_token="<pad>", clean_up_tokenization_spaces=False)
    made.chat_template = CHAT if chat else None  # pyright: ignore
    return made


def _byte_level(size: int = 300) -> Tokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    bpe.decoder = decoders.ByteLevel()  # pyright: ignore
    specials = ["<pad>", "<end>"] if size == 300 else ["<|im_end|>", "<pad>", "<think>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(LINES, trainer)
    return bpe


def _sentencepiece(prefix: bool) -> Tokenizer:
    """As Llama's: a space before the text, which decoding takes away, and bytes for what is not in the vocabulary."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    spaces = [normalizers.Replace(" ", "▁")]
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *spaces] if prefix else spaces)  # pyright: ignore
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    bpe.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix else parts)  # pyright: ignore
    specials = ["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=specials, show_progress=False, limit_alphabet=60)
    bpe.train_from_iterator([line.replace(" ", "▁") for line in LINES[:1] + LINES[5:]], trainer)
    whole = Tokenizer.from_str(bpe.to_str())
    return _without_special_bytes(whole)


def _without_special_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """Bytes are ordinary tokens; the trainer has made them special."""
    import json

    whole = json.loads(tokenizer.to_str())
    whole["added_tokens"] = [token for token in whole["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(whole))


def _unigram() -> Tokenizer:
    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\n", " ")])  # pyright: ignore
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()  # pyright: ignore
    unigram.decoder = decoders.Metaspace()  # pyright: ignore
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False)
    unigram.train_from_iterator([line for line in LINES if line.isascii()], trainer)
    return unigram


def _words() -> Tokenizer:
    words = sorted({word for line in LINES for word in line.split()})
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(["<unk>", "</s>", "<pad>", *words])}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    return inner
