"""Ports of the servers: fixed by the settings, or picked once and kept."""

from __future__ import annotations

import socket

from jobs.config import StackConfig
from ops.service import LOOPBACK, StackError

SERVICES = ("postgres", "redis", "mlflow", "airflow")


def taken(port: int) -> bool:
    """Whether somebody listens on a port of loopback."""
    with socket.socket() as probe:
        # Without this, connections of a server that has just stopped would make its port look taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return True
    return False


def free_port(besides: set[int]) -> int:
    """A port of loopback that nobody listens on."""
    while True:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            found = int(probe.getsockname()[1])
        if found not in besides:
            return found


def choose(config: StackConfig, kept: dict[str, int], running: set[str]) -> dict[str, int]:
    """Port of each service.

    Args:
        config: wanted ports; 0 leaves the choice to us.
        kept: ports of the last time.
        running: services that hold their kept port now.

    Raises:
        StackError: a port belongs to somebody else, or was changed while servers run.
    """
    chosen: dict[str, int] = {}
    for name in SERVICES:
        wanted, before = int(getattr(config, f"{name}_port")), kept.get(name, 0)
        chosen[name] = port = wanted or before
        if running and before and port != before:
            raise StackError(f"stack.{name}_port is {wanted}, but the stack that runs uses {before}: stop it first (make down)")
        if name in running:
            continue
        if port and not taken(port):
            continue
        if wanted or running:
            raise StackError(
                f"port {port} for {name} is taken by another process: stop that, or set stack.{name}_port to another (0: any free one)"
            )
        chosen[name] = free_port(set(chosen.values()) | set(kept.values()))
    return chosen
