"""Failures reach the log and the webhook; a webhook that is away hides nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from dags.notify import Notifier
from tests.dags.contexts import Run, context


@pytest.fixture
def hook() -> Iterator[tuple[str, list[Any]]]:
    """A server that keeps what is posted to it."""
    got: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", got
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_failure_is_logged_and_posted(hook: tuple[str, list[Any]], capsys: pytest.CaptureFixture[str]) -> None:
    address, got = hook
    Notifier(webhook=address)(context(Run("2017-11-15"), exception=RuntimeError("no rows")))
    expected = {"event": "failed", "dag": "dig_x", "task": "some", "run": "manual__1", "date": "2017-11-15", "attempt": 2}
    assert got == [{**expected, "reason": "no rows", "log": "http://log"}]
    told = capsys.readouterr().out
    assert "dig_x.some failed in run manual__1 (attempt 2): no rows" in told


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/secret", "no url at all/secret"])
def test_a_webhook_that_is_away_is_said_without_its_address(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    Notifier(webhook=address)(context(exception=RuntimeError("no rows")))
    told = capsys.readouterr().out
    assert "did not take the message" in told
    assert "secret" not in told
