"""Two hosts on one machine: network namespaces joined by a cable of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Host:
    """A network namespace with one interface, ``eth0``."""

    name: str
    address: str

    def command(self, *words: str) -> list[str]:
        """``words`` as a command that runs on this host."""
        return ["ip", "netns", "exec", self.name, *words]

    def processes(self) -> list[int]:
        return [int(word) for word in _ip("netns", "pids", self.name).split()]


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other and nothing else; with the block their processes end and they vanish.

    Skips the test, with the reason, where the machine does not allow it.
    """
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    hosts = tuple(Host(f"gkd{os.getpid()}{end}", f"10.213.77.{number}") for number, end in ((1, "a"), (2, "b")))
    try:
        try:
            _join(*hosts)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine makes no network namespaces: {error.stderr.strip()}")
        yield hosts
    finally:
        for host in hosts:
            _remove(host)


def namespaces() -> list[str]:
    """Names of all network namespaces."""
    return [line.split()[0] for line in _ip("netns", "list").splitlines()]


def _join(one: Host, other: Host) -> None:
    for host in (one, other):
        _ip("netns", "add", host.name)
        _ip("-n", host.name, "link", "set", "lo", "up")
    _ip("-n", one.name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", other.name)
    for host in (one, other):
        _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
        _ip("-n", host.name, "link", "set", "eth0", "up")
    subprocess.run(one.command("true"), check=True, capture_output=True, text=True)


def _remove(host: Host) -> None:
    if host.name not in namespaces():
        return
    while processes := host.processes():  # one may have started another meanwhile
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    _ip("netns", "delete", host.name)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
