"""``python -m jobs.sids``: SIDs made beforehand, from what, kept how, and taken by the training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dig_models.bundle import load_bundle, save_bundle
from dig_models.dig import Dig
from dig_models.items import ItemTable
from dig_models.quantize.known import read_sids
from dig_models.tokenizers.registry import KINDS, load_tokenizer
from dig_models.tokenizers.rkmeans import ResidualKMeans
from dig_models.tokenizers.settings import Kind, TokenizersConfig
from dig_models.train.distributed import World
from jobs import registry, runs, sids, sids_inputs, tokenizing, train
from jobs.config import Config, ConfigError
from jobs.entry import JobError, run
from jobs.files import exclusive
from jobs.lake import MARKER, Lake
from jobs.sids_before import require_current
from jobs.train_inputs import TrainInputs, lake_inputs, train_inputs
from tests.jobs import train_world as tw
from tests.jobs.test_train import promoted, trained

QUICK = ("tokenizers.rqvae.epochs=3", "tokenizers.rqvae.hidden=[8]", "tokenizers.rqvae.latent=4")
RQVAE, RKMEANS = ("tokenizer=rqvae", *QUICK), ("tokenizer=rkmeans",)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("lake")
    config = tw.build(home, days=(tw.before(1), tw.DAY))
    assert registry.versions(config) == []  # makes the database, which takes longer than all else here
    return home


@pytest.fixture
def home(built: Path, tmp_path: Path) -> Path:
    """A copy of the lake, to damage at will."""
    for name in ("lake", "mlflow"):
        shutil.copytree(built / name, tmp_path / name)
    return tmp_path


def made(home: Path, *sets: str, day: object = tw.DAY) -> int:
    own = [f"paths.home={home}", *(f"model.{k}={v}" for k, v in tw.ew.SMALL.items()), *tw.SETS, *sets]
    threads = torch.get_num_threads()
    try:
        return run("sids", sids.main, ["--date", str(day), *(part for one in own for part in ("--set", one))])
    finally:
        torch.set_num_threads(threads)


def result(home: Path, *sets: str) -> sids_inputs.Made:
    found = sids_inputs.found(tw.settings(home, *sets), tw.DAY)
    assert found is not None
    return found


def known(config: Config) -> ItemTable:
    return ItemTable.from_arrow(lake_inputs(config, tw.DAY).items_known(), config.dataset.spec())


# ---- settings --------------------------------------------------------------------------------------------------------


def test_the_settings_name_the_kinds_of_the_registry() -> None:
    assert set(Kind.__args__) == set(KINDS)  # type: ignore[attr-defined]
    sections = {name for name in TokenizersConfig.model_fields if name in KINDS}
    assert sections == {kind for kind in KINDS if TokenizersConfig().of(kind)}  # type: ignore[arg-type]


def test_a_daily_run_whose_ranker_makes_its_sids_has_the_lineage_it_had(home: Path) -> None:
    plain, told = tw.settings(home), tw.settings(home, "tokenizer=dig", "tokenizers.content=co_occurrence", *QUICK)
    assert plain.model == told.model and plain.model.assignment == "online_rq" and plain.model.loss.commit > 0
    lineages = {train_inputs(config, tw.DAY).lineage(ranks=1, ancestor="") for config in (plain, told)}
    assert len(lineages) == 1, "settings of tokenizers that are not in use decide nothing"


def test_the_assignment_follows_from_the_tokenizer(home: Path) -> None:
    model = tw.settings(home, *RQVAE).model
    assert (model.assignment, model.loss.commit, model.loss.recall) == ("given", 0.0, 0.5)
    assert tw.settings(home, *RQVAE, "model.assignment=given", "model.loss.commit=0.1").model.loss.commit == 0.1


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("tokenizer=rqvae", "model.assignment=gumbel_sdud"), "assignment gumbel_sdud with tokenizer rqvae"),
        (("tokenizer=rqvae", "train.given_sids=/x.parquet"), "given_sids /x.parquet with tokenizer rqvae"),
        (("tokenizer=rq",), "tokenizer: .*'rqvae'.*found 'rq'"),
        (("tokenizers.rqvae.epoch=3",), "tokenizers.rqvae.epoch: unknown key; did you mean 'epochs'"),
        (("tokenizers.conflicts=drop",), "tokenizers.conflicts: "),
        (("tokenizer=resid", "tokenizers.content=co_occurrence"), "content co_occurrence with tokenizer resid, which learns vectors"),
    ],
)
def test_a_contradiction_or_an_unknown_setting_is_refused(home: Path, sets: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tw.settings(home, *sets)


# ---- the job ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"dig"}))
def test_every_item_known_on_the_date_gets_the_code_of_the_tokenizer_that_is_kept(home: Path, kind: str) -> None:
    own = TokenizersConfig().of(kind)  # type: ignore[arg-type]
    short = [f"tokenizers.{kind}.epochs=1"] if own else []
    sets = (f"tokenizer={kind}", *short, *(["tokenizers.diger.rqvae.epochs=1"] if kind == "diger" else []))
    assert made(home, *sets) == 0
    config, there = tw.settings(home, *sets), result(home, *sets)
    items = known(config)
    code_NL = load_tokenizer(there.folder, config.dataset.spec()).encode(items)
    given = read_sids(there.sids, levels=config.model.levels, codes=config.model.codes)
    np.testing.assert_array_equal(given.find(items.hash_N[1:]), code_NL[1:])
    report = runs.read(config, tw.DAY, "sids")
    assert report["kind"] == kind and report["items"] == len(items) - 1 == tw.ew.ITEMS
    assert 0 <= report["collision_rate"] < 1 and len(report["codes_used"]) == config.model.levels
    assert report["seconds"]["fit"] > 0 and report["kept"] is None and "sha256" not in report


def test_what_is_there_is_not_made_again_and_what_is_damaged_is(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert made(home, *RKMEANS) == 0
    first = result(home, *RKMEANS)
    before = first.sids.stat().st_mtime_ns
    (runs.run_dir(tw.settings(home), tw.DAY) / "sids.json").unlink()
    assert made(home, *RKMEANS) == 0
    assert "made already" in caplog.text and first.sids.stat().st_mtime_ns == before
    assert runs.read(tw.settings(home), tw.DAY, "sids")["lineage"] == first.lineage, "a run's folder tells of it again"
    content = first.sids.read_bytes()
    first.sids.write_bytes(content[:-9])
    assert sids_inputs.found(tw.settings(home), tw.DAY) is None
    assert made(home, *RKMEANS) == 0
    assert result(home, *RKMEANS).sids.read_bytes() == content, "the same again"


def test_another_setting_gives_another_result_in_place_of_the_old(home: Path) -> None:
    assert made(home, *RKMEANS) == 0
    first = result(home)
    assert made(home, *RKMEANS, "train.seed=5") == 0
    second = result(home)
    assert second.lineage != first.lineage and not first.folder.exists()
    assert [path.name for path in second.folder.parent.iterdir() if path.is_dir()] == [second.folder.name]


def test_a_job_that_dies_before_the_end_leaves_what_was_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made(home, *RKMEANS) == 0
    first = result(home)

    def dies(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sids, "replace_text", dies)
        with pytest.raises(KeyboardInterrupt):
            made(home, *RQVAE)
    assert result(home).lineage == first.lineage
    assert made(home, *RQVAE) == 0
    assert result(home).record["kind"] == "rqvae"


def test_where_the_ranker_makes_its_own_there_is_nothing_to_do(home: Path) -> None:
    assert made(home) == 0
    assert sids_inputs.found(tw.settings(home), tw.DAY) is None


def test_two_at_once_are_refused(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with exclusive(sids_inputs.lock(tw.settings(home), tw.DAY)):
        assert made(home, *RKMEANS) == 1
        assert trained(tw.settings(home), *RKMEANS) == 1, "the training has the same lock"
    assert f"SIDs of {tw.DAY} are being made, or its training" in caplog.text and "wait for it to end" in caplog.text
    assert made(home, *RKMEANS) == 0


def test_what_a_tokenizer_cannot_learn_from_is_one_message(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    only_the_first_row_is_bought(home)
    assert made(home, *RKMEANS, "tokenizers.content=co_occurrence") == 2
    assert "tokenizer rkmeans: 0 item(s) were bought beside another one" in caplog.text


# ---- what it may see -------------------------------------------------------------------------------------------------


def only_the_first_row_is_bought(home: Path) -> None:
    """So that nothing was bought together with anything."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lake = Lake(str(home / "lake"))
    for day in lake.days("examples"):
        for file in sorted(Path(lake.folder("examples", day)).glob("*.parquet")):
            table = pq.read_table(file, partitioning=None)
            lists = [[1] + [0] * (len(v) - 1) for v in table.column("label").to_pylist()]
            at = table.column_names.index("label")
            pq.write_table(table.set_column(at, "label", pa.array(lists, pa.list_(pa.int8()))), file)


