"""Vectors that come from outside: whose they are, what items without one get, and that they come back as what they were."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dig_models.features import FeatureSpec, FieldSpec
from dig_models.items import ItemTable
from dig_models.tokenizers.base import CONTENT_KINDS, SETTINGS, TokenizerError
from dig_models.tokenizers.given import GivenVectors
from dig_models.tokenizers.rkmeans import ResidualKMeans
from tests.dig_models.tokenizers.kinds import cold_items

WIDTH = 12


def by_brand(items: ItemTable, seed: int = 0) -> NDArray[np.float64]:
    """Vectors of all rows but the unknown one: one direction a brand, and a little noise."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=(16, WIDTH))
    return 5.0 * direction[items.fields["brand"][1:]] + rng.normal(size=(len(items) - 1, WIDTH))


@pytest.fixture(scope="module")
def given(spec: FeatureSpec, items: ItemTable) -> GivenVectors:
    """Of all items but the last twenty, in no order."""
    order = np.random.default_rng(1).permutation(len(items) - 21)
    return GivenVectors.of_vectors(items, spec, items.hash_N[1:][order], by_brand(items)[order], seed=0)


def test_an_item_gets_its_own_vector_scaled_by_one_factor(given: GivenVectors, items: ItemTable) -> None:
    own, vector_ND = by_brand(items)[:-20], given.of(items)
    assert vector_ND.dtype == np.float32 and vector_ND.shape == (len(items), WIDTH)
    np.testing.assert_allclose(vector_ND[1:-20], own / np.sqrt(np.mean(own**2)), rtol=1e-5)
    assert np.mean(np.square(given.vector_XD)) == pytest.approx(1.0, rel=1e-5)


def test_an_item_without_a_vector_gets_what_its_fields_say_and_the_unknown_item_zeros(given: GivenVectors, items: ItemTable) -> None:
    vector_ND = given.of(items)
    assert not vector_ND[0].any()
    left_XD, own_XD = vector_ND[-20:], by_brand(items)[-20:]
    cosine = (left_XD * own_XD).sum(1) / np.linalg.norm(left_XD, axis=1) / np.linalg.norm(own_XD, axis=1)
    assert cosine.mean() > 0.5, "its brand says most of a vector"
    other = replace(items, fields={**items.fields, "brand": np.r_[0, np.roll(items.fields["brand"][1:], 5)]})
    changed_N = (given.of(other) != vector_ND).any(axis=1)
    assert not changed_N[:-20].any() and changed_N[-20:].sum() > 10


def test_where_no_field_says_anything_an_item_without_a_vector_gets_zeros(spec: FeatureSpec, items: ItemTable) -> None:
    bare = FeatureSpec.model_validate(spec.model_dump() | {"item_fields": [FieldSpec(name="item_id", buckets=256).model_dump()]})
    given = GivenVectors.of_vectors(items, bare, items.hash_N[1:-5], by_brand(items)[:-5], seed=0)
    vector_ND = given.of(items)
    assert not vector_ND[-5:].any() and vector_ND[1:-5].any(axis=1).all()
    assert not given.of(cold_items(spec, ["cold"])).any()


def test_items_outside_the_catalogue_keep_their_vectors(spec: FeatureSpec, items: ItemTable) -> None:
    cold = cold_items(spec, ["cold-1", "cold-2"])
    hash_M = np.concatenate([items.hash_N[1:], cold.hash_N[1:]])
    vector_MD = np.concatenate([by_brand(items), [[3.0] * WIDTH, [-3.0] * WIDTH]])
    vector_ND = GivenVectors.of_vectors(items, spec, hash_M, vector_MD, seed=0).of(cold)
    np.testing.assert_allclose(vector_ND[1], -vector_ND[2])
    assert np.ptp(vector_ND[1]) == 0 and vector_ND[1, 0] > 0


def test_a_tokenizer_keeps_them_and_brings_them_back(given: GivenVectors, spec: FeatureSpec, items: ItemTable, tmp_path: Path) -> None:
    made = ResidualKMeans.fit(items, spec, levels=2, codes=8, seed=1, content=given)
    made.save(tmp_path)
    loaded = ResidualKMeans.load(tmp_path, spec)
    assert type(loaded.content) is GivenVectors
    for table in (items, cold_items(spec, ["cold-1", "cold-2"])):
        np.testing.assert_array_equal(loaded.encode(table), made.encode(table))


def test_the_stored_kind_of_vectors_decides_and_one_that_is_not_known_is_refused(
    given: GivenVectors, spec: FeatureSpec, items: ItemTable, tmp_path: Path
) -> None:
    made = ResidualKMeans.fit(items, spec, levels=2, codes=8, seed=1, content=given)
    made.save(tmp_path)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    assert settings["content"] == "given" and {*CONTENT_KINDS} >= {"fields", "co_occurrence", "given"}
    (tmp_path / SETTINGS).write_text(json.dumps(settings | {"content": "co_occurrence"}))
    assert type(ResidualKMeans.load(tmp_path, spec).content) is CONTENT_KINDS["co_occurrence"]
    for other, said in (("fields", "hash_X"), ("pictures", "content vectors of kind 'pictures', known are co_occurrence, ")):
        (tmp_path / SETTINGS).write_text(json.dumps(settings | {"content": other}))
        with pytest.raises(TokenizerError, match=said):
            ResidualKMeans.load(tmp_path, spec)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda h, v: (h[:-1], v), r"one row for each of 119 items expected, found an array of shape \(120, 12\)"),
        (lambda h, v: (h, v[:, 0]), r"found an array of shape \(120,\)"),
        (lambda h, v: (h[:0], v[:0]), r"one row for each of 0 items expected"),
        (lambda h, v: (np.r_[h[:-1], h[0]], v), r"item hash -?\d+ has two vectors, expected one"),
        (lambda h, v: (h, np.where(np.arange(len(v))[:, None] == 7, np.nan, v)), r"1 of 120 are not finite, the first in row 7"),
        (lambda h, v: (h + 1, v), r"none of 120 items is among the 120 of the catalogue"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(change, said: str, spec: FeatureSpec, items: ItemTable) -> None:  # type: ignore[no-untyped-def]
    hash_M, vector_MD = change(items.hash_N[1:], by_brand(items))
    with pytest.raises(ValueError, match=said):
        GivenVectors.of_vectors(items, spec, hash_M, vector_MD, seed=0)
