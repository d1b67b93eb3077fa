"""The page of a run that goes on: what its server answers, and to whom."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from run_folders import metrics_row, rollout, write_answers, write_rows, write_run

from gkd_rl.report.chunks import unpacked
from gkd_rl.report.reader import RunReader
from gkd_rl.report.serve import LiveServer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", steps=10, finished=False)


@pytest.fixture
def server(folder: Path) -> Iterator[LiveServer]:
    with LiveServer([RunReader(folder)], 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def _get(server: LiveServer, path: str, host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def _new(server: LiveServer, positions: object) -> tuple[int, str]:
    return _get(server, f"/new?positions={quote(json.dumps(positions))}")


def test_the_page_may_ask_its_own_server_alone(server: LiveServer):
    status, page = _get(server, "/")
    assert status == 200 and "connect-src 'self'" in page and '"live":true' in page
    assert server.server_address[0] == "127.0.0.1"


def test_what_was_added_is_handed_out_once(server: LiveServer, folder: Path):
    positions = RunReader(folder).read({})["positions"]
    with (folder / "metrics.jsonl").open("a") as log:
        log.write(json.dumps(metrics_row(11)) + "\n" + '{"step": 12')
    with (folder / "rollouts.jsonl").open("a") as log:
        log.write(json.dumps(rollout(11, 3, 0)) + "\n")
    status, text = _new(server, [positions])
    (run,) = json.loads(text)["runs"]
    assert status == 200 and run["metrics"]["step"] == [11] and run["chunks"][0]["rows"] == 1
    (run,) = json.loads(_new(server, [run["positions"]])[1])["runs"]
    assert run["metrics"]["step"] == [] and run["chunks"] == []


def test_answers_are_handed_out_when_an_evaluation_is_over(server: LiveServer, folder: Path):
    positions = RunReader(folder).read({})["positions"]
    write_answers(folder, [0, 1], [1, 1])
    (folder / "evaluation-after.jsonl").rename(folder / "later")
    (run,) = json.loads(_new(server, [positions])[1])["runs"]
    assert list(run["answers"]) == ["before"] and len(unpacked(run["answers"]["before"])) == 2
    (folder / "later").rename(folder / "evaluation-after.jsonl")
    (run,) = json.loads(_new(server, [run["positions"]])[1])["runs"]
    assert list(run["answers"]) == ["after"] and [row["right"] for row in unpacked(run["answers"]["after"])] == [True, True]
    (run,) = json.loads(_new(server, [run["positions"]])[1])["runs"]
    assert run["answers"] == {}


def test_a_run_that_was_set_back_makes_the_page_start_anew(server: LiveServer, folder: Path):
    positions = RunReader(folder).read({})["positions"]
    write_rows(folder / "metrics.jsonl", [metrics_row(1)])
    assert json.loads(_new(server, [positions])[1]) == {"restart": True}


@pytest.mark.parametrize("positions", [None, {}, [], [{}, {}], [{"metrics.jsonl": -1}], [{"metrics.jsonl": "1"}]])
def test_positions_that_make_no_sense_are_refused(server: LiveServer, positions: object):
    assert _new(server, positions)[0] == 400


def test_pages_elsewhere_cannot_read_a_run(server: LiveServer):
    assert _get(server, "/", host=f"localhost:{server.server_port}")[0] == 200
    for name in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1"):
        status, text = _get(server, "/", host=name)
        assert status == 403 and "prompt" not in text


def test_there_is_nothing_else(server: LiveServer):
    for path in ("/config.yaml", "/../run/config.yaml", "/new", "/new?positions=x"):
        assert _get(server, path)[0] in (400, 404)


def test_a_damaged_log_is_said_to_the_page(server: LiveServer, folder: Path):
    (folder / "metrics.jsonl").write_text("nonsense\n")
    status, text = _new(server, [{}])
    assert status == 500 and "line 1: not a JSON object" in text
