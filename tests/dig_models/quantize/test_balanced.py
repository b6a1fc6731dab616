"""Balanced k-means: sizes, the cost of its assignment against an exact solver, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

from dig_models.quantize.balanced import balanced_kmeans, balanced_labels


def lumps(items: int, width: int, seed: int = 0) -> np.ndarray:
    """Items around centres of very different weight."""
    rng = np.random.default_rng(seed)
    center = rng.normal(size=(12, width)) * 3
    return (center[rng.choice(12, items, p=rng.dirichlet(np.ones(12)))] + rng.normal(size=(items, width))).astype(np.float32)


def cheapest(cost_MK: np.ndarray) -> float:
    """Cost of the best even assignment: places in clusters, of which those beyond ``floor(M / K)`` may stay empty."""
    items, clusters = cost_MK.shape
    low, high = items // clusters, -(-items // clusters)
    place = np.repeat(cost_MK, high, axis=1)
    empty = np.where(np.arange(clusters * high) % high < low, 1e9, 0.0)
    whole = np.vstack([place, np.tile(empty, (clusters * high - items, 1))])
    row, column = linear_sum_assignment(whole)
    return float(whole[row, column].sum())


@pytest.mark.parametrize(("items", "clusters"), [(97, 8), (96, 8), (40, 40), (41, 40), (7, 1), (300, 37)])
def test_sizes_differ_by_at_most_one(items: int, clusters: int) -> None:
    found = balanced_kmeans(lumps(items, 6), clusters, seed=3)
    size_K = np.bincount(found.label_M, minlength=clusters)
    assert size_K.sum() == items and size_K.max() - size_K.min() <= 1
    for cluster in range(clusters):
        np.testing.assert_allclose(found.center_KD[cluster], lumps(items, 6)[found.label_M == cluster].mean(0), atol=1e-4)


@pytest.mark.parametrize(("items", "clusters"), [(60, 7), (60, 6), (121, 11), (9, 9), (200, 3)])
def test_the_assignment_is_the_cheapest_whatever_prices_it_starts_from(items: int, clusters: int) -> None:
    rng = np.random.default_rng(items)
    cost_MK = rng.gamma(0.5, 1.0, (items, clusters)) * rng.gamma(0.5, 1.0, clusters)
    best = cheapest(cost_MK)
    for price_K in (None, rng.normal(size=clusters), 100 * rng.normal(size=clusters)):
        label_M, after_K = balanced_labels(cost_MK, price_K)
        assert cost_MK[np.arange(items), label_M].sum() == pytest.approx(best, rel=1e-9)
        size_K = np.bincount(label_M, minlength=clusters)
        assert size_K.max() - size_K.min() <= 1
        priced_MK = cost_MK + after_K
        np.testing.assert_allclose(priced_MK[np.arange(items), label_M], priced_MK.min(1), atol=1e-6)


def test_no_swap_of_two_items_makes_clusters_tighter() -> None:
    x_MD = lumps(150, 4)
    found = balanced_kmeans(x_MD, 10, seed=0)
    cost_MK = np.square(x_MD[:, None] - found.center_KD).sum(2)
    now_M = cost_MK[np.arange(150), found.label_M]
    swapped_MM = cost_MK[:, found.label_M]
    assert (swapped_MM + swapped_MM.T >= now_M[:, None] + now_M[None] - 1e-3).all()


def test_clusters_of_even_size_cost_little_more_than_free_ones() -> None:
    x_MD = lumps(600, 8)
    found = balanced_kmeans(x_MD, 12, seed=0)
    even = float(np.square(x_MD - found.center_KD[found.label_M]).sum())
    free = float(KMeans(12, n_init=3, random_state=0).fit(x_MD).inertia_)
    shuffled = found.label_M[np.random.default_rng(0).permutation(600)]
    center_KD = np.stack([x_MD[shuffled == k].mean(0) for k in range(12)])
    random = float(np.square(x_MD - center_KD[shuffled]).sum())
    assert free * 0.999 < even < free + 0.5 * (random - free)


def test_the_seed_decides_the_clusters() -> None:
    x_MD = lumps(200, 5)
    first, again, other = (balanced_kmeans(x_MD, 9, seed=seed).label_M for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_items_that_are_all_alike_are_spread_evenly() -> None:
    size_K = np.bincount(balanced_kmeans(np.ones((50, 3), dtype=np.float32), 7, seed=0).label_M, minlength=7)
    assert sorted(size_K) == [7] * 6 + [8]


def test_what_cannot_be_clustered_is_refused() -> None:
    x_MD = lumps(5, 3)
    for clusters in (6, 0):
        with pytest.raises(ValueError, match=rf"5 item\(s\) into {clusters} cluster\(s\): from 1 cluster to one an item expected"):
            balanced_kmeans(x_MD, clusters, seed=0)
    x_MD[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"1 item\(s\) with values that are not finite"):
        balanced_kmeans(x_MD, 2, seed=0)
