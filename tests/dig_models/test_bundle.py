"""A bundle on disk: round trip, damage, mismatches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

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


def test_a_bundle_remembers_what_training_has_shown(
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup, tmp_path: Path
) -> None:
    """Of items outside its catalogue too."""
    trained = make_dig(spec, items)
    trained(batch, "warmup", lookup)
    trained.eval()
    shown = trained.shown.hashes()
    assert 0 < len(shown) < len(items) - 1
    save_bundle(tmp_path, trained, items, {})
    back = load_bundle(tmp_path).model
    assert np.array_equal(back.shown.hashes(), shown)
    assert torch.equal(back.shown.bucket_T, trained.shown.bucket_T) and torch.equal(back.shown.item_N, trained.shown.item_N)
    assert torch.equal(back.encode_catalogue(), trained.encode_catalogue())
    few = ItemTable(
        hash_N=items.hash_N[:3],
        id_N=items.id_N[:3],
        name_N=items.name_N[:3],
        fields={k: v[:3] for k, v in items.fields.items()},
        numbers={k: v[:3] for k, v in items.numbers.items()},
        key_KN=items.key_KN[:, :3],
    )
    back.set_items(few)
    save_bundle(tmp_path / "few", back, few, {})
    assert np.array_equal(load_bundle(tmp_path / "few").model.shown.hashes(), shown)


def _rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of a bundle, and its checksum with them."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    settings = json.loads((folder / SETTINGS).read_text())
    settings["sha256"][WEIGHTS] = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    (folder / SETTINGS).write_text(json.dumps(settings))


def test_a_bundle_of_before_this_was_kept_reads_every_bucket_as_it_did(model: Dig, items: ItemTable, tmp_path: Path) -> None:
    save_bundle(tmp_path, model, items, {})

    def forget(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["shown.bucket_T"], tensors["shown.hash_X"]

    _rewrite(tmp_path, forget)
    old = load_bundle(tmp_path).model
    assert not old.shown.bucket_T.any() and not len(old.shown.hashes())
    rows = torch.arange(len(items))
    with torch.no_grad():
        plain = old.corpus_norm(old.encoder(old.item_fields(old.item_index_NJ, old.item_number_NQ)))
    assert torch.equal(old.encode_items(rows), plain)
    assert not torch.allclose(old.encode_items(rows), model.encode_items(rows)), "the model itself knows what it was not shown"


@pytest.mark.parametrize("name", ["shown.bucket_T", "shown.hash_X", "rank_bias"])
def test_a_bundle_that_lacks_a_tensor_is_refused(model: Dig, items: ItemTable, tmp_path: Path, name: str) -> None:
    save_bundle(tmp_path, model, items, {})
    _rewrite(tmp_path, lambda tensors: tensors.__delitem__(name))
    with pytest.raises(BundleMismatch, match=f"weights missing: {name}"):
        load_bundle(tmp_path)


def test_a_list_of_items_shown_that_is_none_is_refused(model: Dig, items: ItemTable, tmp_path: Path) -> None:
    save_bundle(tmp_path, model, items, {})
    _rewrite(tmp_path, lambda tensors: tensors.update({"shown.hash_X": torch.zeros(2, 3)}))
    with pytest.raises(BundleMismatch, match=r"weights missing: shown\.hash_X"):
        load_bundle(tmp_path)
