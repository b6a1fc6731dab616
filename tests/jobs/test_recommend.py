"""The batch job with real Spark: rows, marker, reruns, and what its gate refuses."""

from __future__ import annotations

import pytest
import serve_world
import synthetic

from dig_models.index import generation as g
from dig_models.serve.service import Search, Service
from jobs import runs
from jobs.checks import GateFailed, check
from jobs.config import load
from jobs.entry import JobError, run
from jobs.lake import Lake
from jobs.recommend import COLUMNS, TABLE, _options, chosen, main, recommend

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
