"""The page of runs that go on: served on this machine alone, it asks every few seconds for what was added."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from urllib.parse import parse_qs, urlsplit

from gkd_rl.console import Terminal
from gkd_rl.errors import UserError
from gkd_rl.report.page import as_data, report_page
from gkd_rl.report.reader import RunReader

HOST = "127.0.0.1"


class LiveServer(ThreadingHTTPServer):
    """``/`` is the page, ``/new?positions=[...]`` what each run has beyond those positions."""

    daemon_threads = True

    def __init__(self, runs: Sequence[RunReader], port: int) -> None:
        super().__init__((HOST, port), _Handler)
        self.runs = runs
        self.lock = Lock()
        """Readers serve one request at a time."""

    @property
    def names(self) -> tuple[str, ...]:
        """What a browser may call this server: another name is a page elsewhere that was pointed here."""
        return tuple(f"{host}:{self.server_port}" for host in (HOST, "localhost"))

    def page(self) -> str:
        with self.lock:
            return report_page(self.runs, live=True)

    def news(self, positions: Sequence[dict[str, int]]) -> str:
        with self.lock:
            pairs = list(zip(self.runs, positions, strict=True))
            if any(run.restarted(known) for run, known in pairs):
                return as_data({"restart": True})
            return as_data({"runs": [run.read(known) for run, known in pairs]})


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        if self.headers.get("Host") not in self.server.names:
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", "this server answers to its own address only\n")
            return
        asked = urlsplit(self.path)
        try:
            if asked.path == "/":
                self._answer(HTTPStatus.OK, "text/html", self.server.page())
            elif asked.path == "/new":
                self._answer(HTTPStatus.OK, "application/json", self.server.news(_positions(asked.query, len(self.server.runs))))
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", "there is only / and /new\n")
        except UserError as error:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", f"{error}\n")
        except ValueError:
            self._answer(HTTPStatus.BAD_REQUEST, "text/plain", "positions is a list of one mapping for each run\n")

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """A request every two seconds is nothing to tell."""


def _positions(query: str, count: int) -> list[dict[str, int]]:
    given = json.loads(parse_qs(query).get("positions", ["null"])[0])
    fits = isinstance(given, list) and len(given) == count and all(isinstance(part, dict) for part in given)
    if not fits or not all(isinstance(at, int) and at >= 0 for part in given for at in part.values()):
        raise ValueError
    return given


def serve(runs: Sequence[RunReader], port: int) -> None:
    """Serve until interrupted. Raises ``UserError`` if the port is taken."""
    try:
        server = LiveServer(runs, port)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--port {port} cannot be listened on ({reason}); choose another, or leave it out for a free one") from None
    with server:
        Terminal().say(f"report     http://{HOST}:{server.server_port}/   (follows the run; end with Ctrl-C)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
