"""Which names are this machine's own."""

from __future__ import annotations

import ipaddress
import re

_HEADER = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[0-9A-Za-z.-]+))(?::[0-9]*)?")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's own; other names than localhost are not looked up."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def names_loopback(header: str) -> bool:
    """Whether a ``Host`` header, ``name``, ``name:port`` or ``[address]:port``, names this machine's loopback."""
    found = _HEADER.fullmatch(header)
    return found is not None and is_loopback(found["six"] or found["name"])
