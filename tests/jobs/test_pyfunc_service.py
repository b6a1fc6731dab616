"""A packaged generation: what it answers through MLflow, over HTTP, and what it does not hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import httpx
import numpy as np
import pandas as pd
import pytest
import serve_world
from mlflow_server import free_port

from dig_models.config import RetrieveConfig, ServeConfig
from dig_models.serve.service import InvalidQuery, Search, Service
from jobs import pyfunc_service as pyfunc
from jobs.config import load

SETTINGS = RetrieveConfig(beam=20, rerank=40, k=5)
LIMITS = {"max_k": 50, "max_users": 4, "max_items": 10, "max_beam": 100}
PARAMS = {"mode": "retrieve", "k": 5, "beam": 0, "exclude_bought": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return serve_world.make(tmp_path_factory.mktemp("pyfunc"), load(environ={}).dataset.spec())


@pytest.fixture(scope="module")
def service(world):
    return Service.open(world.root, settings=SETTINGS)


def expected(reply, place=0):
    return [i.item_id for i in reply.answers[place].items]


def test_rows_are_answered_in_their_order_each_with_its_own_items(service):
    rows = pd.DataFrame({"user_id": ["u1", "nobody", "u2"], "items": [None, ["i3", "gone", "i4"], float("nan")]})
    found = pyfunc.predict(service, rows, PARAMS, LIMITS)
    assert found["user_id"].tolist() == ["u1", "nobody", "u2"] and found["known"].tolist() == [True, False, True]
    assert found["item_ids"][0] == expected(service.retrieve(["u1"], Search(k=5)))
    assert sorted(found["item_ids"][1]) == ["i3", "i4"] and found["unknown_items"][1] == ["gone"]
    assert set(found["generation"]) == {service.source.generation} and set(found["model_version"]) == {"1"}
    assert all(len(a) == len(b) == len(c) for a, b, c in zip(found["item_ids"], found["sids"], found["probabilities"], strict=True))


def test_rank_puts_the_items_of_each_row_in_order(service):
    rows = pd.DataFrame({"user_id": ["u1", "u2"], "items": [["i3", "i4", "i5"], ["i9"]]})
    found = pyfunc.predict(service, rows, PARAMS | {"mode": "rank"}, LIMITS)
    assert found["item_ids"].tolist() == [expected(service.rank("u1", ["i3", "i4", "i5"])), ["i9"]]


@pytest.mark.parametrize(
    ("rows", "params", "says"),
    [
        ({"user_id": ["u1"]}, {"mode": "guess"}, "mode 'guess': expected retrieve or rank"),
        ({"user_id": ["u1"]}, {"mode": "rank"}, "no items given"),
        ({"user_id": ["u1"]}, {"k": 51}, "k: 51 asked, at most 50 allowed"),
        ({"user_id": ["u1"]}, {"k": 0}, "expected at least 1"),
        ({"user_id": ["u1"]}, {"beam": 101}, "beam: 101 asked"),
        ({"user_id": ["u1"] * 5}, {}, "rows: 5 asked, at most 4"),
        ({"user_id": ["u1"], "items": [["i"] * 11]}, {}, "items: 11 asked"),
    ],
)
def test_what_cannot_be_answered_is_said(service, rows, params, says):
    with pytest.raises(InvalidQuery, match=says):
        pyfunc.predict(service, pd.DataFrame(rows), PARAMS | params, LIMITS)


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    place = tmp_path_factory.mktemp("model") / "packaged"
    limits = ServeConfig(max_k=50, max_users=4, max_items=10, max_beam=100)
    assert pyfunc.package(world.root, place, SETTINGS, limits) == world.first
    return place


@pytest.mark.slow
def test_a_packaged_generation_holds_no_pickle_and_answers_as_the_core_does(folder, service):
    import mlflow

    assert not [p for p in folder.rglob("*") if p.suffix in (".pkl", ".pickle", ".pt", ".pth")]
    assert not [p for p in folder.rglob("*.py") if p.read_bytes().startswith(b"\x80")]
    model = mlflow.pyfunc.load_model(str(folder))
    assert model.metadata.metadata["generation"] == service.source.generation
    found = model.predict(model.input_example, params={"mode": "retrieve", "k": 4})
    assert found["item_ids"][0] == expected(service.retrieve([model.input_example["user_id"][0]], Search(k=4)))
    rows = pd.DataFrame({"user_id": ["u1"], "items": [["i3", "i4"]]})
    assert model.predict(rows, params={"mode": "rank"})["item_ids"][0] == expected(service.rank("u1", ["i3", "i4"]))
    with pytest.raises(FileExistsError, match="is there already"):
        pyfunc.package(service.reader.folder.parent.parent, folder, SETTINGS, ServeConfig())


@pytest.mark.slow
def test_mlflow_serves_a_packaged_generation_over_http(folder, service, tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder), "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    programs = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])  # noqa: PTH120
    environment = os.environ | {"PATH": programs, "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)  # the model brings its code
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=tmp_path, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 180
        while not alive(address):
            assert process.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.5)
        ask = {"dataframe_split": {"columns": ["user_id"], "data": [["u1"], ["nobody"]]}, "params": {"mode": "retrieve", "k": 3}}
        answer = httpx.post(f"{address}/invocations", json=ask, timeout=60)
        assert answer.status_code == 200, answer.text
        rows = answer.json()["predictions"]
        own = service.retrieve(["u1", "nobody"], Search(k=3))
        assert [row["item_ids"] for row in rows] == [expected(own), expected(own, 1)]
        np.testing.assert_allclose(rows[0]["probabilities"], [i.probability for i in own.answers[0].items], atol=1e-5)
        wrong = httpx.post(f"{address}/invocations", json=ask | {"params": {"mode": "guess"}}, timeout=60)
        assert wrong.status_code == 400 and "expected retrieve or rank" in json.dumps(wrong.json())
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def alive(address):
    try:
        return httpx.get(f"{address}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False
