"""Registration, promotion and fetching over HTTP, as on a cluster: a real MLflow server that keeps the artifacts."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from dig_models.bundle import load_bundle
from jobs import gate, registry, runs
from jobs.entry import Invocation, ServiceAway, run
from jobs.evaluate import evaluate
from jobs.register import register
from tests.jobs import evaluation_world as ew
from tests.mlflow_server import Server, free_port

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


@pytest.fixture
def started(tmp_path):
    """A server with its own store."""
    server = Server(tmp_path / "server")
    try:
        server.start()
        server.ready()
        yield server
    finally:
        server.stop()


@pytest.fixture
def server(started):
    return started.address


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
    with pytest.raises(ServiceAway, match=r"mlflow\.tracking_uri http://127\.0\.0\.1:\d+: registry does not answer .* run the same again"):
        registry.find(config, registry.CHAMPION)


CALLS = [
    lambda config: registry.find(config, registry.CHAMPION),
    registry.versions,
    lambda config: registry.get(config, "1"),
    lambda config: registry.set_alias(config, registry.CHALLENGER, "1"),
    lambda config: registry.tag(config, "1", "a", "b"),
    registry.experiment_id,
]


@pytest.mark.parametrize("call", CALLS)
def test_every_registry_call_names_a_server_that_is_away(tmp_path, monkeypatch, call):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ServiceAway, match="does not answer"):
        call(ew.settings(tmp_path, f"mlflow.tracking_uri=http://127.0.0.1:{free_port()}"))


def test_a_job_that_finds_the_server_away_ends_with_the_status_that_is_tried_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    def main(call: Invocation) -> None:
        registry.find(call.config, registry.CHAMPION)

    address = f"http://127.0.0.1:{free_port()}"
    sets = [f"--set=mlflow.tracking_uri={address}", f"--set=paths.home={tmp_path}"]
    assert run("ask", main, ["--config", "conf/local.yaml", "--date", str(ew.DAY), *sets]) == 1
    assert f"mlflow.tracking_uri {address}: registry does not answer" in caplog.text


def test_a_server_that_is_started_again_meanwhile_is_waited_for(started, tmp_path):
    config = ew.settings(tmp_path / "home", f"mlflow.tracking_uri={started.address}")
    store = registry.client(config)
    store.create_registered_model(config.mlflow.model_name)
    made = store.create_run(registry.experiment_id(config)).info
    store.create_model_version(config.mlflow.model_name, made.artifact_uri, made.run_id, tags={registry.RUN_DATE: str(ew.DAY)})
    registry.set_alias(config, registry.CHAMPION, "1")
    started.stop()
    found = []
    asking = threading.Thread(target=lambda: found.append(registry.find(config, registry.CHAMPION)))
    asking.start()
    started.start()
    asking.join(timeout=240)
    assert [ref.version for ref in found] == ["1"]


def test_an_outage_of_a_minute_is_outlasted_and_a_longer_one_does_not_hang_for_many(tmp_path):
    registry.client(ew.settings(tmp_path))
    retries, factor = int(registry.PATIENCE["MAX_RETRIES"]), int(registry.PATIENCE["BACKOFF_FACTOR"])
    waits = [0, *(factor * 2**n for n in range(1, retries))]
    assert 60 < sum(waits) < 120
    assert (retries + 1) * int(registry.PATIENCE["TIMEOUT"]) + sum(waits) < 7 * 60
