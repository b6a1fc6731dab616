"""A real Redis server on loopback that keeps nothing, stopped by its pid, and all that it holds."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow_server import free_port
from redis import Redis
from redis.exceptions import RedisError

PROGRAM = shutil.which("redis-server")
needs_redis = pytest.mark.skipif(PROGRAM is None, reason="redis-server is not installed")


@contextmanager
def running(home: Path) -> Iterator[str]:
    """The address of a server."""
    port = free_port()
    command = [str(PROGRAM), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(home)]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        client, until = Redis(port=port), time.monotonic() + 30
        while not answers(client):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(timeout=30)


def answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


def everything(client: Redis) -> dict[bytes, object]:
    """Every key with its value."""
    kinds = {b"hash": client.hgetall, b"string": client.get, b"list": lambda key: client.lrange(key, 0, -1), b"set": client.smembers}
    return {key: kinds[client.type(key)](key) for key in client.keys("*")}
