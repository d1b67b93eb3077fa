"""A vLLM server over HTTP: completions of token-id prompts, and the student's weights by way of a folder that both can read.

Start it as ``VLLM_SERVER_DEV_MODE=1 vllm serve STUDENT --logprobs-mode processed_logprobs``; the mode opens its reload endpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from gkd_rl.config.run import VllmConfig
from gkd_rl.errors import UserError
from gkd_rl.models.language_model import LanguageModel
from gkd_rl.rollout.vllm import Answer, Request, checkpoint_weights

CONNECTIONS = 128
"""Requests under way at once at most; the server batches them."""
LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses after which the same request may succeed."""
FORGIVING = 1e-3
"""A certain token's log-probability may be so far from 0."""


class VllmServer:
    """A server that is there already. Raises ``UserError`` at once where it is not, or cannot serve ``max_tokens``."""

    def __init__(self, config: VllmConfig, folder: Path, max_tokens: int, max_rows: int) -> None:
        assert config.url is not None
        self.config = config
        self.url = config.url.rstrip("/")
        self.folder = folder
        self.delivered: Path | None = None
        self.max_tokens = max_tokens
        self.rows = min(max_rows, CONNECTIONS)
        served = self._call("/v1/models")["data"][0]
        self.model = served["id"]
        window = served.get("max_model_len")
        if window is not None and window < max_tokens:
            raise UserError(
                f"{self.url} reads at most {window} tokens, but task.max_prompt_tokens + rollout.max_new_tokens = {max_tokens}; "
                "start it with a larger --max-model-len"
            )
        self._require_log_probabilities_of_what_is_sampled()

    def deliver(self, model: LanguageModel, version: int) -> None:
        place = self.folder / f"version-{version}"
        place.mkdir(parents=True, exist_ok=True)
        model.module.config.save_pretrained(place)
        weights = {name: tensor.detach().cpu().clone() for name, tensor in checkpoint_weights(model.module).items()}
        save_file(weights, place / "model.safetensors", {"format": "pt"})
        call = {"method": "reload_weights", "kwargs": {"weights_path": str(place.resolve())}}
        self._call("/collective_rpc", call, dev=True)
        if self._call("/reset_prefix_cache", {}, dev=True).get("success") is False:
            raise UserError(f"{self.url} kept prefixes cached for the old weights; let no other client use the server")
        if self.delivered is not None:
            shutil.rmtree(self.delivered)
        self.delivered = place

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        with ThreadPoolExecutor(self.rows) as pool:
            return list(pool.map(self._answer, requests))

    def _answer(self, request: Request) -> Answer:
        body = {"model": self.model, "prompt": request.prompt, "return_token_ids": True, **request.settings}
        choice = self._call("/v1/completions", body)["choices"][0]
        tokens, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
        if not tokens or not logprobs or None in logprobs:
            raise UserError(f"{self.url} returned no tokens or no log-probabilities; gkd-rl needs a server of vLLM 0.11 or newer")
        return Answer(tokens, logprobs, choice["finish_reason"] == "stop")

    def _require_log_probabilities_of_what_is_sampled(self) -> None:
        """The likeliest token alone (top-k 1) is certain; a server that scores it otherwise reports the untruncated distribution."""
        settings = {"max_tokens": 1, "temperature": 1.0, "top_k": 1, "logprobs": 0, "seed": 0, "ignore_eos": True}
        if abs(self._answer(Request([0], settings)).logprobs[0]) > FORGIVING:
            raise UserError(
                f"{self.url} reports log-probabilities of another distribution than it samples from; start it with --logprobs-mode "
                "processed_logprobs"
            )

    def _call(self, path: str, body: dict[str, Any] | None = None, dev: bool = False) -> dict[str, Any]:
        """The answer to a GET (no body) or POST, tried again where that may help."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url + path, None if body is None else json.dumps(body).encode(), headers)
        problem = ""
        for attempt in range(self.config.retries + 1):
            if attempt:
                time.sleep(2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self.config.timeout) as response:
                    return json.loads(response.read() or b"{}")
            except urllib.error.HTTPError as error:
                problem = f"{error.code} {_said(error)}"
                if dev and error.code in (404, 405):
                    raise UserError(f"{self.url} has no {path}; start the server with VLLM_SERVER_DEV_MODE=1 in its environment") from None
                if error.code not in LATER:
                    break
            except (urllib.error.URLError, HTTPException, OSError, ValueError) as error:
                problem = str(getattr(error, "reason", None) or error)
        tried = f"attempt {attempt + 1} of {self.config.retries + 1}"
        raise UserError(f"rollout.vllm.url: {self.url}{path} failed ({tried}): {problem}; see the server's log")


def _said(error: urllib.error.HTTPError) -> str:
    """What the server gives as the reason, on one line."""
    text = error.read().decode(errors="replace")
    try:
        inner = json.loads(text)
        text = str(inner["error"]["message"] if "error" in inner else inner.get("detail", text))
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return " ".join(text.split())[:300]
