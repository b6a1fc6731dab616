"""An index with two generations for all tests of serving; each test works on a copy of ``CURRENT``."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import serve_world
from fastapi.testclient import TestClient
from serve_world import ServeWorld

from dig_models.config import RetrieveConfig, ServeConfig
from dig_models.features import FeatureSpec
from dig_models.serve.app import create_app
from dig_models.serve.server import build

RETRIEVE = RetrieveConfig(beam=20, rerank=40, k=5)
Client = Callable[..., object]


@pytest.fixture(scope="session")
def made(spec: FeatureSpec, tmp_path_factory: pytest.TempPathFactory) -> ServeWorld:
    """Two generations; not to be changed."""
    return serve_world.make(tmp_path_factory.mktemp("serve"), spec)


@pytest.fixture
def world(made: ServeWorld, tmp_path: Path) -> ServeWorld:
    """A copy with a ``CURRENT`` of its own."""
    shutil.copytree(made.root, tmp_path / "index")
    return ServeWorld(tmp_path / "index", made.first, made.second)


@contextmanager
def client_of(root: Path, token: str = "", **settings: object) -> Iterator[TestClient]:
    """The application in this process, on an index that is open when the block begins, if there is one."""
    config = ServeConfig.model_validate({"poll_seconds": 3600.0, **settings})
    server = build(root, config, RETRIEVE, token)
    server.follower.look()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with TestClient(create_app(server), base_url="http://127.0.0.1:8000", headers=headers) as client:
        client.server = server  # type: ignore[attr-defined]
        yield client
