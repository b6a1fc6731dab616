"""What a server of the stack is: how it is made ready, started, asked for its health and stopped."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

LOOPBACK = "127.0.0.1"


class StackError(RuntimeError):
    """The stack cannot do what was asked for a reason its user can act on; the message says what was found and what to do."""


def as_user(account: str | None) -> dict[str, Any]:
    """Arguments of ``subprocess`` that run a program as a system user, without the caller's groups; none for the caller himself."""
    return {} if account is None else {"user": account, "group": account, "extra_groups": []}


def _nothing() -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Service:
    """One server.

    Attributes:
        name: unique in the stack; the name of its log.
        command: starts it in the foreground.
        healthy: whether it answers; gets the time of its start in seconds since the epoch, so that a sign of life that its predecessor
            left does not count.
        environment: variables beyond those that every server gets.
        prepare: runs before each start, when all of ``needs`` are healthy; must be idempotent.
        needs: names of servers that must be healthy before it is prepared, and that are stopped after it.
        account: system user that runs it; None for the caller.
        stop_signal: asks it to end.
        patience: seconds that it gets to do so.
        url: address to show; no password in it.
    """

    name: str
    command: tuple[str, ...]
    healthy: Callable[[float], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[], None] = _nothing
    needs: tuple[str, ...] = ()
    account: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    patience: float = 15.0
    url: str = ""
