"""Train/serve skew: what Spark wrote into the lake against what the server answers over HTTP, on the same requests.

The generation of a day serves the day after. Users who come in the first second of that day are then the one case in which a row of
``examples`` and the published user state are the same request: same moment, same past, same context, same offers. So the examples of such
visits, with the crosses that Spark wrote, must score as the server scores them from the generation's own state and arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

import numpy as np
import pytest
import torch
from serve_world import Process

from dig_models.bundle import Bundle, load_bundle
from dig_models.crosses import CrossStore
from dig_models.index.writer import Release, build, locked, switch
from dig_models.items import ItemTable
from dig_models.train.data import RequestTable, collate
from jobs import runs
from jobs.config import Config
from jobs.dates import days_between
from jobs.index import index_root
from jobs.lake import Lake
from jobs.recommend import TABLE, recommend
from tests.jobs import evaluation_world as ew
from tests.jobs.feature_world import FIRST, LAST, World, config_of
from tests.jobs.test_feature_tables import call

pytestmark = pytest.mark.slow
DAY, NEXT = LAST - timedelta(days=1), LAST
OPEN = 1
SKEW = 1e-5
SEEN = 1e-3


def come_at_midnight(world: World) -> None:
    """Let every user come to a store on ``DAY``, buy there, and be back in the first second of ``NEXT``; nobody else comes then."""
    for name in ("requests", "interactions"):
        setattr(world, name, [row for row in getattr(world, name) if row["ds"] < DAY.isoformat()])
    noon, midnight = datetime(DAY.year, DAY.month, DAY.day, 12), datetime(NEXT.year, NEXT.month, NEXT.day)
    for number in range(6):
        user, store = f"u{number}", f"s{number % 3}"
        for ts, bought in ((noon, (number, (number + 4) % 10)), (midnight, (number, 9 - number))):
            asked = {"request_id": f"{user}@{ts}", "user_id": user, "ts": ts, "ds": ts.date().isoformat()}
            world.requests.append(asked | {"offer_key": store, "store_id": store})
            world.interactions += [asked | {"item_id": f"i{i}", "quantity": 1.0, "value": 2.5} for i in sorted(set(bought))]


class Trainable(ew.World):
    """What the bundle is trained on: the examples whose day the cross arrays reach."""

    def requests(self, days: list[date]) -> RequestTable:
        reached = self.config.run_window(DAY).train_first
        return super().requests([day for day in days if day >= reached])


@dataclass(frozen=True)
class Made:
    """A lake whose tables Spark wrote, a bundle trained on them, and the generation of ``DAY`` that serves."""

    config: Config
    lake: Lake
    bundle: Bundle
    generation: str


@pytest.fixture(scope="module")
def made(spark, tmp_path_factory) -> Made:
    home = tmp_path_factory.mktemp("skew")
    config = config_of(home, catalogue={"window_days": 6, "min_events": 1, "max_items": 50}, sampling={"exposed_negative_rate": 1.0})
    batch = config.serve.batch.model_copy(update={"k": 6, "partitions": 3})
    config = config.model_copy(update={"serve": config.serve.model_copy(update={"batch": batch})})
    world, lake, spec = World.make(), Lake(config.paths.at("lake")), config.dataset.spec()
    come_at_midnight(world)
    world.write(spark, lake)
    call("item_features", config, days_between(FIRST, DAY), events_from=FIRST)
    call("u2i_crosses", config, days_between(FIRST + timedelta(days=1), DAY), events_from=FIRST)
    call("examples", config, days_between(FIRST + timedelta(days=1), DAY))
    call("u2i_crosses", config, [NEXT], events_from=NEXT, arrays=False)
    call("examples", config, [NEXT])
    table, arrays = lake.read_arrow("item_features", [DAY]), lake.folder("cross_arrays", DAY)
    items = ItemTable.from_arrow(table, spec)
    store = CrossStore.open(arrays, spec, items)
    bundle = load_bundle(ew.train(Trainable(config, spec, table, items, np.zeros((0, 3)), store), DAY, steps=40), spec)
    release = Release(
        day=DAY,
        model_name="dig",
        model_version="1",
        bundle=bundle,
        items=items,
        user_state=lake.read_arrow("user_state", [DAY]),
        cross_arrays=arrays,
    )
    root = index_root(config)
    with locked(root):
        generation = build(root, release)
    switch(root, generation)
    runs.save(config, DAY, "index", {"index": {"generation": generation}, "model": {"name": "dig", "version": "1"}})
    return Made(config, lake, bundle, generation)


@pytest.fixture(scope="module")
def server(made: Made, tmp_path_factory):
    search = made.config.retrieve
    settings = [f"retrieve.beam={search.beam}", f"retrieve.rerank={search.rerank}"]
    options = [part for one in settings for part in ("--set", one)]
    with Process(index_root(made.config), tmp_path_factory.mktemp("log") / "log", tuple(options)) as process:
        yield process


@torch.no_grad()
def probabilities(bundle: Bundle, examples: RequestTable) -> np.ndarray:
    """Probability of every stored row as the ranking path of training and evaluation gives it, with the stored crosses."""
    model = bundle.model
    batch = collate(examples, np.arange(len(examples)), spec=bundle.spec, items=bundle.items, lookup=never, keep_rate=1.0)
    assert batch.item_R.tolist() == examples.item_R.tolist()
    e_RD = model.encode_items(batch.item_R)
    logit_R = model.rank_logit(model.user_side(batch), batch.request_R, e_RD, batch.cross_RC, torch.full_like(batch.request_R, OPEN))
    return torch.sigmoid(logit_R.double()).numpy()


def never(*pairs):
    raise AssertionError("stored examples look nothing up")


def stored(made: Made) -> tuple[list[str], RequestTable]:
    """Users of the examples of ``NEXT``, and these examples as Spark wrote them."""
    table = made.lake.read_arrow("examples", [NEXT])
    return table.column("user_id").to_pylist(), RequestTable.from_arrow(table, made.bundle.spec, made.bundle.items)


def test_the_server_scores_a_request_as_the_examples_that_spark_wrote_of_it(made: Made, server: Process, capsys) -> None:
    users, examples = stored(made)
    of_rows, worst, pairs = probabilities(made.bundle, examples), 0.0, 0
    for at, user in enumerate(users):
        rows = slice(int(examples.row_start[at]), int(examples.row_start[at + 1]))
        ids = [str(i) for i in made.bundle.items.id_N[examples.item_R[rows]]]
        answer = server.ask("rank", {"user": user, "items": ids}).json()["answers"][0]
        assert answer["known"], f"{user} came on {DAY}, so the generation holds a state"
        served = {i["item_id"]: i["probability"] for i in answer["items"]}
        assert served.keys() == set(ids)
        worst = max(worst, max(abs(served[i] - p) for i, p in zip(ids, of_rows[rows], strict=True)))
        pairs += len(ids)
    with capsys.disabled():
        print(f"\ntrain/serve skew, {len(users)} requests, {pairs} rows of examples, largest difference of a probability: {worst:.2e}")
    assert len(users) == 6 and pairs >= 30
    assert worst <= SKEW


def test_a_part_that_was_served_wrongly_would_be_seen(made: Made) -> None:
    """Every part that the two sides compute by themselves decides the probabilities of these requests."""
    _, examples = stored(made)
    whole, spec = probabilities(made.bundle, examples), made.bundle.spec
    head = len(spec.u2i_keys) * (len(spec.windows) + 1)
    tail = head + len(spec.windows)
    changed = {}
    for name, part in (("u2i", slice(0, head)), ("popularity", slice(head, tail)), ("offers", slice(tail, None))):
        cross_RW = examples.cross_RW.copy()
        assert cross_RW[:, part].any(), name
        cross_RW[:, part] = 0
        changed[name] = replace(examples, cross_RW=cross_RW)
    changed["profile and context"] = replace(examples, user_BF=np.zeros_like(examples.user_BF))
    changed["history"] = replace(
        examples,
        history_start=np.zeros_like(examples.history_start),
        history_item=examples.history_item[:0],
        history_ts=examples.history_ts[:0],
    )
    changed["age of the history"] = replace(examples, history_ts=examples.history_ts - 86400)
    shift = {name: float(np.abs(probabilities(made.bundle, table) - whole).max()) for name, table in changed.items()}
    assert min(shift.values()) > SEEN, shift


def test_the_lists_of_the_batch_job_are_those_of_the_server(made: Made, server: Process, spark) -> None:
    marker = recommend(made.config, DAY, spark)
    rows = made.lake.read_arrow(TABLE, [DAY]).to_pylist()
    users = sorted({row["user_id"] for row in rows})
    assert users == [f"u{number}" for number in range(6)]
    assert marker.rows == len(rows) == 6 * len(users)
    for user in users:
        own = sorted((row for row in rows if row["user_id"] == user), key=lambda row: row["place"])
        body = server.ask("retrieve", {"users": [user], "k": 6}).json()
        found = body["answers"][0]["items"]
        assert {row["generation"] for row in own} == {body["generation"]} == {made.generation}
        assert [(row["item_id"], row["sid"]) for row in own] == [(i["item_id"], "-".join(map(str, i["sid"]))) for i in found]
        assert max(abs(row["probability"] - i["probability"]) for row, i in zip(own, found, strict=True)) <= SKEW
