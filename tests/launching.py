"""Running functions in several processes over gloo.

Run as a script it is one of those processes: ``python launching.py CALL RESULT``.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def run_ranks(count: int, function: Callable[..., Any], *arguments: Any, timeout: float = 200) -> list[Any]:
    """Results of ``function(*arguments)`` in ``count`` processes that find each other as under ``torchrun``, in the order of ranks.

    ``function`` is defined at the top of a module. Raises ``AssertionError`` with a process's error output if it fails, and
    ``TimeoutError`` if any has not ended after ``timeout`` seconds (a deadlock).
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "call").write_bytes(pickle.dumps((function, arguments)))
        started = [_start(folder, rank, count, port) for port in [free_port()] for rank in range(count)]
        try:
            _wait(folder, started, timeout)
        finally:
            for process in started:
                process.kill()
                process.wait()
        return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(count)]


def torchrun(count: int = 2) -> tuple[str, ...]:
    """What comes between the interpreter and ``-m MODULE`` to start ``count`` processes of it on this host."""
    return ("-m", "torch.distributed.run", "--nproc_per_node", str(count), "--master_addr", "127.0.0.1", "--master_port", str(free_port()))


def free_port() -> int:
    """A port that nobody listens to at present."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _start(folder: Path, rank: int, count: int, port: int) -> subprocess.Popen:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    with (folder / f"output-{rank}").open("w") as output:
        return subprocess.Popen(
            [sys.executable, __file__, str(folder / "call"), str(folder / f"result-{rank}")],
            env=_environment(MASTER_ADDR="127.0.0.1", **{name: str(value) for name, value in places.items()}),
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _wait(folder: Path, started: Sequence[subprocess.Popen], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while any(process.poll() is None for process in started):
        if any(process.poll() for process in started):
            break
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes did not end within {timeout} s\n{_outputs(folder)}")
        time.sleep(0.05)
    assert not any(process.poll() for process in started), _outputs(folder)


def _outputs(folder: Path) -> str:
    return "\n".join(f"--- {file.name}\n{file.read_text()[-4000:]}" for file in sorted(folder.glob("output-*")))


def _environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry)])
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **more}


def _be_one_process(call: str, result: str) -> None:
    function, arguments = pickle.loads(Path(call).read_bytes())
    Path(result).write_bytes(pickle.dumps(function(*arguments)))
    _leave()


def _leave() -> None:
    """Leave the group together, and the process without taking it apart: libraries' threads abort that now and then."""
    if "torch" in sys.modules:
        import torch.distributed as dist

        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.barrier()
            dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    _be_one_process(*sys.argv[1:])
