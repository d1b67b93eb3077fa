"""A real HTTP server that holds a tiny model and answers as vLLM does; faults can be put between."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from gkd_rl.models.language_model import LanguageModel

Fault = Callable[[dict[str, Any]], Any]
"""Changes the answer on its way out. May return a status code in its place, or bytes that are sent as they are."""


class TeacherServer:
    """``/v1/completions`` over ``model``. ``faults`` are used up one per request, then answers are right."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.faults: list[Fault] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.under_way = self.most_under_way = 0
        self.delay = 0.0
        self.most_logprobs = 1000
        """what ``--max-logprobs`` would be, kept silently"""
        self.lock = threading.Lock()
        self.url = ""

    def reply(self, body: dict[str, Any]) -> Any:
        """What is sent back: a status code, bytes, or the answer's JSON."""
        with self.lock:
            self.requests.append(body)
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            fault = self.faults.pop(0) if self.faults else None
        try:
            time.sleep(self.delay)
            answer = {"choices": [self._choice(number, tokens, body) for number, tokens in enumerate(body["prompt"])]}
            changed = fault(answer) if fault else None
            return answer if changed is None else changed
        finally:
            with self.lock:
                self.under_way -= 1

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


@contextmanager
def serving(model: LanguageModel) -> Iterator[TeacherServer]:
    """A server on a free port of this machine, in threads of this process, until the end."""
    state = TeacherServer(model)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.headers.append({"path": self.path, **dict(self.headers)})
            reply = state.reply(body)
            status = reply if isinstance(reply, int) else 200
            data = reply if isinstance(reply, bytes) else json.dumps({"error": "no"} if isinstance(reply, int) else reply).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:  # the client gave up waiting
                pass

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
