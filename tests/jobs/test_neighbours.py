"""The affinity cross from the lake to what is served: one matrix, fitted before the first example, and the same figures everywhere."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from benchmarks import negatives
from benchmarks import training as step_benchmark
from benchmarks.ablation_rows import ROWS
from benchmarks.ablation_runs import Place, Run, possible
from dig_models.affinity import Neighbours
from dig_models.bundle import NEIGHBOURS, Bundle, load_bundle
from dig_models.config import RetrieveConfig
from dig_models.crosses import CrossStore
from dig_models.evaluate.lists import recommend_all
from dig_models.evaluate.scoring import exposed_rows, rank_rows, score_rows
from dig_models.features import hash_id
from dig_models.index.verify import verify
from dig_models.index.writer import Release, build, locked, switch
from dig_models.serve.service import Search, Service
from dig_models.train.data import RequestTable, collate
from dig_models.train.distributed import process_group
from jobs import registry, runs
from jobs import train as train_job
from jobs.config import Config
from jobs.dataset_config import digest_of
from jobs.dates import days_between
from jobs.entry import JobError, run
from jobs.evaluate import _contender, evaluate
from jobs.lake import Lake, MissingPartition
from jobs.neighbours import neighbours
from jobs.pyfunc_model import predict
from jobs.train_inputs import TrainInputs, train_inputs
from tests.jobs import affinity_world as aw
from tests.jobs import evaluation_world as ew
from tests.jobs import train_world as tw

SAME = 1e-5
OPEN = 1


def trained(config: Config, *sets: str) -> Bundle:
    small = [f"model.{k}={v}" for k, v in ew.SMALL.items()]
    every = (f"paths.home={config.paths.home}", "evaluate.bootstrap=20", "train.backend=gloo", *small, *tw.SETS, *aw.SETS, *sets)
    argv = ["--date", aw.DAY.isoformat(), *(part for one in every for part in ("--set", one))]
    assert run("train", train_job.main, argv) == 0
    return load_bundle(Path(config.paths.at("checkpoints")) / aw.DAY.isoformat() / "bundle")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A lake; not to be changed."""
    return aw.build(tmp_path_factory.mktemp("affinity"))


@pytest.fixture(scope="module")
def bundle(config: Config) -> Bundle:
    """A model trained on it."""
    return trained(config)


