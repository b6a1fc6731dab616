"""Two hosts on this machine: network namespaces with an address each where root may make them, else two addresses of the loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

NETWORK = "192.0.2"  # reserved for documentation: never a host outside


@dataclass(frozen=True)
class Host:
    """Where a process can be started.

    Attributes:
        address: where the other host reaches it.
        inside: words before a command that start it there.
        interface: network interface of the address.
    """

    address: str
    inside: tuple[str, ...]
    interface: str


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    names = [f"dig{os.getpid()}{side}" for side in "ab"]
    if not _namespaces(names):
        yield Host("127.0.0.1", (), "lo"), Host("127.0.0.2", (), "lo")
        return
    try:
        for number, name in enumerate(names, start=1):
            _ip("-n", name, "addr", "add", f"{NETWORK}.{number}/24", "dev", name)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", name, "up")
        first, second = (Host(f"{NETWORK}.{n}", ("ip", "netns", "exec", name), name) for n, name in enumerate(names, start=1))
        yield first, second
    finally:
        for name in names:
            _ip("netns", "del", name)


def _namespaces(names: list[str]) -> bool:
    """Two namespaces with a cable between them; False where that is not allowed."""
    if os.geteuid() or not shutil.which("ip"):
        return False
    made = []
    try:
        for name in names:
            _ip("netns", "add", name)
            made.append(name)
        _ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
    except subprocess.CalledProcessError:
        for name in made:
            _ip("netns", "del", name)
        return False
    return True


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
