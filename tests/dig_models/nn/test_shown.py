"""What training has shown: noted as it happens, and read as missing where it did not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dig_models.batch import Batch
from dig_models.bundle import load_bundle, save_bundle
from dig_models.dig import Dig
from dig_models.features import FeatureSpec, FieldSpec
from dig_models.items import ItemTable
from dig_models.nn.embedding import FieldEmbedding
from dig_models.nn.shown import Shown
from dig_models.train.validate import figures_of_sids
from dig_models.u2t import PairLookup
from tests.dig_models.conftest import make_dig

SEEN = 80


@pytest.fixture
def some(batch: Batch) -> Batch:
    """A batch that shows none of the items from row ``SEEN`` on."""
    below = batch.history_BH % SEEN
    return replace(batch, item_R=batch.item_R % (SEEN - 1) + 1, history_BH=below)


def _trained(model: Dig, batch: Batch, lookup: PairLookup, steps: int = 3) -> Dig:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(batch, "warmup", lookup)["total"].backward()
        optimizer.step()
        model.update_codebooks()
    return model


def _of_batch(batch: Batch) -> list[int]:
    return sorted({*batch.item_R.tolist(), *batch.history_BH.flatten().tolist()} - {0})


def test_a_training_step_notes_the_items_and_the_buckets_that_it_reads(
    spec: FeatureSpec, items: ItemTable, some: Batch, lookup: PairLookup
) -> None:
    model = make_dig(spec, items, item_id_dropout=0.0)
    weights = model.item_fields.table.weight.detach().clone()
    _trained(model, some, lookup)
    rows = _of_batch(some)
    assert model.shown.item_N.nonzero().squeeze(1).tolist() == rows
    assert model.shown.hashes().tolist() == sorted(items.hash_N[rows].tolist())
    moved = (model.item_fields.table.weight != weights).any(dim=1)
    assert not (moved & ~model.shown.bucket_T).any(), "what a step moved was noted"
    unmoved = (model.shown.bucket_T & ~moved).nonzero().squeeze(1).tolist()
    assert set(unmoved) <= set(model.item_fields.offset.values()), "and no more but the row of what is missing"


def test_an_item_whose_id_was_masked_in_every_step_was_not_shown_with_its_id(
    spec: FeatureSpec, items: ItemTable, some: Batch, lookup: PairLookup
) -> None:
    model = _trained(make_dig(spec, items, item_id_dropout=1.0), some, lookup)
    assert not model.shown.item_N.any() and len(model.shown.hashes()) == 0
    noted = model.shown.bucket_T[: model.item_fields.offset["brand"]]
    assert noted.nonzero().flatten().tolist() == [0]
    brands = model.shown.bucket_T[model.item_fields.offset["brand"] : model.item_fields.offset["tags"]]
    assert set(brands.nonzero().flatten().tolist()) == {0, *items.fields["brand"][_of_batch(some)].tolist()}


def test_evaluation_notes_nothing(spec: FeatureSpec, items: ItemTable, some: Batch, lookup: PairLookup) -> None:
    model = make_dig(spec, items).eval()
    model(some, "warmup", lookup)
    assert not model.shown.bucket_T.any() and not model.shown.item_N.any()


def test_an_item_that_no_example_showed_is_encoded_without_its_id(
    spec: FeatureSpec, items: ItemTable, some: Batch, lookup: PairLookup
) -> None:
    """Also one of the catalogue, and also if other items have trained its bucket."""
    model = _trained(make_dig(spec, items, item_id_dropout=0.0), some, lookup).eval()
    e_ND = model.encode_catalogue()
    shown = _of_batch(some)
    never = sorted({*range(1, len(items))} - {*shown})
    assert min(len(shown), len(never)) > 20
    for fields in (np.zeros_like(items.fields["item_id"]), np.full_like(items.fields["item_id"], items.fields["item_id"][shown[0]])):
        other = items.fields["item_id"].copy()
        other[never] = fields[never]
        model.set_items(replace(items, fields={**items.fields, "item_id": other}))
        assert torch.equal(model.encode_catalogue(), e_ND)
        other[shown] = 0
        model.set_items(replace(items, fields={**items.fields, "item_id": other}))
        assert not torch.allclose(model.encode_catalogue()[shown], e_ND[shown])


@pytest.mark.parametrize("name", ["brand", "tags", "words"])
def test_a_value_that_no_example_showed_is_encoded_as_a_missing_one(
    spec: FeatureSpec, items: ItemTable, some: Batch, lookup: PairLookup, name: str
) -> None:
    start = {"brand": 13, "tags": 20, "words": 40}[name]
    kept = {**items.fields, name: np.where(items.fields[name] < start, items.fields[name], 0)}
    model = _trained(make_dig(spec, replace(items, fields=kept), item_id_dropout=0.0), some, lookup).eval()
    found = {}
    for value in (0, start, start + 1, 1):
        changed = kept[name].copy()
        changed[1:, ...] = np.where(changed[1:] > 0, value, 0)
        model.set_items(replace(items, fields={**kept, name: changed}))
        found[value] = model.encode_catalogue()
    assert torch.equal(found[0], found[start]) and torch.equal(found[0], found[start + 1])
    assert not torch.allclose(found[0], found[1])


def test_a_model_of_which_nothing_is_noted_reads_every_bucket(spec: FeatureSpec, items: ItemTable) -> None:
    model = make_dig(spec, items).eval()
    e_ND = model.encode_catalogue()
    model.set_items(replace(items, fields={**items.fields, "item_id": items.fields["item_id"] * 0}))
    assert not torch.allclose(model.encode_catalogue(), e_ND)


def test_what_was_shown_is_remembered_in_every_catalogue(spec: FeatureSpec, items: ItemTable, some: Batch, lookup: PairLookup) -> None:
    model = _trained(make_dig(spec, items, item_id_dropout=0.0), some, lookup).eval()
    hashes, e_ND = model.shown.hashes(), model.encode_catalogue()

    def part(rows: list[int]) -> ItemTable:
        return ItemTable(
            hash_N=items.hash_N[rows],
            id_N=items.id_N[rows],
            name_N=items.name_N[rows],
            fields={k: v[rows] for k, v in items.fields.items()},
            numbers={k: v[rows] for k, v in items.numbers.items()},
            key_KN=items.key_KN[:, rows],
        )

    model.set_items(part([0, 1]))
    assert np.array_equal(model.shown.hashes(), hashes)
    assert model.shown.of(items.hash_N).tolist() == np.isin(items.hash_N, hashes).tolist()
    model.set_items(items)
    assert torch.equal(model.encode_catalogue(), e_ND)


def test_a_spec_without_an_item_id_field_has_no_id_to_leave_out() -> None:
    shown = Shown(FieldEmbedding([FieldSpec(name="brand", buckets=4), FieldSpec(name="price", kind="numeric")], 2))
    index_MJ = torch.tensor([[1], [2]])
    assert torch.equal(shown.without_id(index_MJ, torch.tensor([True, True])), index_MJ)


def test_a_bucket_is_missing_in_its_own_field() -> None:
    shown = Shown(FieldEmbedding([FieldSpec(name="item_id", buckets=4), FieldSpec(name="brand", buckets=3)], 2))
    shown.bucket_T[[0, 2, 4, 5]] = True
    index_MJ = torch.tensor([[2, 5], [2, 6], [3, 5]])
    assert shown.known(index_MJ, torch.tensor([True, False, True])).tolist() == [[2, 5], [0, 4], [0, 5]]
    assert index_MJ.tolist() == [[2, 5], [2, 6], [3, 5]]


def test_figures_of_an_epoch_are_those_of_the_bundle_that_training_would_leave(
    spec: FeatureSpec, items: ItemTable, some: Batch, lookup: PairLookup, tmp_path: Path
) -> None:
    model = _trained(make_dig(spec, items, item_id_dropout=0.0), some, lookup)
    model.build_codebooks(1)
    own_NL = model.codes(model.encode_catalogue())
    share = 1 - len(_of_batch(some)) / (len(items) - 1)
    assert 0 < share == pytest.approx(model.update_codebooks()["never_shown"])
    code_NL = model.eval().codes(model.encode_catalogue())
    assert not torch.equal(code_NL[SEEN:], own_NL[SEEN:]), "training reads what it has not shown yet"
    found = figures_of_sids(model, code_NL)
    save_bundle(tmp_path, model, items, {})
    published_NL = load_bundle(tmp_path).codes_NL[1:]
    assert found["sid_collision_rate"] == pytest.approx(1 - len({tuple(code) for code in published_NL.tolist()}) / len(published_NL))
    for level in range(model.config.levels):
        assert found[f"sid_codes_used_{level + 1}"] == len(set(published_NL[:, level].tolist()))
    assert found["sid_never_shown"] == pytest.approx(share)
