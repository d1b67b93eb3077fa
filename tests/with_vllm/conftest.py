"""Real vLLM servers for the tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_llama import WINDOW, saved

from gkd_rl.models.language_model import LanguageModel


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """``serve(model, *arguments)``: the address of a vLLM server on a free port."""
    started: list[subprocess.Popen] = []

    def serve(model: LanguageModel, *arguments: str, dev: bool = True, window: int = WINDOW) -> str:
        folder = saved(model, tmp_path_factory.mktemp("served"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--host", "127.0.0.1"]
        command += ["--port", str(port), "--dtype", "float32", "--max-model-len", str(window), "--enforce-eager", *arguments]
        command += ["--kv-cache-memory-bytes", str(2**27), "--gpu-memory-utilization", "0.05"]
        environment = {**os.environ, "VLLM_SERVER_DEV_MODE": str(int(dev)), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
        log = (folder / "log").open("w")
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        started.append(server)
        _wait(f"http://127.0.0.1:{port}", server, folder / "log")
        return f"http://127.0.0.1:{port}"

    yield serve
    for server in started:
        server.terminate()
    for server in started:
        server.wait(60)


def _wait(url: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(480):
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            assert server.poll() is None, log.read_text()[-3000:]
            time.sleep(0.5)
    raise AssertionError(f"the server did not start:\n{log.read_text()[-3000:]}")
