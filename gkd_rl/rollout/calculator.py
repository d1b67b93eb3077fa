"""A calculator at the student's elbow: behind ``<<48/2=`` the result is computed and written into the answer (Cobbe et al. 2021,
arXiv 2110.14168, appendix C), so that the model goes on from the right number.

It works on text: what the tokens so far say together. A token that writes more than its ``=`` keeps what it says: if that begins the
result, the rest is inserted, and if not, the mark is the model's own. Shapes: B sequences, C completion positions, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gkd_rl.errors import UserError
from reward_models.expressions import NotAnExpressionError, evaluate_prefix, tokens_of

LONGEST = 100
"""Characters of an expression at most."""

_ASKED = re.compile(rf"<<([^<>=]{{1,{LONGEST}}})=([^<>=]*)\Z")
_WINDOW = LONGEST + 16
"""Tokens of an answer that are looked at: an expression of single characters and its marks."""

_ANCHORS = ("=", "1=", "")
"""Texts behind which a result is encoded: alone, some tokenizers would put a space before it."""

_EQUALS_BYTE = "<0x3D>"


def result_of(expression: str) -> str | None:
    """The value as digits, exactly; None where the expression cannot be read whole, or its value has no finite decimal form."""
    tokens = tokens_of(expression)
    try:
        value, end = evaluate_prefix(tokens)
    except NotAnExpressionError:
        return None
    if value is None or end < len(tokens):
        return None
    if value.denominator == 1:
        return str(value.numerator)
    places = next((n for n in range(1, 13) if (value * 10**n).denominator == 1), None)
    if places is None:
        return None
    digits = f"{abs(value.numerator) * 10**places // value.denominator:0{places + 1}d}"
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


class Calculator:
    """Says what is to be inserted behind the tokens of an answer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.equals = frozenset(number for token, number in tokenizer.get_vocab().items() if "=" in token or token == _EQUALS_BYTE)
        """tokens with an equals sign in them: no other can ask for a result"""

    def inserted(self, ids: Sequence[int]) -> list[int]:
        """Tokens that finish the mark which the last of ``ids``, an answer so far, asks to be finished; none where it asks for nothing.

        None either for an expression without a readable result, for one that the last token has gone on from in another way, and
        where the tokenizer cannot write the result.
        """
        if not ids or ids[-1] not in self.equals:
            return []
        before = list(ids[-_WINDOW:])
        asked = _ASKED.search(self._said(before))
        result = result_of(asked[1]) if asked else None
        if asked is None or result is None or not f"{result}>>".startswith(asked[2]):
            return []
        return self._written(before, f"{result}>>".removeprefix(asked[2]))

    def _said(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _written(self, before: list[int], text: str) -> list[int]:
        """The tokens that write ``text`` behind those of ``before``."""
        said = self._said(before)
        for anchor in _ANCHORS:
            start, whole = (list(self.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in (anchor, anchor + text))
            tokens = whole[len(start) :]
            if whole[: len(start)] == start and tokens and self._said(before + tokens) == said + text:
                return tokens
        return []


def require_marks(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Raise ``UserError`` for a tokenizer whose answers can hold no finished mark; ``where`` is its configuration key."""
    mark = "<<48/2=24>>"
    written = list(tokenizer(mark.removesuffix("24>>"), add_special_tokens=False)["input_ids"])
    calculator = Calculator(tokenizer)
    finished = calculator._said(written + calculator.inserted(written))
    if finished.strip() != mark:
        raise UserError(f"rollout.calculator: the tokenizer of {where} writes {mark} as {finished!r}; set it to false, or change the model")


@dataclass(frozen=True)
class Due:
    """What is inserted at one step, in the place of what was drawn."""

    places: Tensor
    """[n] int64: rows of the batch"""
    tokens: Tensor
    """[n] int64"""
    logprobs: Tensor
    """[n] fp32: their log-probabilities under the untruncated policy"""


class Insertions:
    """What a calculator has yet to insert into answers: one token per row and step."""

    def __init__(self, calculator: Calculator) -> None:
        self.calculator = calculator
        self.waiting: dict[int, list[int]] = {}

    def due(self, rows: Tensor, logits: Tensor) -> Due:
        """Of this step, for a batch of the answers ``rows`` [B], whose next tokens ``logits`` [B, V] predict."""
        due = [(place, self.waiting[row].pop(0)) for place, row in enumerate(rows.tolist()) if self.waiting.get(row)]
        places, tokens = (torch.tensor([pair[i] for pair in due], dtype=torch.long, device=logits.device) for i in (0, 1))
        return Due(places, tokens, logits[places].float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0])

    def look(self, rows: Tensor, ids: Tensor, position: int) -> None:
        """Take note of what the answers ``rows`` [B], of tokens ``ids`` [B, C] up to ``position``, ask for."""
        newest = ids[:, position].tolist()
        for place, row in enumerate(rows.tolist()):
            if newest[place] in self.calculator.equals:
                self.waiting[row] = self.calculator.inserted(ids[place, : position + 1].tolist())
