"""A tiny model behind real HTTP, which answers as vLLM does; faults can be put between."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from json_server import JsonServer, listening

from gkd_rl.models.language_model import LanguageModel

Fault = Callable[[dict[str, Any]], Any]
"""Changes the answer on its way out. May return a status code in its place, or bytes that are sent as they are."""


class TeacherServer(JsonServer):
    """``/v1/completions`` over ``model``."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model
        self.most_logprobs = 1000
        """what ``--max-logprobs`` would be, kept silently"""

    def answer(self, body: dict[str, Any], fault: Fault | None) -> Any:
        answer = {"choices": [self._choice(number, tokens, body) for number, tokens in enumerate(body["prompt"])]}
        changed = fault(answer) if fault else None
        return answer if changed is None else changed

    def _choice(self, number: int, tokens: list[int], body: dict[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            lq = self.model.module(input_ids=torch.tensor([tokens])).logits[0, :, : self.model.vocabulary].log_softmax(-1)
        k = body.get("prompt_logprobs", body.get("logprobs"))
        positions: list[dict[int, float] | None] = [None]
        for n in range(1, len(tokens)):
            top = lq[n - 1].topk(min(k, lq.shape[-1], self.most_logprobs))
            values = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            positions.append({**values, tokens[n]: lq[n - 1, tokens[n]].item()})
        if "prompt_logprobs" in body:
            given = [p and {str(t): {"logprob": v, "rank": 1, "decoded_token": "?"} for t, v in p.items()} for p in positions]
            return {"index": number, "text": "", "logprobs": None, "prompt_logprobs": given}
        named = [p and {f"token_id:{t}": v for t, v in p.items()} for p in positions]
        own = [None if p is None else p[token] for p, token in zip(positions, tokens, strict=True)]
        texts = [f"token_id:{token}" for token in tokens]
        logprobs = {"tokens": [*texts, "token_id:3"], "token_logprobs": [*own, -0.5], "top_logprobs": [*named, {"token_id:3": -0.5}]}
        return {"index": number, "text": "", "logprobs": logprobs}


def serving(model: LanguageModel) -> AbstractContextManager[TeacherServer]:
    """Such a server, until the end."""
    return listening(TeacherServer(model))
