"""From a released model to answers over HTTP, in processes of their own: skew against the job's path, switches, signals."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from serve_world import PROJECT, Process

from dig_models.bundle import load_bundle
from dig_models.crosses import CrossStore
from dig_models.evaluate.lists import recommend_all
from dig_models.index import generation as g
from dig_models.index.reader import IndexReader
from dig_models.index.writer import Release, build, locked, switch
from dig_models.train.data import RequestTable, collate
from jobs import runs
from jobs.config import CONF_DIR, load
from jobs.evaluate import _contender
from jobs.index import index_root
from jobs.lake import Lake
from tests.integration.test_release import CURVES, GATE, TRAIN, step
from tests.jobs import evaluation_world as ew

pytestmark = pytest.mark.slow
log = logging.getLogger(__name__)
OPEN = 1
SKEW = 1e-5


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A world whose model went through evaluation, registry, gate, index and promotion; its settings file."""
    home = tmp_path_factory.mktemp("serving")
    world = ew.build(home / "home")
    ew.train(world, steps=12, lineage="a" * 64)
    ew.publishable(world)
    runs.save(world.config, ew.DAY, "train", TRAIN | CURVES)
    settings = home / "place.yaml"
    place = yaml.safe_load((CONF_DIR / "local.yaml").read_text())
    place |= {"paths": {"home": str(home / "home")}, "model": ew.SMALL, "gate": GATE, "evaluate": {"bootstrap": 20}}
    settings.write_text(yaml.safe_dump(place))
    assert [step(name, settings) for name in ("evaluate", "register", "gate", "index", "promote")] == [0] * 5
    return load(settings), settings


@pytest.fixture(scope="module")
def server(released, tmp_path_factory):
    config, settings = released
    with Process(index_root(config), tmp_path_factory.mktemp("log") / "log", ("--config", str(settings))) as process:
        yield process


def job_side(config):
    """What the evaluation job scores with: the trained bundle, the lake's cross arrays and user state."""
    lake = Lake(config.paths.at("lake"))
    bundle = load_bundle(f"{config.paths.at('checkpoints')}/{ew.DAY}/bundle", config.dataset.spec())
    store = CrossStore.open(lake.folder("cross_arrays", ew.DAY), bundle.spec, bundle.items)
    table = lake.read_arrow("user_state", [ew.DAY])
    return bundle, store, table, _contender("dig", bundle, bundle.codes_NL, bundle, store, config)


def test_the_job_and_the_server_score_the_same_user_alike(released, server, capsys):
    """Three paths of the job against HTTP: lists, the retriever's ranking, and a batch of examples with crosses looked up for them.

    Against crosses that Spark wrote, ``test_skew`` compares.
    """
    config, _ = released
    bundle, store, table, contender = job_side(config)
    requests, users = RequestTable.from_arrow(table, bundle.spec, bundle.items), table.column("user_id").to_pylist()
    ids = [str(i) for i in bundle.items.id_N[1:]]
    lists, _ = recommend_all([contender], requests, np.arange(len(users)), k=10)
    batched = stored_batch(bundle, store, table)
    worst = {"lists": 0.0, "examples": 0.0}
    for at, user in enumerate(users):
        ranked = server.ask("rank", {"user": user, "items": ids}).json()
        served = {i["item_id"]: i["probability"] for i in ranked["answers"][0]["items"]}
        found = server.ask("retrieve", {"users": [user], "k": 10}).json()["answers"][0]
        rows = lists["all"]["dig"][at]
        assert [i["item_id"] for i in found["items"]] == [str(bundle.items.id_N[row]) for row in rows]
        own = np.exp(contender.retriever.rank(requests, at, rows).astype(np.float64))
        worst["lists"] = max(worst["lists"], float(np.abs(own - [i["probability"] for i in found["items"]]).max()))
        of_batch = dict(zip(ids, batched[at], strict=True))
        worst["examples"] = max(worst["examples"], max(abs(of_batch[i] - p) for i, p in served.items()))
    with capsys.disabled():
        print(f"\ntrain/serve skew, {len(users)} users x {len(ids)} items, largest difference of a probability: ", end="")
        print(", ".join(f"{name} {value:.2e}" for name, value in worst.items()))
    assert max(worst.values()) <= SKEW


