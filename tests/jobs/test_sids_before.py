"""The tokenizer of the version promoted before a date: kept and known by what, refused when, and with which way out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dig_models.bundle import load_bundle, save_bundle
from dig_models.dig import Dig
from dig_models.items import ItemTable
from dig_models.quantize.known import read_sids
from dig_models.tokenizers.rkmeans import ResidualKMeans
from jobs import registry, runs, sids_inputs
from jobs.sids_before import require_current
from jobs.train_inputs import lake_inputs
from tests.jobs import train_world as tw
from tests.jobs.sids_world import RKMEANS, RQVAE, built, home, made, result
from tests.jobs.test_train import promoted, trained

__all__ = ["built", "home"]  # fixtures


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