def bought(home: Path) -> tuple[TrainInputs, ItemTable, tokenizing.Purchases]:
    inputs = lake_inputs(tw.settings(home), tw.DAY)
    items = ItemTable.from_arrow(inputs.items_shown(), inputs.config.dataset.spec())
    return inputs, items, tokenizing.Purchases.of(inputs, items)


def test_sequences_are_what_users_bought_on_the_days_that_move_weights_in_order_of_time(home: Path) -> None:
    inputs, items, purchases = bought(home)
    days = [tw.before(back) for back in range(9, 3, -1)]
    assert (days[0], days[-1]) == (inputs.window.train_first, inputs.window.fit_last)
    expected: dict[int, list[tuple[int, list[int]]]] = {}
    for day in days:
        for row in inputs.lake.read_arrow("examples", [day]).to_pylist():
            basket = sorted(item for item, label in zip(row["item"], row["label"], strict=True) if label)
            expected.setdefault(row["user_hash"], []).append((row["ts"], basket))
    found, same, other = (purchases.sequences(seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(found.item_P, same.item_P)
    assert not np.array_equal(found.item_P, other.item_P)
    assert len(found) == len(expected) > 10
    for user, hashed in enumerate(sorted(expected)):
        there = iter(items.hash_N[found.one(user)].tolist())
        for _, basket in sorted(expected[hashed]):
            assert sorted(islice(there, len(basket))) == basket
        assert not list(there)


def test_within_a_request_the_next_item_is_as_often_the_one_of_the_smaller_hash(home: Path) -> None:
    _, items, purchases = bought(home)
    by_user = np.argsort(purchases.user_P, kind="stable")
    user_P, ts_P = purchases.user_P[by_user], purchases.ts_P[by_user]
    within = (np.diff(user_P) == 0) & (np.diff(ts_P) == 0)
    read_P, drawn_P = items.hash_N[purchases.item_P[by_user]], items.hash_N[purchases.sequences(1).item_P]
    assert within.sum() > 100 and (read_P[1:] > read_P[:-1])[within].mean() > 0.7, "rows of a request are kept by hash"
    assert 0.4 < (drawn_P[1:] > drawn_P[:-1])[within].mean() < 0.6


def test_validation_and_evaluation_days_are_not_seen(home: Path) -> None:
    _, items, before = bought(home)
    window = tw.settings(home).run_window(tw.DAY)
    lake = Lake(str(home / "lake"))
    for day in lake.days("examples"):
        if day > window.fit_last:
            shutil.copytree(lake.folder("examples", window.train_first), lake.folder("examples", day), dirs_exist_ok=True)
    _, _, after = bought(home)
    for name in ("user_P", "day_P", "ts_P", "item_P"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    assert before.co_occurrence(items, tw.settings(home).dataset.spec(), 1).vector_XD.size


def test_a_change_of_a_validation_day_does_not_make_them_anew_and_one_of_a_fit_day_does(home: Path) -> None:
    config = tw.settings(home, *RKMEANS)
    window = config.run_window(tw.DAY)

    def want() -> str:
        return sids_inputs.wanted(config, tw.DAY, window, lake_inputs(config, tw.DAY).inputs)

    def stamped(day: object) -> None:
        marker = Lake(str(home / "lake")).day_dir("examples", day) / MARKER  # type: ignore[arg-type]
        marker.write_text(json.dumps(json.loads(marker.read_text()) | {"content": "other"}))

    first = want()
    stamped(window.validation_first)
    assert want() == first
    stamped(window.fit_last)
    assert want() != first


# ---- collisions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conflicts", ["nearest", "sinkhorn", "suffix"])
def test_items_that_share_a_sid_are_told_apart_where_that_is_asked_for(home: Path, conflicts: str) -> None:
    assert made(home, *RKMEANS) == 0
    plain = runs.read(tw.settings(home), tw.DAY, "sids")
    sets = (*RKMEANS, f"tokenizers.conflicts={conflicts}", "model.codes=12")
    assert made(home, *sets) == 0
    told = runs.read(tw.settings(home), tw.DAY, "sids")
    assert plain["collision_rate"] == plain["collision_rate_before"] > 0
    assert told["collision_rate"] < told["collision_rate_before"]
    config = tw.settings(home, *sets)
    given = read_sids(result(home).sids, levels=config.model.levels, codes=config.model.codes)
    assert len(given) == tw.ew.ITEMS
    fitted = load_tokenizer(result(home).folder, config.dataset.spec())
    assert fitted.levels == config.model.levels - (conflicts == "suffix")
    items = known(config)
    np.testing.assert_array_equal(
        given.find(items.hash_N[1:])[:, : config.model.levels - 1], fitted.encode(items)[1:, : config.model.levels - 1]
    )


# ---- the version before ----------------------------------------------------------------------------------------------


def bundle_before(home: Path, *sets: str) -> Path:
    """A version of the day before, registered and promoted, whose ranker is not trained; its folder in the registry."""
    assert made(home, *sets, day=tw.before(1)) == 0
    config = tw.settings(home, *sets)
    found, spec = sids_inputs.found(config, tw.before(1)), config.dataset.spec()
    assert found is not None
    items = ItemTable.from_arrow(lake_inputs(config, tw.before(1)).items_shown(), spec)
    model = Dig(config.model, spec, seed=1)
    model.reserved = read_sids(found.sids, levels=config.model.levels, codes=config.model.codes)
    model.set_items(items)
    folder = Path(config.paths.at("checkpoints")) / str(tw.before(1)) / "bundle"
    save_bundle(folder, model, items, {"lineage": "of the day before", "tokenizer": found.told})
    shutil.copytree(found.folder, folder / sids_inputs.PLACE)
    promoted(config, tw.before(1))
    version = registry.ancestor(config, tw.DAY)
    assert version is not None and version.version == "1"
    return registry.fetch(config, version)


def test_the_tokenizer_of_the_version_before_is_kept_and_known_items_keep_their_sids(home: Path) -> None:
    bundle = bundle_before(home, *RKMEANS)
    assert made(home, *RKMEANS) == 0
    config, there = tw.settings(home, *RKMEANS), result(home, *RKMEANS)
    before = sids_inputs.read(bundle / sids_inputs.PLACE)
    assert there.record["kept"] == {"version": "1", "lineage": before.lineage}
    old, new = (read_sids(one.sids, levels=config.model.levels, codes=config.model.codes) for one in (before, there))
    np.testing.assert_array_equal(new.find(old.hash_X), old.code_XL)


@pytest.mark.parametrize("conflicts", ["none", "nearest", "sinkhorn", "suffix"])
def test_that_sids_are_kept_is_said_only_where_they_are(home: Path, caplog: pytest.LogCaptureFixture, conflicts: str) -> None:
    caplog.set_level("INFO")
    sets = (*RKMEANS, f"tokenizers.conflicts={conflicts}", "model.codes=12")
    bundle_before(home, *sets)
    assert made(home, *sets) == 0
    moves = f"tokenizers.conflicts={conflicts} may give them another last one"
    said = "items keep their SIDs while their fields stay" if conflicts in ("none", "nearest") else moves
    assert next(r.getMessage() for r in caplog.records if "is kept" in r.getMessage()).endswith(said)


def test_a_kept_tokenizer_that_is_not_whole_is_refused_with_the_ways_out(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = bundle_before(home, *RKMEANS) / sids_inputs.PLACE
    for name in ("made.json", "tokenizer.json", "tokenizer.safetensors", "sids.parquet"):
        whole = (folder / name).read_bytes()
        for part in (None, whole[: len(whole) // 2]):
            (folder / name).unlink() if part is None else (folder / name).write_bytes(part)
            assert made(home, *RKMEANS) == 2, name
            told = caplog.records[-1].getMessage()
            assert told.startswith(f"tokenizer of version 1: {folder / name}: ")
            assert "tokenizers.refit=daily (or train.warm_start=false)" in told
        (folder / name).write_bytes(whole)
    assert sids_inputs.found(tw.settings(home), tw.DAY) is None, "nothing is fitted that nobody asked for"


def test_a_kept_tokenizer_that_is_whole_but_not_the_bundle_s_is_refused(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = bundle_before(home, *RKMEANS) / sids_inputs.PLACE
    own = sids_inputs.read(folder)
    assert made(home, *RKMEANS, "train.seed=5", day=tw.before(1)) == 0
    other = sids_inputs.found(tw.settings(home), tw.before(1))
    assert other is not None
    shutil.rmtree(folder)
    shutil.copytree(other.folder, folder)
    assert sids_inputs.read(folder).sha256 == other.sha256 != own.sha256, "in itself it is whole"
    assert made(home, *RKMEANS) == 2
    told = f"{folder / 'made.json'}: damaged: sha256 {other.sha256[:12]} found, {own.sha256[:12]} expected"
    assert f"tokenizer of version 1: {told}" in caplog.text


def test_a_version_whose_tokenizer_folder_is_lost_is_no_version_without_a_tokenizer(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = bundle_before(home, *RKMEANS) / sids_inputs.PLACE
    shutil.rmtree(place)
    assert made(home, *RKMEANS) == 2
    assert f"tokenizer of version 1: {place / 'made.json'}: cannot be read (No such file or directory)" in caplog.text
    assert made(home, *RKMEANS, "tokenizers.refit=daily") == 0, "the way out that the message names"
    assert made(home, *RQVAE) == 0, "of another kind nothing is read"
    assert result(home).record["kept"] is None


def test_a_tokenizer_is_kept_while_item_fields_are_made_from_the_same_source(home: Path) -> None:
    def digest(*sets: str) -> str:
        return sids_inputs.fit_digest(tw.settings(home, *RKMEANS, *sets))

    for same in ("dataset.sampling.exposed_negative_rate=0.5", "dataset.source.path=/elsewhere", "dataset.sample_users=0.9"):
        assert digest(same) == digest(), same
    fields = [field.model_dump(mode="json", by_alias=True) for field in tw.settings(home).dataset.item_fields]
    moved = [field | {"column": "department"} if field["name"] == "category" else field for field in fields]
    others = ["dataset.source.utc_offset_hours=1", f"dataset.item_fields={json.dumps(moved)}"]
    assert tw.settings(home, others[1]).dataset.spec().digest == tw.settings(home).dataset.spec().digest
    assert len({digest(), *(digest(other) for other in others)}) == 3


def test_a_kept_tokenizer_of_another_format_is_refused_with_the_ways_out(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundle_before(home, *RKMEANS)
    monkeypatch.setattr(ResidualKMeans, "format", ResidualKMeans.format + 1)
    assert made(home, *RKMEANS) == 2
    told = caplog.records[-1].getMessage()
    assert "tokenizer of version 1: " in told and "format 1 of rkmeans found, this code reads format 2" in told
    assert "tokenizers.refit=daily (or train.warm_start=false)" in told


def test_a_version_that_cannot_be_read_is_refused_with_the_ways_out(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = bundle_before(home, *RKMEANS) / "model.json"
    place.write_text("{}")
    assert made(home, *RKMEANS) == 2
    assert f"version 1: {place}: format None found" in caplog.text and "tokenizers.refit=daily" in caplog.text


# ---- the training ----------------------------------------------------------------------------------------------------


def test_a_training_without_sids_names_the_command_that_makes_them(home: Path) -> None:
    with pytest.raises(JobError, match=f"tokenizer is rkmeans: no SIDs of {tw.DAY} in .*run python -m jobs.sids --date {tw.DAY} first"):
        train_inputs(tw.settings(home, *RKMEANS), tw.DAY)


def test_sids_of_other_settings_are_refused_by_the_training(home: Path) -> None:
    assert made(home, *RQVAE) == 0
    assert train_inputs(tw.settings(home, *RQVAE), tw.DAY).given == result(home).sids
    with pytest.raises(JobError, match=r"SIDs by rqvae made from other data, settings or code .*run python -m jobs\.sids"):
        train_inputs(tw.settings(home, *RKMEANS), tw.DAY)


def test_the_lineage_of_a_training_covers_the_tokenizer(home: Path) -> None:
    lineages = set()
    for sets in (RKMEANS, RQVAE, (*RQVAE, "tokenizers.rqvae.beta=0.5")):
        assert made(home, *sets) == 0
        inputs = train_inputs(tw.settings(home, *sets), tw.DAY)
        assert inputs.sids and inputs.made is not None
        lineages.add(inputs.lineage(ranks=1, ancestor=""))
    assert len(lineages) == 3


def test_a_training_reads_the_sids_once_it_has_the_lock(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert made(home, *RKMEANS) == 0
    alone = train._alone

    @contextmanager
    def overtaken(config: Config, day: date, world: World) -> Iterator[None]:
        assert made(home, *RQVAE) == 0  # the last moment at which it can be
        with alone(config, day, world):
            yield

    monkeypatch.setattr(train, "_alone", overtaken)
    assert trained(tw.settings(home), *RKMEANS) == 2
    assert "SIDs by rqvae made from other data, settings or code" in caplog.text


def test_sids_kept_from_a_version_that_was_withdrawn_since_are_refused_by_the_training(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle_before(home, *RKMEANS)
    config = tw.settings(home, *RKMEANS)
    assert made(home, *RKMEANS) == 0
    require_current(config, tw.DAY, result(home))
    lineage = result(home).record["kept"]["lineage"]
    registry.tag(config, "1", registry.WITHDRAWN, "a test")
    assert trained(config, *RKMEANS) == 2
    assert f"of version 1 (lineage {lineage[:12]}), expected one fitted for the date" in caplog.text
    assert caplog.records[-1].getMessage().endswith(f"run python -m jobs.sids --date {tw.DAY} first")
    assert made(home, *RKMEANS) == 0
    require_current(config, tw.DAY, result(home))


def test_sids_fitted_before_a_version_was_promoted_are_refused_by_the_training(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert made(home, *RKMEANS) == 0
    bundle_before(home, *RKMEANS)
    assert trained(tw.settings(home), *RKMEANS) == 2
    assert "SIDs by a tokenizer fitted for the date, expected one of version 1 (lineage" in caplog.text


@pytest.mark.slow
def test_after_a_switch_back_to_dig_nothing_is_left_of_the_sids_made_beforehand(home: Path) -> None:
    config = tw.settings(home)
    places = (sids_inputs.home(config, tw.DAY), runs.run_dir(config, tw.DAY) / "sids.json")
    for _ in ("trained now", "trained already"):
        assert made(home, *RKMEANS) == 0
        assert all(place.exists() for place in places)
        assert trained(config, "model.assignment=given") == 2, "a training that ends with an error"
        assert all(place.exists() for place in places)
        assert trained(config) == 0
        assert not any(place.exists() for place in places)
    assert made(home, *RKMEANS) == 0 == trained(config, *RKMEANS)
    assert all(place.exists() for place in places), "those of the ranker that was trained on them stay"


@pytest.mark.slow
def test_the_sids_of_a_training_stay_until_it_has_ended(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made(home, *RKMEANS) == 0
    write, found = train._write, []

    def last_step(*args: Any) -> None:
        found.append(made(home, *RQVAE))
        write(*args)

    monkeypatch.setattr(train, "_write", last_step)
    assert trained(tw.settings(home), *RKMEANS) == 0
    assert found == [1], "refused, to be tried again"
    bundle = Path(tw.settings(home).paths.at("checkpoints")) / str(tw.DAY) / "bundle"
    assert sids_inputs.read(bundle / sids_inputs.PLACE).lineage == result(home).lineage


@pytest.mark.slow
def test_the_next_date_keeps_the_tokenizer_of_the_version_promoted_before_it(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    early = tw.before(1)
    assert made(home, *RKMEANS, day=early) == 0
    config = tw.settings(home, *RKMEANS)
    assert trained(config, *RKMEANS, day=early) == 0
    bundle = promoted(config, early)
    assert bundle.info["tokenizer"]["kind"] == "rkmeans"
    assert runs.read(config, early, "train")["tokenizer"] == bundle.info["tokenizer"]

    assert made(home, *RKMEANS) == 0
    kept, report = result(home), runs.read(config, tw.DAY, "sids")
    assert report["kept"] == {"version": "1", "lineage": bundle.info["tokenizer"]["lineage"]}
    given = read_sids(kept.sids, levels=config.model.levels, codes=config.model.codes)
    np.testing.assert_array_equal(given.find(bundle.sids.hash_X), bundle.sids.code_XL, "a SID moved")
    assert trained(config, *RKMEANS) == 0
    assert load_bundle(Path(config.paths.at("checkpoints")) / str(tw.DAY) / "bundle").info["tokenizer"]["kept"]["version"] == "1"

    assert trained(config) == 0
    assert runs.read(config, tw.DAY, "train")["ancestor"] is None, "a ranker that makes its own SIDs starts from none that did not"
    assert "SIDs by rkmeans, and the tokenizer is dig now" in caplog.text

    for other in (("train.seed=7",), ("tokenizers.content=co_occurrence",), ("tokenizers.refit=daily",), ("train.warm_start=false",)):
        caplog.clear()
        assert made(home, *RKMEANS, *other) == 0
        assert runs.read(config, tw.DAY, "sids")["kept"] is None, other
