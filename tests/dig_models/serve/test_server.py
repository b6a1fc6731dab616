"""Where a server may listen, and with what token."""

from __future__ import annotations

import socket

import pytest

from dig_models.serve.errors import CannotServe
from dig_models.serve.server import bind, check_host

TOKEN = "0123456789abcdef"  # noqa: S105


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_loopback_needs_no_token(host):
    check_host(host, "")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "shop.example", ""])  # noqa: S104
def test_any_other_host_needs_one(host):
    with pytest.raises(CannotServe, match=r"only loopback is served.*\$DIG_SERVE_TOKEN"):
        check_host(host, "")
    check_host(host, TOKEN)


def test_a_short_token_is_refused():
    with pytest.raises(CannotServe, match="has 3 characters; at least 16"):
        check_host("127.0.0.1", "abc")


@pytest.mark.parametrize("token", ["pässwörter-mit-umlauten", "sixteen spaces or so", "line\nline-line-line-line"])
def test_a_token_that_no_header_carries_is_refused(token):
    with pytest.raises(CannotServe, match="ASCII are expected, without spaces"):
        check_host("127.0.0.1", token)


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotServe, match=rf"serve\.port {port}: cannot be listened on"):
            bind("127.0.0.1", port)


def test_a_host_that_is_not_there_is_named():
    with pytest.raises(CannotServe, match="cannot be listened on"):
        bind("no-such-host.invalid", 0)
