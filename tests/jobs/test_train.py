"""``python -m jobs.train``: what it reads, what it leaves, what it refuses."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch

from dig_models.bundle import Bundle, load_bundle
from dig_models.config import LAUNCH
from dig_models.features import bucket_of, hash_id
from dig_models.items import ItemTable
from dig_models.quantize.known import KnownSids, read_sids, write_sids
from dig_models.train.warm import between, rename_codes, unaligned
from jobs import runs
from jobs.config import Config
from jobs.entry import JobError
from jobs.lake import MARKER, Lake, MissingPartition
from jobs.train_inputs import train_inputs
from tests.jobs import train_world as tw


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("lake")
    tw.build(home)
    return home


@pytest.fixture
def config(built: Path, tmp_path: Path) -> Config:
    """A copy of the lake, to damage at will."""
    shutil.copytree(built / "lake", tmp_path / "lake")
    return tw.settings(tmp_path)


def day_files(config: Config, table: str, back: int) -> list[Path]:
    return sorted(Lake(config.paths.at("lake")).folder(table, tw.before(back)).glob("*.parquet"))


def test_the_inputs_are_the_training_window_without_the_evaluation_days(config: Config) -> None:
    found = train_inputs(config, tw.DAY)
    assert sorted(found.inputs["examples"]) == [tw.before(n).isoformat() for n in range(9, 1, -1)]
    assert (len(found.fit), len(found.validation)) == (6, 2)
    assert sorted(found.inputs["item_features"]) == [tw.before(n).isoformat() for n in range(10, -1, -1)]
    assert found.inputs["cross_arrays"].keys() == {tw.DAY.isoformat()}


def test_the_lineage_follows_data_settings_ranks_and_ancestor_and_nothing_else(config: Config) -> None:
    found = train_inputs(config, tw.DAY)
    lineage = found.lineage(ranks=1, ancestor="")
    assert train_inputs(config, tw.DAY).lineage(ranks=1, ancestor="") == lineage
    assert train_inputs(tw.settings(Path(config.paths.home), "spark.driver_memory=1g"), tw.DAY).lineage(ranks=1, ancestor="") == lineage
    others = [
        found.lineage(ranks=2, ancestor=""),
        found.lineage(ranks=1, ancestor="x"),
        found.lineage(ranks=1, ancestor="", aligned_to="x"),
        train_inputs(tw.settings(Path(config.paths.home), "train.lr=0.1"), tw.DAY).lineage(ranks=1, ancestor=""),
    ]
    assert len({lineage, *others}) == 5


def test_where_processes_meet_does_not_change_the_lineage(config: Config) -> None:
    """A training that goes on with another rendezvous, or with its ranks on fewer hosts, keeps its checkpoints."""
    sets = ("hosts=2", "ranks=4", "rendezvous=other:1", "address=h1", "max_restarts=5", "join_minutes=1", "lost_seconds=60")
    assert {one.partition("=")[0] for one in sets} == LAUNCH
    moved = tw.settings(Path(config.paths.home), *(f"train.{one}" for one in sets))
    assert train_inputs(moved, tw.DAY).lineage(ranks=8, ancestor="") == train_inputs(config, tw.DAY).lineage(ranks=8, ancestor="")


@pytest.mark.parametrize("table", ["examples", "item_features", "cross_arrays"])
def test_a_missing_partition_is_named_with_what_builds_it(config: Config, table: str) -> None:
    back = {"examples": 5, "item_features": 2, "cross_arrays": 0}[table]
    shutil.rmtree(Lake(config.paths.at("lake")).day_dir(table, tw.before(back)))
    with pytest.raises(MissingPartition, match=f"table {table}: 1 of .*{tw.before(back)}"):
        train_inputs(config, tw.DAY)


def test_a_data_set_that_grows_still_trains_as_before(config: Config) -> None:
    grown = tw.settings(Path(config.paths.home), "dataset.last_date=2030-12-31", "dataset.default_date=2030-12-31")
    assert train_inputs(grown, tw.DAY).lineage(ranks=1, ancestor="") == train_inputs(config, tw.DAY).lineage(ranks=1, ancestor="")


@pytest.mark.parametrize("other", ["dataset.sampling.exposed_negative_rate=0.5", "dataset.u2i.windows=[7]"])
def test_partitions_of_another_sampling_or_other_windows_are_refused(config: Config, other: str) -> None:
    with pytest.raises(JobError, match="other data-set settings"):
        train_inputs(tw.settings(Path(config.paths.home), other), tw.DAY)


def test_partitions_of_other_data_set_settings_are_refused(config: Config) -> None:
    other = tw.settings(Path(config.paths.home), "dataset.history.length=7")
    with pytest.raises(JobError, match=r"table examples: 8 of 8 days.*other data-set settings.*jobs.examples"):
        train_inputs(other, tw.DAY)


def rewrite(config: Config, change: object) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for back in range(2, 10):
        for file in day_files(config, "examples", back):
            table = pq.read_table(file, partitioning=None)
            labels = change(table.column("label").to_pylist(), back)  # type: ignore[operator]
            at = table.column_names.index("label")
            pq.write_table(table.set_column(at, "label", pa.array(labels, pa.list_(pa.int8()))), file)


def test_a_window_without_a_catalogue_names_the_setting(config: Config) -> None:
    lake = Lake(config.paths.at("lake"))
    for day in lake.days("item_features"):
        path = lake.day_dir("item_features", day) / MARKER
        path.write_text(json.dumps(json.loads(path.read_text()) | {"rows": 0}))
    with pytest.raises(JobError, match=r"hold no item: none had \d+ events in \d+ days; set catalogue\.min_events"):
        train_inputs(config, tw.DAY)


def test_a_window_without_positives_is_refused(config: Config) -> None:
    rewrite(config, lambda labels, back: [[0] * len(v) for v in labels])
    with pytest.raises(JobError, match="hold no positive"):
        train_inputs(config, tw.DAY)


def test_one_day_without_positives_is_no_hindrance(config: Config) -> None:
    rewrite(config, lambda labels, back: [[0] * len(v) for v in labels] if back == 7 else labels)
    assert len(train_inputs(config, tw.DAY).fit) == 6


def test_a_truncated_file_is_named(config: Config) -> None:
    file = day_files(config, "examples", 9)[0]
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(JobError, match=file.name):
        train_inputs(config, tw.DAY)


def trained(config: Config, *sets: str, day: object = tw.DAY) -> int:
    from jobs import train
    from jobs.entry import run

    small = [f"paths.home={config.paths.home}", *(f"model.{k}={v}" for k, v in tw.ew.SMALL.items()), *tw.SETS, *sets]
    argv = ["--date", str(day), *(part for one in small for part in ("--set", one))]
    return run("train", train.main, argv)


@pytest.mark.slow
def test_a_training_leaves_bundle_record_and_mlflow_run_and_is_done_only_once(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    from jobs import registry

    assert trained(config) == 0
    home = Path(config.paths.at("checkpoints")) / tw.DAY.isoformat()
    report = runs.read(config, tw.DAY, "train")
    bundle = load_bundle(home / "bundle", config.dataset.spec())
    assert bundle.info["lineage"] == report["lineage"] == train_inputs(config, tw.DAY).lineage(ranks=1, ancestor="")
    assert (bundle.codes_NL[1:] >= 0).all() and len(bundle.items) == tw.ew.ITEMS + 1
    assert report["examples"] > 0 and report["steps"] > 0 and 0 <= report["wait_share"] < 1 and report["peak_rss_bytes"] > 1e8
    assert report["curves"]["steps"][-1]["step"] == report["curves"]["epochs"][-1]["step"] == report["steps"]
    assert report["validation"]["rank_exposed_auc"] > 0.5 and report["ancestor"] is None
    assert sorted(p.name for p in home.iterdir()) == ["bundle", "train.json"]
    client = registry.client(config)
    run = client.get_run(report["mlflow_run_id"])
    assert run.info.status == "FINISHED" and run.data.tags["dig.date"] == tw.DAY.isoformat()
    assert [m.step for m in client.get_metric_history(run.info.run_id, "total")] == [e["step"] for e in report["curves"]["steps"]]

    before = (home / "bundle" / "model.safetensors").stat().st_mtime_ns
    (runs.run_dir(config, tw.DAY) / "train.json").unlink()
    caplog.set_level("INFO")
    assert trained(config) == 0
    assert "trained already" in caplog.text
    assert (home / "bundle" / "model.safetensors").stat().st_mtime_ns == before
    assert runs.read(config, tw.DAY, "train") == report
    assert len(client.search_runs([run.info.experiment_id])) == 1


@pytest.mark.slow
def test_the_same_settings_give_the_same_model_anew_and_other_settings_another(config: Config) -> None:
    bundle = Path(config.paths.at("checkpoints")) / tw.DAY.isoformat() / "bundle"
    weights = []
    for sets in ((), (), ("train.lr=0.01",)):
        assert trained(config, *sets) == 0
        weights.append((bundle / "model.safetensors").read_bytes())
        shutil.rmtree(bundle) if not sets and len(weights) == 1 else None
    assert weights[0] == weights[1] != weights[2]
    assert not list(bundle.parent.glob(".*")), "nothing half-written stays"


def promoted(config: Config, day: date, version: str = "1") -> Bundle:
    """Register the model of a day as promoted."""
    from jobs import registry

    path = Path(config.paths.at("checkpoints")) / day.isoformat() / "bundle"
    bundle = load_bundle(path)
    client, name = registry.client(config), config.mlflow.model_name
    run = client.create_run(registry.experiment_id(config))
    client.log_artifacts(run.info.run_id, str(path), registry.BUNDLE)
    if version == "1":
        client.create_registered_model(name)
    tags = {registry.RUN_DATE: str(day), registry.LINEAGE: bundle.info["lineage"], registry.PROMOTED_ON: str(day)}
    assert str(client.create_model_version(name, run.info.artifact_uri, run.info.run_id, tags=tags).version) == version
    return bundle


def bundle_of(config: Config, day: date) -> Bundle:
    return load_bundle(Path(config.paths.at("checkpoints")) / day.isoformat() / "bundle")


@pytest.mark.slow
def test_the_next_date_starts_from_the_promoted_model_and_keeps_its_codes(tmp_path: Path) -> None:
    config = tw.build(tmp_path, days=(tw.before(1), tw.DAY))
    assert trained(config, day=tw.before(1)) == 0
    assert runs.read(config, tw.before(1), "train")["alignment"] is None, "there is nothing to align with yet"
    first = promoted(config, tw.before(1))

    assert trained(config, "model.ema_decay=1.0") == 0
    report = runs.read(config, tw.DAY, "train")
    assert (report["ancestor"], report["warm_start"]) == ("1", True)
    assert all("recall" in e for e in report["curves"]["steps"]), "joint from the first step"
    assert report["codebooks"] == {}
    second, lineage = bundle_of(config, tw.DAY), first.info["lineage"]
    assert second.info["lineage"] == train_inputs(tw.settings(tmp_path, "model.ema_decay=1.0"), tw.DAY).lineage(
        ranks=1, ancestor=lineage, aligned_to=lineage
    )
    assert np.array_equal(second.items.hash_N, first.items.hash_N) and np.array_equal(second.codes_NL, first.codes_NL)
    assert report["alignment"]["churn"]["rate"] == report["alignment"]["unaligned"]["rate"] == 0.0
    assert report["alignment"]["renamed"] == [0, 0, 0]


@pytest.mark.slow
def test_a_cold_start_is_aligned_with_the_promoted_model_once_and_the_same_training_unaligned_is_the_same_model(tmp_path: Path) -> None:
    from jobs import registry

    config = tw.build(tmp_path, days=(tw.before(1), tw.DAY))
    assert trained(config, day=tw.before(1)) == 0
    first = promoted(config, tw.before(1))
    cold = ("train.warm_start=false", "train.seed=5")
    assert trained(config, *cold, "train.align_codes=false") == 0
    assert runs.read(config, tw.DAY, "train")["alignment"] is None
    plain = bundle_of(config, tw.DAY)

    assert trained(config, *cold) == 0
    report, aligned = runs.read(config, tw.DAY, "train"), bundle_of(config, tw.DAY)
    assert report["ancestor"] is None and report["codebooks"]
    found = report["alignment"]
    assert (found["version"], found["lineage"]) == ("1", first.info["lineage"])
    assert aligned.info["alignment"] == {key: found[key] for key in ("version", "lineage", "labels")}
    assert found["churn"]["first"][0] < found["unaligned"]["first"][0]
    assert json.loads(json.dumps(between(first.sids, aligned.sids).as_dict())) == found["churn"]  # type: ignore[union-attr]
    assert json.loads(json.dumps(between(first.sids, plain.sids).as_dict())) == found["unaligned"]  # type: ignore[union-attr]
    assert np.array_equal(unaligned(aligned.sids, found).code_XL, plain.sids.code_XL)
    label_LK = np.array(found["labels"])
    rename_codes(plain.model, label_LK)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, aligned.model.state_dict()[name]), name
    run = registry.client(config).get_run(report["mlflow_run_id"])
    assert run.data.metrics["train_churn"] == pytest.approx(found["churn"]["rate"])
    assert run.data.metrics["train_churn_unaligned_first_at_level_1"] == pytest.approx(found["unaligned"]["first"][0])

    before = (Path(config.paths.at("checkpoints")) / tw.DAY.isoformat() / "bundle" / "model.safetensors").read_bytes()
    assert trained(config, *cold) == 0
    assert (Path(config.paths.at("checkpoints")) / tw.DAY.isoformat() / "bundle" / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_sids_of_another_length_are_not_aligned_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tw.build(tmp_path, days=(tw.before(1), tw.DAY))
    assert trained(config, day=tw.before(1)) == 0
    promoted(config, tw.before(1))
    assert trained(config, "model.levels=2") == 0
    assert "SIDs are not aligned: version 1 has 3 levels, model.levels is 2" in caplog.text
    assert runs.read(config, tw.DAY, "train")["alignment"] is None


def with_items(config: Config, days: list[date], extra: list[int]) -> None:
    """Add items to the catalogue of some days."""
    import pyarrow as pa

    lake = Lake(config.paths.at("lake"))
    for day in days:
        table = tw.ew.item_features(config.dataset.spec())
        table = table.append_column("ds", pa.array([day.isoformat()] * len(table)))
        rows = table.slice(0, len(extra))
        values = {
            "item_id": [f"late-{n}" for n in extra],
            "item_hash": [hash_id(f"late-{n}") for n in extra],
            "f_item_id": [bucket_of(f"late-{n}", 32768) for n in extra],
        }
        for name, value in values.items():
            rows = rows.set_column(rows.column_names.index(name), name, pa.array(value, rows.schema.field(name).type))
        tw.ew.commit(lake, "item_features", day, pa.concat_tables([table, rows]))
    tw.stamp(lake, "item_features", config.dataset.rows_digest())


@pytest.mark.slow
def test_an_item_published_after_the_training_days_keeps_its_sid_in_the_next_version(tmp_path: Path) -> None:
    """It enters the catalogue between the last training day and the date: published at once, trained on only days later."""
    config = tw.build(tmp_path, days=(tw.before(1), tw.DAY))
    with_items(config, [tw.before(1), tw.DAY], [1, 2, 3])
    late = np.array(sorted(hash_id(f"late-{n}") for n in (1, 2, 3)))
    assert trained(config, day=tw.before(1)) == 0
    first = promoted(config, tw.before(1))
    assert not set(late.tolist()) & set(first.items.hash_N.tolist()), "no item of the bundle's catalogue"
    assert (first.sids.find(late) >= 0).all()

    published = published_sids(config, first, tw.before(1))
    assert np.array_equal(published.find(late), first.sids.find(late))
    assert trained(config, "train.lr=0.05") == 0
    second = bundle_of(config, tw.DAY)
    nearest = second.model.quantizer.assign(second.model.encode_catalogue())[1:].numpy()
    assert (nearest != second.codes_NL[1:]).any(), "the encoder has moved on"
    changed = between(published, published_sids(config, second, tw.DAY))
    assert changed is not None and changed.items == len(published) and changed.rate == 0.0


def published_sids(config: Config, bundle: Bundle, day: date) -> KnownSids:
    """What an index generation of a day holds."""
    items = ItemTable.from_arrow(Lake(config.paths.at("lake")).read_arrow("item_features", [day]), bundle.spec)
    bundle.model.set_items(items)
    code_NL = bundle.model.codes(bundle.model.encode_catalogue()).numpy()
    return KnownSids.of(items.hash_N[1:], code_NL[1:])


@pytest.mark.slow
def test_what_cannot_be_trained_ends_with_status_two_and_a_message(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(Lake(config.paths.at("lake")).day_dir("examples", tw.before(4)))
    assert trained(config) == 2
    assert "table examples" in caplog.text and str(tw.before(4)) in caplog.text


@pytest.mark.slow
def test_progress_names_step_speed_and_time_left(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIG_PROGRESS", str(tmp_path / "progress"))
    assert trained(config) == 0
    events = [json.loads(line) for line in (tmp_path / "progress").read_text().splitlines()]
    assert {e["stage"] for e in events} == {"train"}
    assert events[-1]["done"] == events[-1]["total"] == runs.read(config, tw.DAY, "train")["steps"]
    assert all({"examples_per_s", "eta_s"} <= e.keys() for e in events)


def sids_file(config: Config, path: Path, *, ids: int = tw.ew.ITEMS) -> Path:
    rng = np.random.default_rng(3)
    write_sids(path, [f"item-{i}" for i in range(ids)], rng.integers(0, config.model.codes, (ids, config.model.levels)))
    return path


def test_sids_made_beforehand_belong_to_the_lineage_by_content_not_by_place(config: Config, tmp_path: Path) -> None:
    def lineage(path: Path) -> str:
        sets = ("model.assignment=given", f"train.given_sids={path}")
        return train_inputs(tw.settings(Path(config.paths.home), *sets), tw.DAY).lineage(ranks=1, ancestor="")

    first = sids_file(config, tmp_path / "one.parquet")
    moved = Path(shutil.copy(first, tmp_path / "two.parquet"))
    assert lineage(first) == lineage(moved) != lineage(sids_file(config, tmp_path / "one.parquet", ids=20))


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("model.assignment=given",), "train.given_sids must name a Parquet file .* found nothing"),
        (("model.assignment=given", "train.given_sids=/no/such.parquet"), "found /no/such.parquet"),
        (("train.given_sids=/no/such.parquet",), "used with model.assignment=given alone, found online_rq"),
    ],
)
def test_a_setting_without_its_other_half_is_refused(config: Config, sets: tuple[str, ...], message: str) -> None:
    with pytest.raises(JobError, match=message):
        train_inputs(tw.settings(Path(config.paths.home), *sets), tw.DAY)


@pytest.mark.slow
def test_a_training_from_sids_made_beforehand_publishes_them_and_starts_from_no_older_model(config: Config, tmp_path: Path) -> None:
    assert trained(config) == 0
    promoted(config, tw.DAY)
    path = sids_file(config, tmp_path / "sids.parquet", ids=tw.ew.ITEMS - 3)
    assert trained(config, "model.assignment=given", f"train.given_sids={path}") == 0
    report, bundle = runs.read(config, tw.DAY, "train"), bundle_of(config, tw.DAY)
    given = read_sids(path, levels=config.model.levels, codes=config.model.codes)
    assert report["ancestor"] is None and report["alignment"] is None and report["examples"] > 0
    assert np.array_equal(bundle.sids.find(given.hash_X), given.code_XL)
    assert len(bundle.sids) == tw.ew.ITEMS, "items that the file does not know get nearest codes"
    write_sids(path, ["stranger"], np.zeros((1, config.model.levels), dtype=np.int64))
    assert trained(config, "model.assignment=given", f"train.given_sids={path}") == 2


def with_popularity(config: Config) -> None:
    """Popularity that says of which day it is; the last item is in no catalogue before the window, in its place is another."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for back in range(11):
        for file in day_files(config, "item_features", back):
            table = pq.read_table(file, partitioning=None)
            for window in config.dataset.u2i.windows:
                table = table.append_column(f"pop_{window}", pa.array([float(window * 100 - back)] * len(table)))
            if back == 10:
                for name, other in (("item_id", "stranger"), ("item_hash", hash_id("stranger"))):
                    values = [*table.column(name).to_pylist()[:-1], other]
                    table = table.set_column(table.column_names.index(name), name, [values])
            pq.write_table(table, file)


