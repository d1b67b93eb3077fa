"""Tokenizers: loading, prompts to tokens, and the agreement between student and teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gkd_rl.errors import UserError
from gkd_rl.types import Example, Message

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "tekken*")


def load_tokenizer(source: str, where: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model at ``source``; padding falls back to EOS, an EOS must exist."""
    folder = Path(source)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
        raise UserError(f"{where}: {source} holds no tokenizer; save the model's tokenizer into the same folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # a damaged file makes the libraries raise KeyError, TypeError and bare Exception
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{where}: no tokenizer could be loaded from {source}: {type(error).__name__}: {reason}") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"{where}: the tokenizer of {source} names no EOS token, so no answer could ever end; set eos_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Message], whose: str = "student") -> list[int]:
    """Token ids of a text prompt, or of chat messages through the tokenizer's template with the assistant's turn opened.

    Raises ``UserError`` for a chat without a template; ``whose`` tokenizer it is, for the error's text.
    """
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if tokenizer.chat_template is None:
        raise UserError(f"task.prompt_format is 'chat' but the {whose}'s tokenizer has no chat template; use 'plain'")
    messages = [dict(message) for message in prompt]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(str(text), add_special_tokens=False)["input_ids"])


def completion_tokens(tokenizer: PreTrainedTokenizerBase, example: Example, limit: int | None) -> list[int]:
    """Token ids of the dataset's completion, closed by EOS.

    Raises ``UserError`` for an example without a completion, and for one longer than ``limit`` tokens (None: any length will do): it is
    never cut.
    """
    if example.completion is None:
        raise UserError(f"example {example.key} of the task has no completion to learn from; give it one, or set rollout.on_policy_share=1")
    ids = [*tokenizer(example.completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    if limit is not None and len(ids) > limit:
        raise UserError(
            f"the completion of example {example.key} has {len(ids)} tokens, over rollout.max_new_tokens={limit}; raise it, "
            "shorten or remove the row, or set task.long_completions=drop"
        )
    return ids


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest token id (``len(tokenizer)`` is less where ids have gaps)."""
    return max(tokenizer.get_vocab().values()) + 1


def require_same_tokenizer(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Raise ``UserError`` with the first token that differs, unless both map the same tokens to the same ids and end alike."""
    ours, theirs = _by_id(student), _by_id(teacher)
    for number in sorted(ours.keys() | theirs.keys()):
        mine, its = ours.get(number), theirs.get(number)
        if mine != its:
            raise UserError(
                f"student and teacher have different tokenizers: token {number} is {mine!r} for the student and {its!r} for the "
                "teacher; choose a teacher of the student's family"
            )
    if student.eos_token_id != teacher.eos_token_id:
        raise UserError(
            f"student and teacher end answers differently: EOS is {student.eos_token!r} for the student and "
            f"{teacher.eos_token!r} for the teacher; choose both base or both chat models, or set eos_token alike"
        )


def _by_id(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {number: token for token, number in tokenizer.get_vocab().items()}
