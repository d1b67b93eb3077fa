"""The text of a completion, whichever form a trainer hands it over in."""

from collections.abc import Mapping, Sequence
from typing import Any

from reward_models.errors import InputError


def completion_text(completion: Any) -> str:
    """Return the text of a completion: a string, or chat messages, of which the last assistant message counts.

    None is an empty text. Message contents may be strings or lists of `{"type": "text", "text": ...}` parts.

    Raises:
        InputError: the completion is neither text nor a list of messages.
    """
    if isinstance(completion, str):
        return completion
    if completion is None:
        return ""
    if isinstance(completion, Mapping):
        completion = [completion]
    if not isinstance(completion, Sequence) or not all(isinstance(message, Mapping) for message in completion):
        raise InputError(f"a completion must be text or a list of chat messages, not {type(completion).__name__}")
    answers = [message for message in completion if message.get("role", "assistant") == "assistant"]
    return _content_text(answers[-1].get("content")) if answers else ""


def plain_prompt(prompt: Any) -> str:
    """Return a prompt as text; messages are joined by line breaks."""
    if prompt is None or isinstance(prompt, str):
        return prompt or ""
    return "".join(f"{completion_text([{**message, 'role': 'assistant'}])}\n" for message in prompt)


def _content_text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""
