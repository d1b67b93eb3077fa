"""Tokens as bytes: what they say together is the text, and equal texts find each other across tokenizers of different families."""

from __future__ import annotations

import pytest
from tiny_models import word_tokenizer
from tokenizer_zoo import FAMILIES, LINES, tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gkd_rl.errors import UserError
from gkd_rl.models.pieces import matched_tokens, pieces_of

LOSSLESS = ("bytes", "more bytes", "sentencepiece", "no prefix")


@pytest.mark.parametrize("family", LOSSLESS)
@pytest.mark.parametrize("text", [*LINES, "😀 ü\n\n  x", "\ufffd"])
def test_pieces_of_a_text_are_its_bytes(family: str, text: str):
    one = tokenizer(family)
    ids = one(text, add_special_tokens=False)["input_ids"]
    pieces = pieces_of(one, "here")
    assert pieces.text(ids, alone=True) == text
    assert b"".join(piece or b"" for piece in pieces.of(ids)).removeprefix(b" ") == text.encode().removeprefix(b" ")


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_of_ordinary_text_are_what_decoding_shows(family: str):
    one = tokenizer(family)
    ids = one("a b c is 42.", add_special_tokens=False)["input_ids"]
    assert pieces_of(one, "here").text(ids, alone=True) == one.decode(ids, skip_special_tokens=True)


def test_a_words_token_brings_its_space_along_unless_it_stands_alone():
    pieces = pieces_of(tokenizer("words"), "here")
    the, answer = pieces.tokenizer.convert_tokens_to_ids(["The", "answer"])
    assert pieces.of([the, answer]) == [b" The", b" answer"]
    assert pieces.text([the, answer]) == " The answer" and pieces.text([the, answer], alone=True) == "The answer"


def test_special_tokens_say_nothing():
    pieces = pieces_of(tokenizer("bytes"), "here")
    assert pieces.of([1, *pieces.tokenizer("a")["input_ids"], 0]) == [None, b"a", None]


@pytest.mark.parametrize("student", FAMILIES)
@pytest.mark.parametrize("teacher", FAMILIES)
def test_matched_tokens_have_one_text(student: str, teacher: str):
    ours, theirs = pieces_of(tokenizer(student), "here"), pieces_of(tokenizer(teacher), "there")
    pairs = matched_tokens(ours, theirs)
    assert len({mine for mine, _ in pairs}) == len({its for _, its in pairs}) == len(pairs), "one to one"
    end = (ours.tokenizer.eos_token_id, theirs.tokenizer.eos_token_id)
    assert end in pairs
    for mine, its in pairs:
        assert (mine, its) == end or ours.bytes_of.get(mine, ours.special.get(mine)) == theirs.bytes_of.get(its, theirs.special.get(its))
    texts = [{piece for piece in each.bytes_of.values() if piece} for each in (ours, theirs)]
    assert len([pair for pair in pairs if pair[0] in ours.bytes_of]) == len(texts[0] & texts[1]), "none is left out"


@pytest.mark.parametrize("family", ["bytes", "more bytes", "words"])
def test_a_tokenizer_matches_itself_whole(family: str):
    pieces = pieces_of(tokenizer(family), "here")
    assert matched_tokens(pieces, pieces) == [(number, number) for number in sorted(pieces.tokenizer.get_vocab().values())]


def test_markers_and_byte_tokens_are_normalised():
    """'Ġis' is 'is' behind a space, as '▁is' is; a byte token is the byte-level letter; 'A' is the ordinary token, not <0x41>."""
    ours, theirs = pieces_of(tokenizer("more bytes"), "here"), pieces_of(tokenizer("sentencepiece"), "there")
    pairs = dict(matched_tokens(ours, theirs))
    name = lambda pieces, text: pieces.tokenizer.convert_tokens_to_ids(text)
    assert pairs[name(ours, "Ċ")] == name(theirs, "<0x0A>")
    assert pairs[name(ours, "ð")] == name(theirs, "<0xF0>")
    assert pairs[name(ours, "Ġ")] == name(theirs, "▁")
    assert pairs[name(ours, "T")] == name(theirs, "T") != name(theirs, "<0x54>")


def test_a_tokenizer_whose_text_depends_on_neighbours_is_refused():
    letters = [letter + end for end in ("", "</w>") for letter in "abcdefghijklmnopqrstuvwxyzTS"]
    inner = Tokenizer(models.BPE({token: n for n, token in enumerate(["<eos>", *letters])}, [], end_of_word_suffix="</w>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.WhitespaceSplit(), decoders.BPEDecoder(suffix="</w>")  # pyright: ignore
    words = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    with pytest.raises(UserError, match="here: its tokenizer decodes tokens by what stands beside them"):
        pieces_of(words, "here")


def test_a_tokenizer_without_plain_tokens_is_refused():
    with pytest.raises(UserError, match="here: its tokenizer has no token of plain letters"):
        pieces_of(word_tokenizer({"<pad>": 0, "<eos>": 1, "+": 2}), "here")
