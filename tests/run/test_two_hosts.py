"""Training across two hosts, each with a network and an address of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from launching import torchrun
from network import Host, namespaces, two_hosts
from workbench import Outcome, check_folder

SAME = ("max_steps=2", "rollout.updates_per_pass=1", "evaluation.every=1", "engine.zero_stage=2")
PORT = "29511"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def one_host(run: Callable[..., Outcome], arithmetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes on one host."""
    folder = tmp_path_factory.mktemp("one") / "run"
    outcome = run("train", arithmetic, f"run_dir={folder}", *SAME, launcher=torchrun())
    assert outcome.status == 0, outcome.err
    return folder


@pytest.mark.parametrize("rendezvous", ["static", "c10d"])
def test_two_hosts_train_what_two_processes_train(
    environment: dict[str, str], arithmetic: Path, tmp_path: Path, one_host: Path, rendezvous: str
) -> None:
    folder = tmp_path / "run"
    with two_hosts() as hosts, ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(
                    host.command(sys.executable, *_torchrun(hosts, host, rendezvous), "train", str(arithmetic), f"run_dir={folder}", *SAME),
                    env={**environment, "GLOO_SOCKET_IFNAME": "eth0"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for host in hosts
        ]
        stack.callback(lambda: [process.kill() for process in started])
        said = [process.communicate(timeout=200) for process in started]
        assert [process.returncode for process in started] == [0, 0], said
    check_folder(folder, steps=2)
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        assert (folder / name).read_bytes() == (one_host / name).read_bytes()
    assert [out.count("greedy accuracy") for out, _ in said] == [1, 0], "the main process is on the first host"


def _torchrun(hosts: tuple[Host, Host], host: Host, rendezvous: str) -> list[str]:
    number = hosts.index(host)
    meeting = {
        "static": ["--node_rank", str(number), "--master_addr", hosts[0].address, "--master_port", PORT],
        "c10d": [
            *("--rdzv_backend", "c10d", "--rdzv_id", "test", "--rdzv_endpoint", f"{hosts[0].address}:{PORT}"),
            *("--rdzv_conf", f"is_host={1 - number}", "--local_addr", host.address),
        ],
    }[rendezvous]
    return ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", *meeting, "-m", "gkd_rl"]


def test_hosts_vanish_with_their_processes_also_after_an_error() -> None:
    with ExitStack() as stack, pytest.raises(ZeroDivisionError), two_hosts() as hosts:
        process = stack.enter_context(subprocess.Popen(hosts[1].command("sleep", "1000")))
        deadline = time.monotonic() + 10
        while not hosts[1].processes():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        raise ZeroDivisionError
    assert process.returncode == -9
    assert not {host.name for host in hosts} & set(namespaces())
