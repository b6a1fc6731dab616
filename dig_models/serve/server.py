"""Runs the HTTP application on a socket of its own: loopback unless a token guards it, one process, one event loop."""

from __future__ import annotations

import gc
import logging
import socket
from pathlib import Path

import torch
import uvicorn

from dig_models.config import RetrieveConfig, ServeConfig
from dig_models.serve.app import Server, create_app
from dig_models.serve.engine import Engine
from dig_models.serve.errors import CannotServe
from dig_models.serve.follower import Follower
from dig_models.serve.hosts import is_loopback
from dig_models.serve.metrics import Metrics
from dig_models.serve.service import Service

log = logging.getLogger(__name__)
TOKEN = "DIG_SERVE_TOKEN"  # noqa: S105  # the name of the variable
SHORTEST_TOKEN = 16
DRAIN_SECONDS = 10


def build(root: Path, config: ServeConfig, retrieve: RetrieveConfig, token: str = "") -> Server:
    """Follower, engine and metrics of one server on one index; nothing runs yet but the engine's threads."""
    metrics = Metrics()

    def opener(generation: str) -> Service:
        service = Service.open(root, generation, settings=retrieve, checksums=config.checksums)
        service.warm()
        return service

    follower = Follower(root, opener, poll_seconds=config.poll_seconds, watcher=metrics)
    engine = Engine(
        lambda: follower.current,
        workers=config.workers,
        waiting=config.waiting,
        coalesce=config.coalesce,
        torch_threads=config.torch_threads,
        batched=metrics.batched,
    )
    metrics.watch(lambda: engine.waiting)
    return Server(config, retrieve, follower, engine, metrics, token)


def check_host(host: str, token: str) -> None:
    """Refuse what would answer strangers.

    Raises:
        CannotServe: another host than loopback without a token, or a token that is too short or cannot be sent.
    """
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise CannotServe(f"${TOKEN}: a header carries it, so letters, digits and signs of ASCII are expected, without spaces")
    if token and len(token) < SHORTEST_TOKEN:
        raise CannotServe(f"${TOKEN} has {len(token)} characters; at least {SHORTEST_TOKEN} expected, as from: openssl rand -hex 32")
    if not token and not is_loopback(host):
        raise CannotServe(
            f"serve.host {host}: without a token only loopback is served (127.0.0.1, ::1, localhost); set ${TOKEN} "
            "(openssl rand -hex 32), and put TLS in front: the token is sent with every request"
        )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        CannotServe: the address is in use, or not of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise CannotServe(f"serve.host {host}, serve.port {port}: cannot be listened on: {error.strerror or error}") from None


def serve(root: Path, config: ServeConfig, retrieve: RetrieveConfig, token: str = "") -> None:
    """Serve until SIGINT or SIGTERM; requests that are under way are answered first.

    Raises:
        CannotServe: see ``check_host`` and ``bind``.
    """
    check_host(config.host, token)
    listening = bind(config.host, config.port)
    torch.set_num_threads(config.torch_threads)
    app = create_app(build(root, config, retrieve, token))
    gc.freeze()  # what was imported stays: a collection after a switch need not look at it
    name, port = listening.getsockname()[:2]
    log.info("listening on http://%s:%d, opening what serves under %s", f"[{name}]" if ":" in name else name, port, root)
    settings = uvicorn.Config(
        app,
        log_config=None,  # its access log would hold what clients put into paths
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_keep_alive=75,
    )
    uvicorn.Server(settings).run(sockets=[listening])
