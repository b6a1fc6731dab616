"""Registration, promotion and fetching over HTTP, as on a cluster: a real MLflow server that keeps the artifacts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from dig_models.bundle import load_bundle
from jobs import gate, registry, runs
from jobs.entry import JobError
from jobs.evaluate import evaluate
from jobs.register import register
from tests.jobs import evaluation_world as ew

pytestmark = pytest.mark.slow
CURVES = {"curves": {"steps": [{"step": 1, "rank": 0.5}], "epochs": []}}
PASSING = (
    "gate.min_auc=0",
    "gate.calibration=[0,1000]",
    "gate.min_recall_over_popularity=0",
    "gate.min_new_recall_over_popularity=0",
    "gate.max_collision_rate=1",
    "gate.min_codes_used=0",
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def server(tmp_path):
    """Address of a server with its own store; stopped, with its workers, by process group."""
    port, home = free_port(), tmp_path / "server"
    home.mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--artifacts-destination", str(home / "artifacts")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (home / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        address = f"http://127.0.0.1:{port}"
        try:
            until = time.monotonic() + 180
            while not healthy(address):
                assert process.poll() is None, (home / "log").read_text()
                assert time.monotonic() < until, "the server did not answer in time"
                time.sleep(0.5)
            yield address
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=30)


def healthy(address):
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:  # noqa: S310
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def test_a_model_is_registered_promoted_and_fetched_through_a_server(server, tmp_path):
    world = ew.build(tmp_path / "home", f"mlflow.tracking_uri={server}", *PASSING)
    config = world.config
    ew.train(world, steps=6, lineage="a" * 64)
    assert registry.find(config, registry.CHAMPION) is None
    runs.save(config, ew.DAY, "train", {"steps": 1, "examples": 1, "ancestor": None, "inputs": {}} | CURVES)
    runs.save(config, ew.DAY, "evaluate", evaluate(config, ew.DAY))
    ref, new = register(config, ew.DAY)
    assert new
    assert isinstance(ref.version, str)
    assert register(config, ew.DAY) == (ref, False)
    runs.save(config, ew.DAY, "register", {"version": ref.version})
    assert gate.verdict(config, ew.DAY)["outcome"] == "passed"
    registry.set_alias(config, registry.CHAMPION, "1")
    champion = registry.find(config, registry.CHAMPION)
    assert champion.version == ref.version
    fetched = registry.fetch(config, champion)
    assert Path(config.paths.home).resolve() in fetched.parents
    assert load_bundle(fetched).info["lineage"] == "a" * 64
    assert registry.fetch(config, champion) == fetched
    assert [p.name for p in fetched.parent.iterdir()] == [fetched.name]


def test_a_server_that_does_not_answer_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = ew.settings(tmp_path, f"mlflow.tracking_uri=http://127.0.0.1:{free_port()}")
    with pytest.raises(JobError, match=r"http://127\.0\.0\.1:\d+: registry does not answer"):
        registry.find(config, registry.CHAMPION)
