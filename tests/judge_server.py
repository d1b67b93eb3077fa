"""A chat endpoint behind real HTTP, whose answers follow a rule."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from json_server import JsonServer, listening


class JudgeServer(JsonServer):
    """``/v1/chat/completions`` whose message is ``rule(question)``. A fault is a status, bytes or an answer."""

    def __init__(self, rule: Callable[[str], str]) -> None:
        super().__init__()
        self.rule = rule

    def answer(self, body: dict[str, Any], fault: Any) -> Any:
        if fault is not None:
            return fault
        question = body["messages"][0]["content"]
        message = {"role": "assistant", "content": self.rule(question)}
        return {"choices": [{"message": message}], "usage": {"prompt_tokens": len(question), "completion_tokens": 10}}


def judging(rule: Callable[[str], str]) -> AbstractContextManager[JudgeServer]:
    """Such a server, until the end."""
    return listening(JudgeServer(rule))