@torch.no_grad()
def stored_batch(bundle, store, table):
    """Probabilities ``(users, items)`` as training and evaluation compute them: examples of every item, their crosses looked up."""
    size, rows = len(bundle.items) - 1, []
    for row in table.to_pylist():
        pairs = [np.full(size, row[name], dtype=np.int64) for name in ("user_hash", "ts", "offer_hash")]
        cross = store.pairs(*pairs, np.arange(1, size + 1))
        lists = {"item": bundle.items.hash_N[1:].tolist(), "label": [0] * size, "source": [0] * size, "weight": [1.0] * size}
        rows.append(row | lists | {"cross": cross.ravel().tolist(), "request_id": f"r-{row['user_id']}"})
    examples = RequestTable.from_arrow(pa.Table.from_pylist(rows, schema=ew.example_schema(bundle.spec)), bundle.spec, bundle.items)
    model = bundle.model
    batch = collate(examples, np.arange(len(rows)), spec=bundle.spec, items=bundle.items, lookup=never, keep_rate=1.0)
    e_RD = model.encode_items(batch.item_R)
    logit_R = model.rank_logit(model.user_side(batch), batch.request_R, e_RD, batch.cross_RC, torch.full_like(batch.request_R, OPEN))
    return torch.sigmoid(logit_R.double()).numpy().reshape(len(rows), size)


def never(*pairs):
    raise AssertionError("stored examples look nothing up")


def other_generation(config):
    """A second generation of the same day: another version, without every tenth item, so that its answers differ."""
    bundle, _, table, _ = job_side(config)
    lake = Lake(config.paths.at("lake"))
    features = lake.read_arrow("item_features", [ew.DAY])
    kept = features.take([i for i in range(len(features)) if i % 10])
    release = Release(
        day=ew.DAY,
        model_name="dig",
        model_version="2",
        bundle=bundle,
        items=type(bundle.items).from_arrow(kept, bundle.spec),
        user_state=table,
        cross_arrays=lake.folder("cross_arrays", ew.DAY),
    )
    root = index_root(config)
    with locked(root):
        return build(root, release)


def test_switches_under_load_lose_no_request_and_sigterm_answers_what_is_under_way(released, tmp_path):
    config, settings = released
    root = index_root(config)
    first, second = g.current(root), other_generation(config)
    items = {n: set(IndexReader.open(root, n).bundle.items.id_N[1:]) for n in (first, second)}
    seen, wrong, stop = [], [], threading.Event()

    def ask(address, number):
        with httpx.Client(base_url=address, timeout=30) as client:
            while not stop.is_set():
                answer = client.post("/v1/retrieve", json={"users": [f"user-{number}"], "k": 80, "beam": 500})
                body = answer.json()
                if answer.status_code != 200 or {i["item_id"] for i in body["answers"][0]["items"]} != items[body["generation"]]:
                    wrong.append(body)
                seen.append((body["generation"], body["model"]["version"]))

    with Process(root, tmp_path / "log", ("--config", str(settings), "--set", "serve.poll_seconds=0.1")) as process:
        threads = [threading.Thread(target=ask, args=(process.address, n)) for n in range(4)]
        for thread in threads:
            thread.start()
        for turn in range(6):
            switch(root, (second, first)[turn % 2])
            time.sleep(1.0)
        stop.set()
        for thread in threads:
            thread.join()
        said = httpx.get(f"{process.address}/metrics").text
        stopped = process.process
    assert not wrong
    assert set(seen) == {(first, "1"), (second, "2")}
    assert "dig_serve_generations_open 1.0" in said
    assert stopped.returncode == 0
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert "user-" not in (tmp_path / "log").read_text()


def test_dig_serve_refuses_what_would_answer_strangers(released):
    _, settings = released
    command = [sys.executable, "-m", "jobs.cli", "serve", "--config", str(settings), "--host", "0.0.0.0", "--port", "0"]  # noqa: S104
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=120)
    assert done.returncode == 2 and "set $DIG_SERVE_TOKEN" in " ".join(done.stderr.split())


def test_a_token_from_the_environment_guards_the_server(released, tmp_path):
    config, settings = released
    token = "a-token-of-thirty-two-characters"  # noqa: S105
    with Process(index_root(config), tmp_path / "log", ("--config", str(settings)), {"DIG_SERVE_TOKEN": token}) as process:
        ask = {"users": ["user-1"]}
        assert process.ask("retrieve", ask).status_code == 401
        assert process.ask("retrieve", ask, headers={"authorization": f"Bearer {token}"}).status_code == 200
    assert token not in (tmp_path / "log").read_text()