def test_popularity_that_the_encoder_reads_is_of_the_day_before_the_first_example(config: Config) -> None:
    with_popularity(config)
    found = train_inputs(tw.settings(Path(config.paths.home), "dataset.item_popularity=[30]"), tw.DAY)
    for table in (found.items_shown(), found.items_known()):
        assert sorted(set(table.column("pop_30").to_pylist())) == [0.0, 3000.0 - 10], "an item without a catalogue then has 0"
        assert table.column("pop_30").to_pylist().count(0.0) == 1
        assert set(table.column("pop_7").to_pylist()) != {700.0 - 10}, "what the encoder does not read is as it was"
    assert found.lineage(ranks=1, ancestor="") != train_inputs(config, tw.DAY).lineage(ranks=1, ancestor="")


@pytest.mark.slow
def test_a_model_that_reads_popularity_trains_on_the_same_lake(config: Config) -> None:
    with_popularity(config)
    assert trained(config, "dataset.item_popularity=[30]") == 0
    bundle = bundle_of(config, tw.DAY)
    assert [f.name for f in bundle.spec.item_fields if f.is_number] == ["pop_30"]
    assert set(bundle.items.numbers["pop_30"][1:].tolist()) == {3000.0 - 2}, (
        "the catalogue that the bundle serves has the last closed day's"
    )
