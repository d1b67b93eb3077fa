"""A teacher behind an OpenAI-compatible ``/v1/completions`` endpoint (vLLM and others): token ids go out, log-probabilities come back.

Rows go out in requests of several, several requests at once, each retried with exponential back-off. Every answer is verified
against the tokens sent; what stays wrong ends the run. Nothing is ever filled in.

Shapes: B sequences, C completion positions, K likeliest tokens.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from threading import Event
from typing import Any

import torch

from gkd_rl.config.run import TeacherConfig
from gkd_rl.errors import UserError
from gkd_rl.progress import progress
from gkd_rl.teacher.answers import BadAnswer, Position, rows_of
from gkd_rl.types import Rollouts, TopKScores
from reward_models.http_json import is_refusal, post, reason, wait_before


class ServedTeacher:
    """The model that a server holds; gives the ``top_k`` likeliest tokens of ``vocabulary`` and the completion's own."""

    head = None

    def __init__(self, settings: TeacherConfig, vocabulary: int, key: str = "teacher") -> None:
        assert settings.url is not None and settings.top_k is not None, "validate asks for both"
        self.settings = settings
        self.name = key
        self.vocabulary = vocabulary
        self.top_k = settings.top_k
        self.endpoint = settings.url.rstrip("/").removesuffix("/completions").removesuffix("/v1") + "/v1/completions"
        self.key = os.environ.get(settings.api_key_env) if settings.api_key_env else None
        if settings.api_key_env and not self.key:
            raise UserError(f"{key}.api_key_env names the environment variable {settings.api_key_env}, which is not set; set it")

    def probe(self, tokens: Sequence[int]) -> None:
        """Ask for one short row, so that a server that cannot serve says so before a model is loaded. Raises ``UserError``."""
        self._ask([list(tokens)], [0], [""], Event())

    def score(self, rollouts: Rollouts) -> TopKScores:
        """Log-probabilities of each completion token; zero where there is none. Raises ``UserError`` naming url, row and position."""
        mask = rollouts.completion_mask
        prompts, completions = ([row[kept].tolist() for row, kept in zip(ids.cpu(), where.cpu(), strict=True)] for ids, where in (
            (rollouts.prompt_ids, rollouts.prompt_mask), (rollouts.completion_ids, mask)))  # fmt: skip
        sent = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        answers = self._ask_all(sent, [f" (example {example.key})" for example in rollouts.examples])
        k = min(self.top_k, self.vocabulary)
        ids, logprobs, own = torch.zeros(*mask.shape, k, dtype=torch.long), torch.zeros(*mask.shape, k), torch.zeros(mask.shape)
        for row, positions in enumerate(answers):
            said = positions[len(prompts[row]) - 1 :]
            assert len(said) == len(completions[row]), "a prompt has at least one token"
            if said:
                own[row, : len(said)] = torch.tensor([position.logprob for position in said])
                ids[row, : len(said)] = torch.tensor([[token for token, _ in p.top] for p in said], dtype=torch.long)
                logprobs[row, : len(said)] = torch.tensor([[value for _, value in p.top] for p in said])
        return TopKScores(ids.to(mask.device), logprobs.to(mask.device), own.to(mask.device))

    def _ask_all(self, sent: list[list[int]], names: list[str]) -> list[list[Position]]:
        """All rows' positions; the first request that fails for good stops the others."""
        size, stop, failures = self.settings.rows_per_request, Event(), []
        cuts = [list(range(start, min(start + size, len(sent)))) for start in range(0, len(sent), size)]

        def ask(cut: list[int]) -> list[list[Position]]:
            if stop.is_set():
                return []
            try:
                return self._ask([sent[i] for i in cut], cut, [names[i] for i in cut], stop)
            except UserError as error:
                failures.append(error)
                stop.set()
                return []

        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            try:
                answers = []
                with progress("teacher", len(sent), "rows") as advance:
                    for rows in pool.map(ask, cuts):
                        answers += rows
                        advance(len(rows))
            finally:
                stop.set()
        if failures:
            raise failures[0]
        return answers

    def _ask(self, sent: list[list[int]], rows: list[int], names: list[str], stop: Event) -> list[list[Position]]:
        """One request's rows, tried until an answer is right."""
        problem = ""
        for number in range(self.settings.retries + 1):
            if number and stop.wait(wait_before(number, self.settings.retry_seconds)):
                break
            try:
                return rows_of(self._post(sent), sent, self.settings.protocol, self.top_k, self.vocabulary)
            except BadAnswer as error:
                where = "" if error.position is None else f", position {error.position}"
                problem = f"row {rows[error.row]}{names[error.row]}{where}: {error.what}"
            except (OSError, HTTPException, ValueError) as error:
                problem = f"row {rows[0]}{names[0]}, position 0: {reason(error, 'JSON')}"
                if is_refusal(error):
                    raise UserError(f"{self.name}.url {self.endpoint}: {problem}; mend the settings under {self.name}") from None
        raise UserError(f"{self.name}.url {self.endpoint}: {problem}, after {self.settings.retries + 1} tries; see to the server")

    def _post(self, sent: list[list[int]]) -> Any:
        """The server's answer to one request, parsed."""
        body: dict[str, Any] = {"model": self.settings.served_model, "prompt": sent, "max_tokens": 1, "temperature": 1.0}
        if self.settings.protocol == "prompt_logprobs":
            body |= {"prompt_logprobs": self.top_k}
        else:
            body |= {"echo": True, "logprobs": self.top_k, "return_tokens_as_token_ids": True}
        return post(self.endpoint, body, self.key, self.settings.timeout)
