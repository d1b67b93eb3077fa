"""Tokens as the bytes that they stand for, by which tokenizers of different families compare."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from gkd_rl.errors import UserError

BROKEN = "\ufffd"
"""What decoders show for bytes that are no whole character."""

PROBE = "The answer is 42, isn't it?\nSo: (a + b) = 3.50"
"""Text on which a tokenizer's decoding has to be what its pieces say; clean-up of spaces would show in it."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_letters() -> dict[str, int]:
    """The letters by which byte-level vocabularies write bytes (GPT-2)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {**{chr(byte): byte for byte in plain}, **{chr(256 + number): byte for number, byte in enumerate(others)}}


BYTE_LETTERS = _byte_letters()


@dataclass(frozen=True)
class Pieces:
    """What each token adds to a text."""

    tokenizer: PreTrainedTokenizerBase
    bytes_of: Mapping[int, bytes]
    """of tokens that stand for text: within a text, so that a word's token brings its space along"""
    special: Mapping[int, str]
    """of the others, their names"""

    def of(self, ids: Sequence[int]) -> list[bytes | None]:
        """What each of ``ids`` adds; None: a special token, no text."""
        return [self.bytes_of.get(number) for number in ids]

    def text(self, ids: Sequence[int], alone: bool = False) -> str:
        """What they say together. ``alone``: with nothing before them, where some decoders drop a space that the first brings along."""
        said = b"".join(piece or b"" for piece in self.of(ids))
        if alone and said.startswith(b" ") and self.bytes_of.get(ids[0]):
            (shown,) = _decode(self.tokenizer, [[ids[0]]])
            said = said if shown.startswith(" ") else said[1:]
        return said.decode(errors="replace")


def pieces_of(tokenizer: PreTrainedTokenizerBase, where: str) -> Pieces:
    """The pieces of a vocabulary, found by decoding each token behind another one.

    Raises ``UserError`` for a tokenizer that decodes a token in one way here and in another there; ``where`` is its configuration key.
    """
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    specials = set(tokenizer.all_special_ids) | {n for n, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = {number: names[number] for number in names if number in specials}
    numbers = [number for number in names if number not in specials]
    anchor, before = _anchor(tokenizer, numbers, where)
    texts = _decode(tokenizer, [[anchor, number] for number in numbers])
    found = {n: _bytes(names[n], text.removeprefix(before)) for n, text in zip(numbers, texts, strict=True)}
    pieces = Pieces(tokenizer, found, special)
    _prove(pieces, where)
    return pieces


def matched_tokens(student: Pieces, teacher: Pieces) -> list[tuple[int, int]]:
    """Pairs of the student's and the teacher's token of the same text (special ones: of the same name); the two EOS are one of them."""
    ours, theirs = _numbers(student), _numbers(teacher)
    pairs = [(ours[key], theirs[key]) for key in ours.keys() & theirs.keys()]
    ends = student.tokenizer.eos_token_id, teacher.tokenizer.eos_token_id
    assert isinstance(ends[0], int) and isinstance(ends[1], int), "load_tokenizer asks for them"
    return sorted([(ends[0], ends[1]), *((mine, its) for mine, its in pairs if mine != ends[0] and its != ends[1])])


def _numbers(pieces: Pieces) -> dict[bytes | str, int]:
    """Text or name → token; of several tokens with one text the ordinary one, and of these the first."""
    names = pieces.tokenizer.convert_ids_to_tokens(list(pieces.bytes_of))
    order = sorted((bool(_BYTE_TOKEN.fullmatch(name)), number) for name, number in zip(names, pieces.bytes_of, strict=True))
    numbers: dict[bytes | str, int] = {}
    for _, number in order:
        if piece := pieces.bytes_of[number]:
            numbers.setdefault(piece, number)
    return {**numbers, **{name: number for number, name in pieces.special.items()}}


def _decode(tokenizer: PreTrainedTokenizerBase, rows: list[list[int]]) -> list[str]:
    return tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False) if rows else []


def _anchor(tokenizer: PreTrainedTokenizerBase, numbers: Sequence[int], where: str) -> tuple[int, str]:
    """A token whose own text no decoder has a reason to change, and that text."""
    for number in sorted(numbers):
        (text,) = _decode(tokenizer, [[number]])
        if text.isalnum() and text.isascii():
            return number, text
    raise UserError(
        f"{where}: its tokenizer has no token of plain letters or digits, so its tokens cannot be compared with others; change it"
    )


def _bytes(name: str, text: str) -> bytes:
    if BROKEN not in text:
        return text.encode()
    if single := _BYTE_TOKEN.fullmatch(name):
        return bytes([int(single[1], 16)])
    if all(letter in BYTE_LETTERS for letter in name):
        return bytes(BYTE_LETTERS[letter] for letter in name)
    return text.encode()


def _prove(pieces: Pieces, where: str) -> None:
    ids = list(pieces.tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    said = pieces.text(ids)
    shown = _decode(pieces.tokenizer, [ids])[0]
    if said.strip() != shown.strip():
        raise UserError(
            f"{where}: its tokenizer decodes tokens by what stands beside them ({shown!r} of the pieces {said!r}), so that they have no "
            "text of their own to compare; choose a model with a byte-level or SentencePiece tokenizer"
        )
