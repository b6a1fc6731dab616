"""A live stack for tests: real PostgreSQL, Redis, MLflow and Airflow on free ports, with the small data set; shared by a session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_shop import write_tiny_place

from ops.client import StackClient

PROJECT = Path(__file__).resolve().parent.parent
FREE_PORTS = {"mlflow_port": 0, "airflow_port": 0}


def ops(conf: Path, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m ops <command>`` with the settings in ``conf`` and none of the caller's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DIG_", "AIRFLOW"))}
    environment = kept | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    full = [sys.executable, "-m", "ops", command, "--config", str(conf), *options]
    return subprocess.run(full, cwd=conf.parent, env=environment, capture_output=True, text=True, check=False)


@contextmanager
def running(conf: Path) -> Iterator[StackClient]:
    """A stack of its own, started from nothing; stopped and removed at the end."""
    try:
        started = ops(conf, "up")
        assert started.returncode == 0, started.stderr
        yield StackClient.at(conf.parent / "home")
    finally:
        ended = ops(conf, "down", "--purge")
        assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Iterator[StackClient]:
    """The stack under ``$DIG_E2E_HOME``, which keeps running, else one of the session's own."""
    if home := os.environ.get("DIG_E2E_HOME"):
        yield StackClient.at(Path(home))
        return
    with running(write_tiny_place(tmp_path_factory.mktemp("live"), tiny_data, stack=FREE_PORTS)) as stack:
        yield stack
