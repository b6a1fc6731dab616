"""Requests to the stack's own servers: JSON in, JSON out, never through a proxy."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class HttpError(RuntimeError):
    """A server refused a request.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def request(method: str, url: str, body: Any = None, *, token: str = "", timeout: float = 30.0) -> Any:
    """Answer of a server: what its JSON says, else its text.

    Raises:
        HttpError: an answer with an error status.
        OSError: no answer.
    """
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data=data, headers=headers, method=method)  # noqa: S310  # our own servers' addresses
    try:
        with _opener.open(asked, timeout=timeout) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")[:2000]
        raise HttpError(error.code, f"{method} {url}: {error.code} {said}") from None
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text


def answers(url: str) -> Any:
    """What a GET gives; None if nothing answers, or an error does."""
    try:
        return request("GET", url, timeout=5.0)
    except (HttpError, OSError):
        return None
