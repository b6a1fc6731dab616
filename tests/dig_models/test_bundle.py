"""A bundle on disk: round trip, damage, mismatches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dig_models.batch import Batch
from dig_models.bundle import ITEMS, SETTINGS, WEIGHTS, BundleError, BundleMismatch, load_bundle, save_bundle
from dig_models.dig import Dig
from dig_models.features import FeatureSpec, FeatureSpecMismatch
from dig_models.items import ItemTable
from dig_models.u2t import PairLookup
from tests.dig_models.conftest import make_dig


@pytest.fixture
def model(spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup) -> Dig:
    """A model with codebooks."""
    model = make_dig(spec, items)
    model(batch, "warmup", lookup)
    model.build_codebooks(0)
    return model.eval()


def test_a_loaded_bundle_scores_and_codes_like_the_saved_model(
    model: Dig, spec: FeatureSpec, items: ItemTable, batch: Batch, tmp_path: Path
) -> None:
    save_bundle(tmp_path, model, items, {"date": "2017-11-15", "keep_rate": 0.07})
    bundle = load_bundle(tmp_path, spec)
    assert bundle.info == {"date": "2017-11-15", "keep_rate": 0.07}
    assert bundle.spec == spec
    assert not bundle.model.training
    scores = []
    for each in (model, bundle.model):
        users, e = each.user_side(batch), each.encode_items(batch.item_R)
        scores.append(each.rank_logit(users, batch.request_R, e, batch.cross_RC, (batch.source_R > 0).long()))
    assert torch.equal(scores[0], scores[1])
    assert np.array_equal(bundle.codes_NL[1:], model.codes(model.encode_catalogue())[1:].numpy())
    assert np.array_equal(bundle.items.hash_N, items.hash_N)
    assert np.array_equal(bundle.items.key_KN, items.key_KN)
    assert list(bundle.items.name_N) == list(items.name_N)


def test_a_model_without_codebooks_can_be_kept(spec: FeatureSpec, items: ItemTable, tmp_path: Path) -> None:
    save_bundle(tmp_path, make_dig(spec, items, loss={"recall": 0.0}), items, {})
    assert (load_bundle(tmp_path).codes_NL == -1).all()


def test_no_file_of_a_bundle_is_a_pickle(model: Dig, items: ItemTable, tmp_path: Path) -> None:
    save_bundle(tmp_path, model, items, {})
    assert {p.suffix for p in tmp_path.iterdir()} == {".safetensors", ".json", ".parquet"}


def test_saving_the_same_model_twice_gives_the_same_bytes(model: Dig, items: ItemTable, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_bundle(tmp_path / name, model, items, {"x": 1})
    for file in (WEIGHTS, ITEMS, SETTINGS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("name", [WEIGHTS, ITEMS])
def test_a_truncated_file_is_named(model: Dig, items: ItemTable, tmp_path: Path, name: str) -> None:
    save_bundle(tmp_path, model, items, {})
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-10])
    with pytest.raises(BundleError, match=rf"{name}: damaged: sha256 \w+ found, \w+ expected"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("name", [WEIGHTS, ITEMS])
def test_a_missing_file_is_named(model: Dig, items: ItemTable, tmp_path: Path, name: str) -> None:
    save_bundle(tmp_path, model, items, {})
    (tmp_path / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: missing"):
        load_bundle(tmp_path)


def test_a_truncated_settings_file_is_named(model: Dig, items: ItemTable, tmp_path: Path) -> None:
    save_bundle(tmp_path, model, items, {})
    (tmp_path / SETTINGS).write_text((tmp_path / SETTINGS).read_text()[:100])
    with pytest.raises(BundleError, match="not valid JSON"):
        load_bundle(tmp_path)


def test_a_folder_without_settings_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no complete bundle"):
        load_bundle(tmp_path)


def test_an_unknown_format_is_refused(model: Dig, items: ItemTable, tmp_path: Path) -> None:
    save_bundle(tmp_path, model, items, {})
    settings = json.loads((tmp_path / SETTINGS).read_text())
    (tmp_path / SETTINGS).write_text(json.dumps({**settings, "format": 99}))
    with pytest.raises(BundleError, match="format 99 found, this code reads format 1"):
        load_bundle(tmp_path)


def test_a_bundle_of_another_version_of_the_code_is_told_from_a_damaged_one(model: Dig, items: ItemTable, tmp_path: Path) -> None:
    save_bundle(tmp_path, model, items, {})
    settings = json.loads((tmp_path / SETTINGS).read_text())
    for changed in ({"a_switch_of_old": 1}, {"encoder_hidden": 48}):
        (tmp_path / SETTINGS).write_text(json.dumps({**settings, "model": settings["model"] | changed}))
        with pytest.raises(BundleMismatch, match="another version of the code"):
            load_bundle(tmp_path)


def test_a_bundle_of_another_feature_spec_is_refused(model: Dig, spec: FeatureSpec, items: ItemTable, tmp_path: Path) -> None:
    save_bundle(tmp_path, model, items, {})
    with pytest.raises(FeatureSpecMismatch, match="rebuild it"):
        load_bundle(tmp_path, FeatureSpec.model_validate({**spec.model_dump(), "half_life_days": 3.0}))


def test_a_spec_that_was_edited_by_hand_is_refused(model: Dig, items: ItemTable, tmp_path: Path) -> None:
    save_bundle(tmp_path, model, items, {})
    settings = json.loads((tmp_path / SETTINGS).read_text())
    settings["spec"]["half_life_days"] = 3.0
    (tmp_path / SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(FeatureSpecMismatch):
        load_bundle(tmp_path)


def test_another_catalogue_than_the_model_s_is_refused(model: Dig, spec: FeatureSpec, items: ItemTable, tmp_path: Path) -> None:
    hashes = items.hash_N.copy()
    hashes[-1] += 1
    with pytest.raises(ValueError, match="set_items"):
        save_bundle(tmp_path, model, ItemTable(**{**items.__dict__, "hash_N": hashes}), {})