@pytest.fixture(scope="module")
def service(config: Config, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Service:
    """What is published of the model, verified."""
    lake, root = Lake(config.paths.at("lake")), tmp_path_factory.mktemp("index")
    release = Release(
        day=aw.DAY,
        model_name="dig",
        model_version="1",
        bundle=load_bundle(Path(config.paths.at("checkpoints")) / aw.DAY.isoformat() / "bundle"),
        items=bundle.items,
        user_state=lake.read_arrow("user_state", [aw.DAY]),
        cross_arrays=lake.folder("cross_arrays", aw.DAY),
    )
    with locked(root):
        generation = build(root, release)
        verify(root, generation)
        switch(root, generation)
    return Service.open(root, settings=RetrieveConfig(beam=config.retrieve.beam, rerank=config.retrieve.rerank))


def weight(found: Neighbours, of: int, by: int) -> float:
    """What one item says for another."""
    v, h = (int(np.searchsorted(found.hash_N, hash_id(f"item-{i}"))) for i in (of, by))
    row = slice(int(found.start[v]), int(found.start[v + 1]))
    return float(found.weight_X[row][found.item_X[row] == h].sum())


def test_the_matrix_is_fitted_on_the_days_before_the_first_example_alone(config: Config, tmp_path: Path) -> None:
    inputs = train_inputs(config, aw.DAY)
    assert max(inputs.inputs["u2i_daily"]) == (inputs.window.train_first - timedelta(days=1)).isoformat()
    assert min(inputs.inputs["u2i_daily"]) == inputs.window.events_first.isoformat()
    events = ew.simulate(aw.DAY, 0)
    before = events[events[:, 2] < inputs.first_second]
    user_E, item_E = (np.array([hash_id(f"{name}-{i}") for i in before[:, at]]) for at, name in enumerate(("user", "item")))
    want = Neighbours.fit(np.array([hash_id(f"item-{i}") for i in range(ew.ITEMS)]), user_E, item_E, ridge=5.0, keep=100)
    found = neighbours(inputs, tmp_path / NEIGHBOURS)
    for name in ("hash_N", "start", "item_X"):
        np.testing.assert_array_equal(getattr(found, name), getattr(want, name))
    np.testing.assert_allclose(found.weight_X, want.weight_X, rtol=1e-6)


def test_a_training_that_was_cut_short_takes_the_matrix_that_is_there_and_no_other(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run" / NEIGHBOURS
    first = neighbours(train_inputs(config, aw.DAY), file)
    fits: list[float] = []
    fit = Neighbours.fit
    monkeypatch.setattr(Neighbours, "fit", lambda *a, ridge, keep: fits.append(ridge) or fit(*a, ridge=ridge, keep=keep))
    again = neighbours(train_inputs(config, aw.DAY), file)
    np.testing.assert_array_equal(again.weight_X, first.weight_X)
    assert fits == []
    neighbours(train_inputs(aw.settings(Path(config.paths.home), "model.affinity.ridge=7"), aw.DAY), file)
    file.write_bytes(file.read_bytes()[:-4])
    neighbours(train_inputs(config, aw.DAY), file)
    assert fits == [7.0, 5.0]
    assert [p.name for p in file.parent.iterdir()] == [NEIGHBOURS]


def test_rows_of_the_ablation_that_need_the_same_matrix_have_it_fitted_once(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[float] = []
    fit = Neighbours.fit
    monkeypatch.setattr(Neighbours, "fit", lambda *a, ridge, keep: fits.append(ridge) or fit(*a, ridge=ridge, keep=keep))
    sets = (f"paths.home={config.paths.home}", *tw.SETS, "model.affinity.enabled=false", "model.affinity.ridge=5")
    place = Place(config=tw.settings(Path(config.paths.home)), day=aw.DAY, settings=None, sets=sets, home=tmp_path / "ablation")
    want = neighbours(train_inputs(config, aw.DAY), tmp_path / NEIGHBOURS)
    for name, seed in (("affinity", 1), ("affinity", 2), ("affinity_popular", 1), ("dig", 1)):
        one = Run(place=place, row=ROWS[name], seed=seed)
        file = one.home / "checkpoints" / aw.DAY.isoformat() / NEIGHBOURS
        with one._with_neighbours():
            assert file.is_file() == (name != "dig")
            if name != "dig":
                found = neighbours(train_inputs(one.config, aw.DAY), file)  # as its training asks for it
                np.testing.assert_array_equal(found.weight_X, want.weight_X)
        assert not file.exists(), "a training that was done leaves it"
    assert fits == [5.0, 5.0], "one beforehand, one for all rows and seeds"
    assert len(list((place.home / "neighbours").iterdir())) == 1


def test_a_run_of_the_ablation_that_reads_the_affinity_is_done_again_when_its_events_are_others(config: Config, tmp_path: Path) -> None:
    shutil.copytree(Path(config.paths.at("lake")), tmp_path / "lake")

    def keys() -> dict[str, str]:
        """With the affinity off in the settings that all rows share."""
        sets = (f"paths.home={tmp_path}", *tw.SETS, "model.affinity.enabled=false")
        place = Place(config=tw.settings(tmp_path), day=aw.DAY, settings=None, sets=sets, home=tmp_path / "ablation")
        return {name: Run(place=place, row=ROWS[name], seed=1).key for name in ("dig", "affinity")}

    before, lake = keys(), Lake(str(tmp_path / "lake"))
    assert keys() == before
    first = train_inputs(config, aw.DAY).window.events_first
    ew.commit(lake, "u2i_daily", first, aw.daily(aw.pair_bought(0, 1, [first])))
    tw.stamp(lake, "u2i_daily", config.dataset.rows_digest())
    after = keys()
    assert after["affinity"] != before["affinity"] and after["dig"] == before["dig"]


@pytest.mark.slow
def test_the_bundle_holds_the_matrix_and_the_training_leaves_no_other(config: Config, bundle: Bundle, tmp_path: Path) -> None:
    fresh = neighbours(train_inputs(config, aw.DAY), tmp_path / NEIGHBOURS)
    assert bundle.model.neighbours is not None
    np.testing.assert_array_equal(bundle.model.neighbours.weight_X, fresh.weight_X)
    home = Path(config.paths.at("checkpoints")) / aw.DAY.isoformat()
    assert sorted(p.name for p in home.iterdir()) == ["bundle", "train.json"]
    assert float(bundle.model.norm_u2i.mean_SC[OPEN, -1]) > 0, "training saw an affinity that is not 0"
    assert runs.read(config, aw.DAY, "train")["inputs"]["u2i_daily"]


def test_days_that_are_missing_or_too_many_items_are_told_before_the_training(config: Config, tmp_path: Path) -> None:
    shutil.copytree(Path(config.paths.at("lake")), tmp_path / "lake")
    few = aw.settings(tmp_path, "model.affinity.max_items=79")
    with pytest.raises(JobError, match=r"hold 80 items, at most 79 expected.*model\.affinity\.enabled=false"):
        train_inputs(few, aw.DAY)
    day = train_inputs(config, aw.DAY).window.train_first - timedelta(days=3)
    shutil.rmtree(tmp_path / "lake" / "u2i_daily" / f"ds={day}")
    with pytest.raises(MissingPartition, match=f"table u2i_daily: 1 of .*{day}"):
        train_inputs(aw.settings(tmp_path), aw.DAY)


def test_too_few_days_before_the_first_example_are_told_before_the_training(config: Config) -> None:
    home, first = Path(config.paths.home), config.dataset.first_date

    def settings(days: int) -> Config:
        """So long a training that just these days are before it."""
        window = config.run_window(aw.DAY)
        return aw.settings(home, f"window.train_days={config.window.train_days + (window.train_first - first).days - days}")

    assert settings(28).run_window(aw.DAY).train_first == first + timedelta(days=28)
    with pytest.raises(MissingPartition, match="table examples"):  # enough of them; this lake has no examples of so long a training
        train_inputs(settings(28), aw.DAY)
    with pytest.raises(
        JobError,
        match=r"model\.affinity: 27 days of events before .* at least 28 expected.*window\.train_days.*model\.affinity\.enabled=false",
    ):
        train_inputs(settings(27), aw.DAY)
    off = tw.settings(home, f"window.train_days={settings(27).window.train_days}")
    with pytest.raises(MissingPartition, match="table examples"):
        train_inputs(off, aw.DAY)


def test_an_ablation_of_all_rows_does_without_the_affinity_where_the_catalogue_is_too_large_for_it(config: Config, tmp_path: Path) -> None:
    sets = (f"paths.home={config.paths.home}", *(f"model.{k}={v}" for k, v in ew.SMALL.items()), *tw.SETS)
    place = Place(config=tw.settings(Path(config.paths.home)), day=aw.DAY, settings=None, sets=sets, home=tmp_path)
    rows = [ROWS[name] for name in ("base", "dig", "affinity", "no_affinity")]
    assert possible(place, rows) == (rows, {})
    kept, left_out = possible(replace(place, sets=(*sets, "model.affinity.max_items=79")), rows)
    assert kept == [rows[0], rows[1], rows[3]] and "hold 80 items, at most 79 expected" in left_out["affinity"]


def test_with_the_setting_off_a_training_reads_nothing_more_and_has_the_lineage_it_had(config: Config) -> None:
    home = Path(config.paths.home)
    off, other = tw.settings(home), tw.settings(home, "model.affinity.ridge=3", "model.affinity.max_items=1")
    plain, changed = (train_inputs(one, aw.DAY) for one in (off, other))
    assert sorted(plain.inputs) == ["cross_arrays", "examples", "item_features"]
    assert plain.lineage(ranks=1, ancestor="") == changed.lineage(ranks=1, ancestor="")
    held = off.model_dump(mode="json", include={"model"})
    del held["model"]["affinity"]
    assert off.digest("model") == digest_of(held)
    lineages = {
        train_inputs(one, aw.DAY).lineage(ranks=1, ancestor="")
        for one in (off, aw.settings(home), aw.settings(home, "model.affinity.ridge=3"), aw.settings(home, "model.affinity.keep=3"))
    }
    assert len(lineages) == 4
    assert off.dataset.spec().digest == aw.settings(home).dataset.spec().digest
    assert off.dataset.rows_digest() == aw.settings(home).dataset.rows_digest(), "no partition of the lake is made anew"


@pytest.mark.slow
def test_the_benchmark_of_a_training_step_reads_the_affinity_as_training_does(config: Config) -> None:
    inputs = train_inputs(aw.settings(Path(config.paths.home)), aw.DAY)
    with process_group("gloo", 1) as world:
        found = step_benchmark.measure(inputs, world, steps=2, rounds=1)
        matrix = step_benchmark.item_neighbours(inputs, world)
        assert step_benchmark.item_neighbours(replace(inputs, config=tw.settings(Path(config.paths.home))), world) is None
    assert found["steps"] == 2 and found["median"]["streamed_ms"] > 0
    assert matrix is not None and len(matrix.item_X) > 0


@pytest.mark.slow
def test_zeros_of_the_affinity_are_one_more_feature_that_may_tell_negatives_apart(config: Config, bundle: Bundle) -> None:
    world = aw.world(Path(config.paths.home))
    requests = RequestTable.from_arrow(ew.examples(world, config.run_window(aw.DAY).eval_last), bundle.spec, bundle.items)
    few = aw.settings(Path(config.paths.home), "train.requests_per_batch=8", "train.random_negatives=8")
    store = CrossStore.open(Lake(config.paths.at("lake")).folder("cross_arrays", aw.DAY), bundle.spec, bundle.items)
    found = negatives.measure(few, bundle, requests, store, most=16)
    uniform, trained = found[negatives.UNIFORM], found[negatives.AS_TRAINED]
    key = uniform["keys"]["affinity"]
    assert 0 < key["never_met"]["negatives"] < 1 and key["ranking_path"]["open"] > 0.5
    assert trained["keys"]["affinity"]["never_met"]["negatives"] < key["never_met"]["negatives"]
    assert [len(of) for of in key["retrieval_path"].values()] == [bundle.model.config.levels] * 4
    assert uniform["own_crosses"]["exact"][-1] < 1


@pytest.mark.slow
def test_server_and_evaluation_score_the_same_request_alike(config: Config, bundle: Bundle, service: Service) -> None:
    world = aw.world(Path(config.paths.home))
    table = Lake(config.paths.at("lake")).read_arrow("user_state", [aw.DAY])
    contender = _contender("dig", bundle, bundle.codes_NL, bundle, world.store, config)
    requests, users = RequestTable.from_arrow(table, bundle.spec, bundle.items), table.column("user_id").to_pylist()
    ids = [str(i) for i in bundle.items.id_N[1:]]
    lists, _ = recommend_all([contender], requests, np.arange(len(users)), k=10)
    stored_BN, affinity = stored(bundle, world, table), bundle.model.affinity
    assert affinity is not None
    weighed = 0.0
    for at, user in enumerate(users):
        found = service.retrieve([user], Search(k=10)).answers[0].items
        assert [i.item_id for i in found] == [str(bundle.items.id_N[row]) for row in lists["all"]["dig"][at]]
        own = np.exp(contender.retriever.rank(requests, at, lists["all"]["dig"][at]).astype(np.float64))
        np.testing.assert_allclose([i.probability for i in found], own, atol=SAME)
        served = {i.item_id: i.probability for i in service.rank(user, ids).answers[0].items}
        np.testing.assert_allclose([served[i] for i in ids], stored_BN[at], atol=SAME)
        weighed = max(weighed, float(np.ptp(contender.retriever.catalogue(requests, at)[1:, -1])))
    assert weighed > 0.05, "the affinity differs between items, so that a path without it would be seen"


@torch.no_grad()
def stored(bundle: Bundle, world: ew.World, table: pa.Table) -> np.ndarray:
    """Probabilities ``(users, items)`` of stored rows, as training and evaluation compute them."""
    size, rows = len(bundle.items) - 1, []
    for row in table.to_pylist():
        pairs = [np.full(size, row[name], dtype=np.int64) for name in ("user_hash", "ts", "offer_hash")]
        cross = world.store.pairs(*pairs, np.arange(1, size + 1))
        lists = {"item": bundle.items.hash_N[1:].tolist(), "label": [0] * size, "source": [0] * size, "weight": [1.0] * size}
        rows.append(row | lists | {"cross": cross.ravel().tolist(), "request_id": f"r-{row['user_id']}"})
    examples = RequestTable.from_arrow(pa.Table.from_pylist(rows, schema=ew.example_schema(bundle.spec)), bundle.spec, bundle.items)
    model, given = bundle.model, {"spec": bundle.spec, "items": bundle.items, "keep_rate": 1.0, "affinity": bundle.model.affinity}
    batch = collate(examples, np.arange(len(rows)), lookup=never, **given)  # type: ignore[arg-type]
    e_RD, domain_R = model.encode_items(batch.item_R), torch.full_like(batch.request_R, OPEN)
    logit_R = model.rank_logit(model.user_side(batch), batch.request_R, e_RD, batch.cross_RC, domain_R)
    return torch.sigmoid(logit_R.double()).numpy().reshape(len(rows), size)


def never(*pairs: np.ndarray) -> np.ndarray:
    raise AssertionError(f"stored examples look up nothing, {len(pairs)} columns were asked for")


@pytest.mark.slow
def test_the_registered_model_scores_an_example_as_the_evaluation_does(config: Config, bundle: Bundle) -> None:
    world, day = aw.world(Path(config.paths.home)), config.run_window(aw.DAY).eval_last
    examples, spec = ew.examples(world, day), bundle.spec
    requests = RequestTable.from_arrow(examples, spec, bundle.items)
    contender = _contender("dig", bundle, bundle.codes_NL, bundle, world.store, config)
    rank_R = score_rows(contender.retriever, requests).rank_R
    np.testing.assert_allclose(rank_rows(bundle.model, requests, bundle.items), rank_R, atol=SAME)
    name = {int(h): str(i) for h, i in zip(bundle.items.hash_N[1:], bundle.items.id_N[1:], strict=True)}
    rows = []
    for row in examples.to_pylist():
        cross = np.array(row["cross"]).reshape(len(row["item"]), -1)
        past = {"history_item_ids": [name[h] for h in row["hist_item"]], "history_ts": row["hist_ts"], "ts": row["ts"]}
        fields = {f"u_{f.name}": row["user_id"] for f in spec.user_fields} | {
            f"c_{f.name}": str(day.weekday()) for f in spec.context_fields
        }
        shown = [at for at, source in enumerate(row["source"]) if source == 0]
        rows += [{**fields, **past, "item_id": name[row["item"][at]], "crosses": cross[at].tolist()} for at in shown]
    assert len(rows) == len(exposed_rows(requests).label_R) > 0
    found = predict(bundle, pd.DataFrame(rows))
    np.testing.assert_allclose(found["probability"], 1 / (1 + np.exp(-rank_R)), atol=SAME)


@pytest.mark.slow
def test_a_relation_of_items_that_lies_in_the_future_alone_changes_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find", lambda config, alias: None)
    window = aw.settings(tmp_path).run_window(aw.DAY)
    rare, other = 0, 1
    plants = {
        "none": None,
        "future": aw.pair_bought(rare, other, days_between(window.train_first, window.eval_last)),
        "past": aw.pair_bought(rare, other, days_between(window.train_first - timedelta(days=9), window.train_first - timedelta(days=1))),
    }
    figures, weights = {}, {}
    for name, planted in plants.items():
        config = aw.build(tmp_path / name, planted)
        found = trained(config)
        assert found.model.neighbours is not None
        weights[name] = weight(found.model.neighbours, rare, other)
        figures[name] = json.dumps(evaluate(config, aw.DAY), sort_keys=True)
    assert figures["future"] == figures["none"], "to the last digit, the lineage too"
    assert weights["future"] == weights["none"]
    # The same relation where it may be seen is found: had it leaked, it would have been seen.
    assert weights["past"] > weights["none"] + 0.1
    assert figures["past"] != figures["none"]


def test_inputs_of_the_matrix_are_inputs_of_the_training(config: Config) -> None:
    def lineage(inputs: TrainInputs) -> str:
        return inputs.lineage(ranks=1, ancestor="")

    inputs = train_inputs(config, aw.DAY)
    first = min(inputs.inputs["u2i_daily"])
    other = {**inputs.inputs, "u2i_daily": inputs.inputs["u2i_daily"] | {first: "another content"}}
    assert lineage(replace(inputs, inputs=other)) != lineage(inputs)
