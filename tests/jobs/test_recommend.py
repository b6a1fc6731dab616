"""The batch job with real Spark: rows, marker, reruns, and what its gate refuses."""

from __future__ import annotations

import shutil

import pytest
import serve_world
import synthetic

from dig_models.index import generation as g
from dig_models.index.writer import locked, retain, switch
from dig_models.serve.service import Search, Service
from jobs import checks, runs
from jobs import recommend as recommend_module
from jobs.checks import GateFailed, check
from jobs.config import load
from jobs.entry import JobError, run
from jobs.lake import Lake
from jobs.recommend import COLUMNS, TABLE, _options, chosen, leased, main, recommend

DAY = synthetic.DAY
SETS = ["retrieve.beam=20", "retrieve.rerank=40", "serve.batch.k=6", "serve.batch.partitions=3"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Settings, and an index with a generation of the day that the index job says it built."""
    home = tmp_path_factory.mktemp("recommend")
    config = load(sets=[f"paths.home={home}", *SETS], environ={})
    world = serve_world.make(home, config.dataset.spec())
    runs.save(config, DAY, "index", {"index": {"generation": world.first}, "model": {"name": "dig", "version": "1"}})
    return config, world


def test_a_day_without_an_index_says_what_to_run(made):
    config, _ = made
    with pytest.raises(JobError, match=r"jobs\.index --date"):
        chosen(config, DAY.replace(day=1), None)


def test_a_generation_of_another_day_is_refused(made):
    config, world = made
    with pytest.raises(JobError, match="serves 2017-03-21; give --date 2017-03-21"):
        chosen(config, DAY, world.second)
    with pytest.raises(JobError, match="there is no generation"):
        chosen(config, DAY, "2017-03-20-v9-0123456789")


def gc(root):
    """Remove all that may be removed but what serves, as the next promotion does."""
    with locked(root):
        return retain(root, 1)


def test_the_generation_stays_until_the_job_is_through_with_it(made, tmp_path):
    config, world = made
    root = tmp_path / "index"
    shutil.copytree(world.root, root)
    config = config.model_copy(update={"paths": config.paths.model_copy(update={"index": str(root)})})
    switch(root, world.second)
    with leased(config, DAY, None) as manifest:
        assert manifest.id == world.first
        assert gc(root) == []
        assert Service.open(root, world.first, settings=config.retrieve).source.generation == world.first
    assert gc(root) == [world.first]
    with pytest.raises(JobError, match="there is no generation"), leased(config, DAY, None):
        pass


@pytest.mark.slow
def test_the_job_holds_the_generation_while_workers_may_open_it(made, spark, monkeypatch):
    """From before the lists are made until their gate has looked at them."""
    config, world = made
    switch(world.root, world.second)
    tried, make, look = [], recommend_module.frame, checks.check

    def before_the_lists(*given):
        tried.append(gc(world.root))
        return make(*given)

    def after_the_gate(*given, **more):
        report = look(*given, **more)
        tried.append(gc(world.root))
        return report

    monkeypatch.setattr(recommend_module, "frame", before_the_lists)
    monkeypatch.setattr(checks, "check", after_the_gate)
    try:
        assert recommend(config, DAY, spark).rows == 6 * len(serve_world.USERS)
    finally:
        switch(world.root, world.first)
    assert tried == [[], []]


@pytest.mark.slow
def test_every_user_gets_the_list_that_the_server_would_give_and_a_rerun_the_same_marker(made, spark):
    config, world = made
    options = [part for one in (f"paths.home={config.paths.home}", *SETS) for part in ("--set", one)]
    assert run("recommend", main, ["--config", "conf/local.yaml", "--date", DAY.isoformat(), *options], options=_options) == 0
    lake = Lake(config.paths.at("lake"))
    marker = recommend(config, DAY, spark)
    assert marker == lake.marker(TABLE, DAY)
    assert marker.inputs["index"] == {world.first: g.read_manifest(world.root, world.first).content}
    rows = lake.read_arrow(TABLE, [DAY]).to_pylist()
    assert marker.rows == len(rows) == 6 * len(serve_world.USERS)
    service = Service.open(world.root, world.first, settings=config.retrieve)
    for user in serve_world.USERS:
        own = sorted((r for r in rows if r["user_id"] == user), key=lambda r: r["place"])
        answer = service.retrieve([user], Search(k=6)).answers[0]
        assert [r["item_id"] for r in own] == [i.item_id for i in answer.items]
        assert [r["probability"] for r in own] == pytest.approx([i.probability for i in answer.items], abs=1e-5)


@pytest.mark.slow
def test_the_gate_refuses_lists_that_are_none(made, spark):
    config, _ = made
    spoilt = [
        ({"place": 7}, "place: expected in 1..6"),
        ({"item_id": ""}, "item_id: expected not null or empty"),
        ({"probability": float("nan")}, "probability: expected a probability"),
        ({"sid": "12-"}, "sid: expected codes such as 12-0-63"),
        ({"generation": "2017-03-21-v1-0123456789"}, "generation: expected of ds"),
        ({"user_id": "u1"}, "user_id, place: expected unique within the day"),
    ]
    row = {"user_id": "u", "place": 1, "item_id": "i1", "sid": "1-2-3", "probability": 0.5}
    row |= {"generation": "2017-03-20-v1-0123456789", "ds": DAY.isoformat()}
    rows = [row | {"user_id": f"u{n}"} | changes for n, (changes, _) in enumerate(spoilt)]
    staged = spark.createDataFrame([tuple(r.values()) for r in rows], COLUMNS)
    with pytest.raises(GateFailed) as refused:
        check(TABLE, staged, [DAY], config=config, lake=Lake(config.paths.at("lake")), spark=spark)
    said = str(refused.value)
    assert [says for _, says in spoilt if says not in said] == [], said
