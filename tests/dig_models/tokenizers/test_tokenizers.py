"""What tokenizers of content vectors do beyond the contract, and the vectors."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import synthetic
import torch

from dig_models.features import FeatureSpec
from dig_models.items import ItemTable
from dig_models.quantize.tree import nearest_codes
from dig_models.tokenizers.base import Tokenizer
from dig_models.tokenizers.co_occurrence import CoOccurrenceVectors
from dig_models.tokenizers.content import ContentVectors
from dig_models.tokenizers.rkmeans import ResidualKMeans, residual_kmeans
from dig_models.tokenizers.rqvae import RqVae, RqVaeSettings

QUICK = RqVaeSettings(epochs=30, batch=64, hidden=(32,), latent=8)
FITS = {"rkmeans": ResidualKMeans.fit, "rqvae": partial(RqVae.fit, settings=QUICK)}
KINDS = {"rkmeans": ResidualKMeans, "rqvae": RqVae}
LEVELS, CODES = 3, 8


@pytest.fixture(scope="module", params=sorted(FITS))
def fitted(request: pytest.FixtureRequest, spec: FeatureSpec, items: ItemTable) -> Tokenizer:
    return FITS[request.param](items, spec, levels=LEVELS, codes=CODES, seed=1)


def test_items_with_equal_fields_share_a_sid_whatever_their_id(fitted: Tokenizer, spec: FeatureSpec, items: ItemTable) -> None:
    other = replace(items, fields={**items.fields, "item_id": np.roll(items.fields["item_id"], 3)})
    assert np.array_equal(fitted.encode(other), fitted.encode(items))


@pytest.mark.parametrize("kind", sorted(FITS))
def test_codes_are_the_nearest_to_what_it_embeds(kind: str, spec: FeatureSpec, items: ItemTable, tmp_path: Path) -> None:
    """Of both kinds of vectors; and what knows co-occurrence comes back from its folder too."""
    cold = synthetic.make_items(spec, ["cold-1", "cold-2", "cold-3"])
    for content in (None, bought_in_groups(items, spec)):
        made = FITS[kind](items, spec, levels=LEVELS, codes=CODES, seed=1, content=content)
        code_NL = made.encode(items)
        np.testing.assert_array_equal(nearest_codes(made.embed(items)[1:], made.code_LKD), code_NL[1:])
        made.save(tmp_path)
        loaded = KINDS[kind].load(tmp_path, spec)
        assert type(loaded.content) is type(made.content)
        for table in (items, cold):
            np.testing.assert_array_equal(loaded.encode(table), made.encode(table))


GROUPS = 4


def bought_in_groups(items: ItemTable, spec: FeatureSpec) -> CoOccurrenceVectors:
    """Baskets of four items of one group, ``row % GROUPS``; the last eight rows are never bought."""
    rng, baskets = np.random.default_rng(0), []
    sold = np.arange(1, len(items) - 8)
    for basket in range(600):
        baskets += [(basket, item) for item in rng.choice(sold[sold % GROUPS == basket % GROUPS], 4, replace=False)]
    basket_P, item_P = np.array(baskets).T
    return CoOccurrenceVectors.of_baskets(items, spec, basket_P, item_P, seed=0)


def test_items_bought_together_are_alike_and_others_follow_from_their_fields(spec: FeatureSpec, items: ItemTable) -> None:
    content = bought_in_groups(items, spec)
    vector_ND = content.of(items)
    assert not vector_ND[0].any() and vector_ND.dtype == np.float32
    assert len(content.hash_X) == len(items) - 9
    unit = vector_ND / np.maximum(np.linalg.norm(vector_ND, axis=1, keepdims=True), 1e-9)
    sold = np.arange(1, len(items) - 8)
    cosine, same = unit[sold] @ unit[sold].T, sold[:, None] % GROUPS == sold % GROUPS
    assert cosine[same].mean() > cosine[~same].mean() + 0.2
    assert np.square(vector_ND[sold]).mean() == pytest.approx(1.0, rel=1e-4)
    other = replace(items, fields={**items.fields, "brand": np.roll(items.fields["brand"], 5)})
    changed_N = (content.of(other) != vector_ND).any(axis=1)
    assert not changed_N[sold].any() and changed_N[len(items) - 8 :].any()


def test_what_a_basket_repeats_counts_once_and_too_few_baskets_are_refused(spec: FeatureSpec, items: ItemTable) -> None:
    basket_P, item_P = np.repeat(np.arange(6), 3), np.tile([1, 2, 3], 6)
    once = CoOccurrenceVectors.of_baskets(items, spec, np.append(basket_P, 9), np.append(item_P, 4), seed=0)
    twice = CoOccurrenceVectors.of_baskets(items, spec, np.tile(basket_P, 2), np.tile(item_P, 2), seed=0)
    np.testing.assert_array_equal(once.of(items), twice.of(items))
    with pytest.raises(ValueError, match=r"0 item\(s\) were bought beside another one in 3 baskets"):
        CoOccurrenceVectors.of_baskets(items, spec, np.arange(20), np.arange(1, 21), seed=0)


def test_too_small_a_catalogue_is_refused(spec: FeatureSpec) -> None:
    for fit in FITS.values():
        with pytest.raises(ValueError, match=r"content vectors of 1 item\(s\)"):
            fit(synthetic.make_items(spec, ["x"]), spec, levels=2, codes=4, seed=0)


def test_an_rqvae_learns_to_rebuild_its_items_and_its_codes_say_more_level_by_level(spec: FeatureSpec, items: ItemTable) -> None:
    made = RqVae.fit(items, spec, levels=LEVELS, codes=CODES, seed=1, settings=QUICK.model_copy(update={"epochs": 120}))
    assert len(made.losses) == 120 and made.losses[-1] < 0.9 * made.losses[0]
    with torch.no_grad():
        z_MD = made.network.encoder(torch.from_numpy(made.content.of(items)[1:]))
        code_ML = torch.from_numpy(made.encode(items)[1:])
        left = [
            float((z_MD - made.network.quantizer.quantized(code_ML)[:, : level + 1].sum(1)).square().sum(1).mean())
            for level in range(LEVELS)
        ]
    assert left == sorted(left, reverse=True) and left[-1] < left[0]


def test_residual_kmeans_quantizes_better_with_every_level_and_copes_with_few_distinct_items() -> None:
    rng = np.random.default_rng(0)
    x_MD = rng.normal(size=(200, 5)).astype(np.float32)
    code_LKD = residual_kmeans(x_MD, 3, 6, seed=0)
    residual, errors = x_MD, []
    for center_KD in code_LKD:
        distance = np.square(residual[:, None] - center_KD).sum(2)
        errors.append(float(distance.min(1).mean()))
        residual = residual - center_KD[distance.argmin(1)]
    assert errors == sorted(errors, reverse=True)
    few = residual_kmeans(np.repeat(x_MD[:3], 5, axis=0), 2, 6, seed=0)
    assert np.isfinite(few).all() and few.shape == (2, 6, 5)


def test_content_vectors_tell_items_apart_by_their_fields(spec: FeatureSpec, items: ItemTable) -> None:
    content = ContentVectors.fit(items, spec, seed=0)
    vector_ND = content.of(items)
    assert np.square(vector_ND[1:]).mean() == pytest.approx(1.0, rel=1e-4)
    same = items.fields["brand"][1:, None] == items.fields["brand"][None, 1:]
    np.fill_diagonal(same, False)
    unit = vector_ND[1:] / np.linalg.norm(vector_ND[1:], axis=1, keepdims=True)
    cosine = unit @ unit.T
    other = ~same & ~np.eye(len(same), dtype=bool)
    assert cosine[same].mean() > cosine[other].mean() + 0.1
    wrong = replace(items, fields={**items.fields, "brand": items.fields["brand"] + 100})
    with pytest.raises(ValueError, match=r"field 'brand': bucket \d+ found, the spec declares 0..15"):
        content.of(wrong)
