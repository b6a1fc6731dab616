"""Index generations and answers on a lake and a bundle of real shape; the registry's answer is given."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import synthetic

from dig_models.bundle import items_to_arrow, save_bundle
from dig_models.features import hash_id
from dig_models.index import generation as g
from dig_models.index.reader import IndexReader
from dig_models.index.writer import switch
from jobs import index as job
from jobs import registry, runs
from jobs.answers import Recommender, rank, recommend
from jobs.config import Config, load
from jobs.entry import JobError, run
from jobs.lake import Lake, MissingPartition

DAY = date(2017, 11, 15)
USERS = [f"u{i}" for i in range(6)]
ITEMS = [f"i{i}" for i in range(50)]


@dataclass
class World:
    """Settings with a lake of one or more days, and who the registry says is champion."""

    config: Config
    champion: registry.ModelRef | None
    bundle: Path

    @property
    def root(self) -> Path:
        return job.index_root(self.config)

    def add_day(self, day: date, ids: list[str] = ITEMS) -> None:
        spec, lake = self.config.dataset.spec(), Lake(self.config.paths.at("lake"))
        items = synthetic.make_items(spec, ids)
        features = items_to_arrow(items, spec, np.zeros((len(items), 0), dtype=np.int64))
        for table, rows in (("item_features", features), ("user_state", synthetic.user_state(spec, items, USERS, day))):
            with lake.stage_files(table, day) as stage:
                pq.write_table(rows, stage.path / "part-0.parquet")
                stage.commit(rows=len(rows), job="test", code="", config="", inputs={})
        with lake.stage_files("cross_arrays", day) as stage:
            synthetic.write_crosses(stage.path, spec, items, USERS, day)
            stage.commit(rows=1, job="test", code="", config="", inputs={})

    def train(self, seed: int, version: str, day: date = DAY) -> None:
        spec = self.config.dataset.spec()
        items = synthetic.make_items(spec, ITEMS)
        self.bundle = self.bundle.with_name(f"bundle-{version}")
        save_bundle(self.bundle, synthetic.make_model(spec, items, seed=seed), items, {"date": day.isoformat()})
        self.champion = registry.ModelRef(name="dig", version=version, run_id="r", tags={"date": day.isoformat()})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> World:
    home = tmp_path_factory.mktemp("home")
    world = World(config=load(sets=[f"paths.home={home}"], environ={}), champion=None, bundle=home / "bundle")
    world.add_day(DAY)
    world.add_day(DAY + timedelta(days=1), [*ITEMS[2:], "cold"])
    world.train(1, "1")
    return world


@pytest.fixture
def world(trained: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """The trained world with an index of its own."""
    paths = trained.config.paths.model_copy(update={"index": str(tmp_path / "index"), "runs": str(tmp_path / "runs")})
    own = replace(trained, config=trained.config.model_copy(update={"paths": paths}))
    monkeypatch.setattr(registry, "find", lambda config, alias: own.champion if alias == "champion" else None)
    monkeypatch.setattr(registry, "fetch", lambda config, ref: own.bundle)
    return own


def main(world: World, *options: str) -> int:
    sets = [f"--set=paths.{name}={world.config.paths.at(name)}" for name in ("lake", "index", "runs")]  # type: ignore[arg-type]
    return run("index", job.main, [*options, *sets], options=job._options)


def publish(world: World, day: date = DAY, config: Config | None = None) -> job.Built:
    """Build the generation of a day with the champion and make it current, as a promotion does in the end."""
    config = config or world.config
    done = job.build_index(config, day, job.chosen(config, day, None))
    switch(job.index_root(config), done.generation)
    return done


def tree(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}


def test_a_generation_holds_the_catalogue_of_its_day_and_serves_nothing_yet(world: World) -> None:
    assert main(world, "--date", "2017-11-16") == 0
    assert g.current(world.root) is None
    kept = runs.read(world.config, DAY + timedelta(days=1), "index")
    switch(world.root, kept["index"]["generation"])
    reader = IndexReader.open(world.root)
    assert reader.manifest.date == DAY + timedelta(days=1)
    assert reader.item_row("cold") and not reader.item_row("i0")
    assert kept["index"]["generation"] == reader.manifest.id
    assert kept["index"]["items"] == len(ITEMS) - 1
    assert Path(kept["index"]["path"]).is_dir()
    assert kept["model"] == {"name": "dig", "version": "1"}
    assert {"collision_rate", "levels", "churn"} <= kept["sid"].keys()


def test_the_version_that_passed_the_gate_of_the_day_goes_before_the_champion(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    refs = {version: replace(world.champion, version=version) for version in ("1", "2", "3")}  # type: ignore[type-var]
    monkeypatch.setattr(registry, "get", lambda config, version: refs[version])
    assert job.chosen(world.config, DAY, None).version == "1"
    runs.save(world.config, DAY, "gate", {"version": "2", "passed": False})
    assert job.chosen(world.config, DAY, None).version == "1"
    runs.save(world.config, DAY, "gate", {"version": "2", "passed": True})
    assert job.chosen(world.config, DAY, None).version == "2"
    assert job.chosen(world.config, DAY, "3").version == "3"


def test_building_again_changes_no_byte(world: World) -> None:
    assert main(world, "--date", "2017-11-15") == 0
    before = tree(world.root), tree(Path(world.config.paths.at("runs")))
    assert main(world, "--date", "2017-11-15") == 0
    assert (tree(world.root), tree(Path(world.config.paths.at("runs")))) == before


def test_no_champion_yet_is_said_clearly(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.champion = None
    assert main(world, "--date", "2017-11-15") == 2
    assert "has no champion" in caplog.text
    assert g.current(world.root) is None


def test_a_day_older_than_current_is_refused(world: World, caplog: pytest.LogCaptureFixture) -> None:
    publish(world, DAY + timedelta(days=1))
    before = tree(world.root)
    assert main(world, "--date", "2017-11-15") == 2
    assert "serves 2017-11-16, a later day; a backfill leaves it alone" in caplog.text
    assert tree(world.root) == before
    assert main(world, "--date", "2017-11-15", "--allow-older") == 0
    assert [g.id_date(generation) for generation in g.generations(world.root)] == [DAY, DAY + timedelta(days=1)]


def test_a_day_before_the_one_the_champion_was_trained_for_is_refused(world: World) -> None:
    world.champion = replace(world.champion, tags={"date": "2017-11-20"})  # type: ignore[type-var]
    with pytest.raises(JobError, match="was trained for 2017-11-20, a later day"):
        publish(world)


def test_the_guard_holds_even_if_current_is_corrupt(world: World) -> None:
    later = publish(world, DAY + timedelta(days=1)).generation
    (world.root / g.GENERATIONS / later / g.MANIFEST).write_text("{")
    with pytest.raises(JobError, match="a later day"):
        publish(world)
    assert g.current(world.root) == later


@pytest.mark.parametrize("table", ["item_features", "user_state", "cross_arrays"])
def test_a_day_that_was_not_built_is_said_clearly(world: World, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = publish(world).generation
    whole = Lake.require

    def without(self: Lake, name: str, days: object) -> object:
        days = list(days)  # type: ignore[call-overload]
        return whole(self, name, [d.replace(year=2016) if name == table else d for d in days])

    monkeypatch.setattr(Lake, "require", without)
    with pytest.raises(MissingPartition, match=table):
        publish(world, DAY + timedelta(days=1))
    assert g.current(world.root) == first


def test_a_model_of_other_features_is_refused(world: World) -> None:
    dataset = world.config.dataset.model_copy(update={"user_fields": world.config.dataset.user_fields[:-1]})
    with pytest.raises(ValueError, match="feature spec"):
        publish(world, DAY, world.config.model_copy(update={"dataset": dataset}))
    assert g.current(world.root) is None


def test_a_damaged_champion_is_named_and_current_stays(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = publish(world).generation
    damaged = tmp_path / "damaged"
    shutil.copytree(world.bundle, damaged)
    (damaged / "model.safetensors").write_bytes(b"x")
    world.bundle = damaged
    assert main(world, "--date", "2017-11-16") == 2
    assert "model.safetensors: damaged" in caplog.text
    assert g.current(world.root) == first


def test_a_generation_that_fails_its_check_never_becomes_current(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = publish(world).generation
    real = job.build

    def damaged(root: Path, release: object) -> str:
        generation = real(root, release)  # type: ignore[arg-type]
        (root / g.GENERATIONS / generation / g.SID_TO_ITEMS).write_bytes(b"PAR1")
        return generation

    monkeypatch.setattr(job, "build", damaged)
    assert main(world, "--date", "2017-11-16") == 2
    assert g.current(world.root) == first


def test_an_index_on_an_object_store_is_refused(world: World) -> None:
    paths = world.config.paths.model_copy(update={"index": "s3://bucket/index"})
    with pytest.raises(JobError, match="atomic renames"):
        job.index_root(world.config.model_copy(update={"paths": paths}))


# ---- answers ---------------------------------------------------------------------------------------------------------


def test_recommended_products_are_real_ordered_and_named(world: World) -> None:
    generation = publish(world).generation
    answer = recommend(world.config, "u3", 7)
    assert (answer.generation, answer.model_version, answer.known, answer.note) == (generation, "1", True, "")
    assert [i.place for i in answer.items] == list(range(1, 8))
    assert len({i.item_id for i in answer.items} & set(ITEMS)) == 7
    assert all(i.name == f"Product {i.item_id}" for i in answer.items)
    chances = [i.probability for i in answer.items]
    assert chances == sorted(chances, reverse=True) and chances[-1] > 0 and chances[0] < 1
    assert answer.history and [p.day for p in answer.history] == sorted((p.day for p in answer.history), reverse=True)


def test_an_unknown_user_gets_products_and_is_told_why_these(world: World) -> None:
    publish(world)
    answer, again = (recommend(world.config, user, 5) for user in ("nobody", "nobody else"))
    assert not answer.known and "no history of this user" in answer.note
    assert len(answer.items) == 5 and answer.history == ()
    assert [i.item_id for i in answer.items] == [i.item_id for i in again.items]


def test_more_products_than_there_are_gives_what_can_be_reached(world: World) -> None:
    publish(world)
    assert 0 < len(recommend(world.config, "u1", 1000).items) <= len(ITEMS)
    with pytest.raises(JobError, match="expected at least 1"):
        recommend(world.config, "u1", 0)


def test_products_bought_before_can_be_left_out(world: World) -> None:
    publish(world)
    serving = Recommender.open(world.config)
    state, row = serving.reader.state, serving.reader.user_row("u2")
    assert row is not None
    bought = serving.reader.retriever.store.bought(hash_id("u2"), int(state.ts_B[row]))
    names = {str(serving.reader.bundle.items.id_N[b]) for b in bought}
    assert names and not names & {i.item_id for i in serving.recommend("u2", 20, exclude_bought=True).items}


def test_rank_agrees_with_the_order_of_recommend(world: World) -> None:
    publish(world)
    serving = Recommender.open(world.config)
    recommended = serving.recommend("u4", 6)
    ranked = serving.rank("u4", sorted(i.item_id for i in recommended.items))
    assert [i.item_id for i in ranked.items] == [i.item_id for i in recommended.items]
    for a, b in zip(ranked.items, recommended.items, strict=True):
        assert a.probability == pytest.approx(b.probability, rel=1e-5)


def test_unknown_items_are_listed(world: World) -> None:
    publish(world)
    with pytest.raises(JobError, match=r"rank: 2 of 3 items are not in the catalogue of index generation .*: nope, neither;"):
        rank(world.config, "u1", ["nope", "i3", "neither"])
    with pytest.raises(JobError, match="no items given"):
        rank(world.config, "u1", [])


def test_an_answer_without_an_index_says_what_to_do(world: World) -> None:
    with pytest.raises(JobError, match="no index was published yet"):
        recommend(world.config, "u1", 3)


def test_an_answer_from_a_corrupt_index_names_the_file(world: World) -> None:
    generation = publish(world).generation
    path = world.root / g.GENERATIONS / generation / g.TRIE / "token1.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(JobError, match=r"file trie/token1\.npy: expected \d+ bytes"):
        recommend(world.config, "u1", 3)


def test_a_user_whose_history_is_outside_the_catalogue_is_answered(world: World, make_state: Callable[[str], pa.Table]) -> None:
    with Lake(world.config.paths.at("lake")).stage_files("user_state", DAY + timedelta(days=2)) as stage:
        pq.write_table(make_state("2017-11-17"), stage.path / "part-0.parquet")
        stage.commit(rows=1, job="test", code="", config="", inputs={})
    spec, day = world.config.dataset.spec(), DAY + timedelta(days=2)
    lake, items = Lake(world.config.paths.at("lake")), synthetic.make_items(world.config.dataset.spec(), ITEMS)
    with lake.stage_files("item_features", day) as stage:
        pq.write_table(items_to_arrow(items, spec, np.zeros((len(items), 0), dtype=np.int64)), stage.path / "part-0.parquet")
        stage.commit(rows=len(ITEMS), job="test", code="", config="", inputs={})
    with lake.stage_files("cross_arrays", day) as stage:
        synthetic.write_crosses(stage.path, spec, items, USERS, day)
        stage.commit(rows=1, job="test", code="", config="", inputs={})
    publish(world, day)
    answer = recommend(world.config, "u0", 3)
    assert answer.known and answer.history == () and len(answer.items) == 3


@pytest.fixture
def make_state(world: World) -> Callable[[str], pa.Table]:
    """State of one user who only ever took items that are in no catalogue."""

    def make(ds: str) -> pa.Table:
        spec = world.config.dataset.spec()
        gone = synthetic.make_items(spec, ["gone-1", "gone-2"])
        return synthetic.user_state(spec, gone, ["u1", "u0"], date.fromisoformat(ds)).slice(1)

    return make


@pytest.mark.slow
def test_the_champion_of_a_real_registry_is_indexed(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    paths = world.config.paths.model_copy(update={"home": str(tmp_path / "home"), "lake": world.config.paths.at("lake")})
    config = world.config.model_copy(update={"paths": paths})
    with pytest.raises(JobError, match="has no champion"):
        publish(world, DAY, config)
    store = registry.client(config)
    run_id = store.create_run(registry.experiment_id(config)).info.run_id
    store.log_artifacts(run_id, str(world.bundle), "model/artifacts/bundle")
    store.create_registered_model(config.mlflow.model_name)
    source = f"{store.get_run(run_id).info.artifact_uri}/model"
    store.create_model_version(config.mlflow.model_name, source, run_id, tags={"date": DAY.isoformat(), "lineage": "l"})
    registry.set_alias(config, registry.CHAMPION, "1")
    done = publish(world, DAY, config)
    assert done.generation.startswith("2017-11-15-v1-")
    assert json.loads((job.index_root(config) / g.GENERATIONS / done.generation / g.MANIFEST).read_text())["model_version"] == "1"


def test_collisions_are_resolved_where_the_settings_say_so_and_stay_resolved_the_next_day(world: World) -> None:
    world.config = load(sets=[f"paths.{n}={world.config.paths.at(n)}" for n in ("lake", "runs", "index")], environ={})  # type: ignore[arg-type]
    spec, items = world.config.dataset.spec(), synthetic.make_items(world.config.dataset.spec(), ITEMS)
    world.bundle = world.bundle.with_name("bundle-crowded")
    save_bundle(world.bundle, synthetic.make_model(spec, items, levels=2, codes=9, seed=1), items, {"date": DAY.isoformat()})
    plain = g.read_manifest(world.root, publish(world).generation)
    assert plain.quality["collision_rate"] > 0
    index = world.config.index.model_copy(update={"resolve_collisions": True})
    resolving = world.config.model_copy(update={"index": index})
    first = IndexReader.open(world.root, publish(world, config=resolving).generation)
    assert first.manifest.quality["collision_rate"] < plain.quality["collision_rate"]
    second = IndexReader.open(world.root, publish(world, DAY + timedelta(days=1), resolving).generation)
    sids = [{str(item): reader.sid(row) for row, item in enumerate(reader.bundle.items.id_N) if row} for reader in (first, second)]
    alone = {item for item, sid in sids[0].items() if list(sids[0].values()).count(sid) == 1}
    assert {i: sids[1][i] for i in alone & sids[1].keys()} == {i: sids[0][i] for i in alone & sids[1].keys()}
