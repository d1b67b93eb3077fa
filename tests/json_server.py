"""A real HTTP server for tests: answers JSON by a rule, counts what is under way, and lets faults be put between."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar


class JsonServer:
    """What is asked and how much at once. ``faults`` are used up one per request, then answers are right."""

    def __init__(self) -> None:
        self.faults: list[Any] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.under_way = self.most_under_way = 0
        self.delay = 0.0
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
            return self.answer(body, fault)
        finally:
            with self.lock:
                self.under_way -= 1

    def answer(self, body: dict[str, Any], fault: Any) -> Any:
        """The right answer, or what ``fault`` makes of it."""
        raise NotImplementedError


Kind = TypeVar("Kind", bound=JsonServer)


@contextmanager
def listening(state: Kind) -> Iterator[Kind]:
    """``state`` on a free port of this machine, in threads of this process, until the end."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.headers.append({"path": self.path, **dict(self.headers)})
            reply = state.reply(body)
            data = reply if isinstance(reply, bytes) else json.dumps({"error": "busy"} if isinstance(reply, int) else reply).encode()
            try:
                self.send_response(reply if isinstance(reply, int) else 200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:  # the client gave up waiting
                pass

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
