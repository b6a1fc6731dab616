"""Globally aligned orthogonal quantization: unique SIDs, even nodes, codes that mean the same under every parent."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dig_models.quantize.gaoq import Gaoq, alignment, anchors, branching_of, prefix_nodes

ITEMS, WIDTH, BRANCHING = 600, 24, (5, 8, 15)


def shared_offsets(items: int = ITEMS, seed: int = 0) -> np.ndarray:
    """Items at one of five places plus one of eight offsets: the offsets are what parents have in common."""
    rng = np.random.default_rng(seed)
    place, offset = 9 * rng.normal(size=(5, WIDTH)), 3 * rng.normal(size=(8, WIDTH))
    at = np.arange(items)
    return (place[at % 5] + offset[at // 5 % 8] + 0.3 * rng.normal(size=(items, WIDTH))).astype(np.float32)


@pytest.fixture(scope="module")
def x_MD() -> np.ndarray:
    return shared_offsets()


@pytest.fixture(scope="module")
def fitted(x_MD: np.ndarray) -> Gaoq:
    return Gaoq.fit(x_MD, BRANCHING, seed=1)


@pytest.mark.parametrize(
    ("items", "branching"), [(600, (5, 8, 15)), (601, (5, 8, 16)), (97, (5, 20)), (200, (3, 4, 3, 6)), (7, (2, 3, 2)), (1, (1, 1))]
)
def test_no_two_items_share_a_sid_and_nodes_differ_by_at_most_one_item(items: int, branching: tuple[int, ...]) -> None:
    code_ML = Gaoq.fit(shared_offsets(items), branching, seed=0).code_ML
    assert code_ML.shape == (items, len(branching)) and len(np.unique(code_ML, axis=0)) == items
    assert code_ML.min() >= 0 and (code_ML.max(0) < branching).all()
    for level in range(1, len(branching)):
        size_P = np.bincount(prefix_nodes(code_ML[:, :level], branching), minlength=math.prod(branching[:level]))
        assert size_P.max() - size_P.min() <= 1


def test_items_that_are_all_alike_still_get_sids_of_their_own() -> None:
    assert len(np.unique(Gaoq.fit(np.ones((50, 8), dtype=np.float32), (3, 4, 5), seed=0).code_ML, axis=0)) == 50


def test_a_code_points_the_same_way_under_every_parent(x_MD: np.ndarray, fitted: Gaoq) -> None:
    aligned = alignment(x_MD, fitted.code_ML, 2)
    shuffled = fitted.code_ML.copy()
    rng = np.random.default_rng(0)
    for parent in range(BRANCHING[0]):
        member = shuffled[:, 0] == parent
        shuffled[member, 1] = rng.permutation(BRANCHING[1])[shuffled[member, 1]]
    by_chance = alignment(x_MD, shuffled, 2)
    assert abs(by_chance) < 0.15 and aligned > 0.3 and aligned > by_chance + 0.3


def test_level_two_is_matched_by_the_cosines_of_centred_means_to_the_anchors(x_MD: np.ndarray, fitted: Gaoq) -> None:
    """No exchange of two codes of a parent brings children nearer to their anchors."""
    for parent in range(BRANCHING[0]):
        member = fitted.code_ML[:, 0] == parent
        child = np.stack([x_MD[member & (fitted.code_ML[:, 1] == code)].mean(0) for code in range(BRANCHING[1])])
        direction = child - x_MD[member].mean(0)
        cosine = direction / np.linalg.norm(direction, axis=1, keepdims=True) @ fitted.anchors[0].T
        own = cosine.diagonal()
        assert (cosine + cosine.T <= own[:, None] + own[None] + 1e-4).all()


def test_centers_are_the_means_of_their_nodes(x_MD: np.ndarray, fitted: Gaoq) -> None:
    for level, center_PD in enumerate(fitted.centers, start=1):
        node_M = prefix_nodes(fitted.code_ML[:, :level], BRANCHING)
        np.testing.assert_allclose(center_PD, np.stack([x_MD[node_M == node].mean(0) for node in range(len(center_PD))]), atol=1e-4)


def test_alignment_is_the_mean_cosine_over_pairs_of_parents() -> None:
    """Against the definition, on random codes of few items."""
    rng = np.random.default_rng(3)
    x_MD, code_ML = rng.normal(size=(40, 6)), rng.integers(0, 3, (40, 2))
    direction = {}
    for parent, code in {tuple(row) for row in code_ML}:
        of_parent = code_ML[:, 0] == parent
        d = x_MD[of_parent & (code_ML[:, 1] == code)].mean(0) - x_MD[of_parent].mean(0)
        direction[parent, code] = d / np.linalg.norm(d)
    cosines = [a @ b for (p, c), a in direction.items() for (q, e), b in direction.items() if c == e and p != q]
    assert alignment(x_MD, code_ML, 2) == pytest.approx(np.mean(cosines), abs=1e-6)
    assert np.isnan(alignment(x_MD, np.stack([np.arange(40), np.zeros(40, dtype=np.int64)], axis=1), 2))
    for level in (1, 3):
        with pytest.raises(ValueError, match=rf"alignment of level {level}: 2\.\.2 expected"):
            alignment(x_MD, code_ML, level)


def test_the_seed_decides_the_sids(x_MD: np.ndarray, fitted: Gaoq) -> None:
    assert np.array_equal(Gaoq.fit(x_MD, BRANCHING, seed=1).code_ML, fitted.code_ML)
    assert not np.array_equal(Gaoq.fit(x_MD, BRANCHING, seed=2).code_ML, fitted.code_ML)


def test_anchors_are_orthonormal_and_too_many_are_refused() -> None:
    anchor_BD = anchors(12, 12, seed=5, level=2)
    np.testing.assert_allclose(anchor_BD @ anchor_BD.T, np.eye(12), atol=1e-5)
    assert not np.allclose(anchor_BD, anchors(12, 12, seed=5, level=3))
    with pytest.raises(ValueError, match=r"level 2: 13 orthonormal anchors in 12 dimensions, where at most 12 fit"):
        anchors(13, 12, seed=5, level=2)
    with pytest.raises(ValueError, match=r"level 3: 25 orthonormal anchors in 24 dimensions"):
        Gaoq.fit(shared_offsets(100), (2, 2, 25), seed=0)


def test_a_cold_item_goes_to_the_nearest_node_and_takes_the_free_anchor_nearest_to_it(x_MD: np.ndarray, fitted: Gaoq) -> None:
    cold_XD = shared_offsets(90, seed=0)[40:] + 0.05
    free = Gaoq.fit(x_MD[:590], BRANCHING, seed=1)  # ten buckets have an anchor left
    for made in (fitted, free):
        code_XL = made.nearest(cold_XD)
        first_PD, second_PD = made.centers
        for x_D, (one, two, three) in zip(cold_XD, code_XL, strict=True):
            assert one == np.square(first_PD - x_D).sum(1).argmin()
            child_BD = second_PD.reshape(*BRANCHING[:2], -1)[one]
            assert two == np.square(child_BD - x_D).sum(1).argmin()
            bucket = (made.code_ML[:, :2] == [one, two]).all(1)
            left = np.setdiff1d(np.arange(BRANCHING[2]), made.code_ML[bucket, 2])
            assert len(left) == BRANCHING[2] - bucket.sum()
            among = left if len(left) else np.arange(BRANCHING[2])
            assert three == among[(made.anchors[-1][among] @ (x_D - child_BD[two])).argmax()]


def test_cold_items_get_codes_each_for_itself(fitted: Gaoq) -> None:
    cold_XD = shared_offsets(700, seed=4)
    code_XL = fitted.nearest(cold_XD)
    assert np.array_equal(fitted.nearest(cold_XD[300:310]), code_XL[300:310])
    assert fitted.nearest(cold_XD[:0]).shape == (0, 3)


def test_it_comes_back_from_its_arrays(x_MD: np.ndarray, fitted: Gaoq) -> None:
    again = Gaoq.from_arrays(fitted.arrays())
    assert again.branching == BRANCHING and np.array_equal(again.nearest(x_MD + 0.1), fitted.nearest(x_MD + 0.1))


@pytest.mark.parametrize("items", [1, 2, 15, 120, 12_101, 23_742])
@pytest.mark.parametrize("levels", [2, 3, 4])
def test_branching_gives_every_item_a_sid_within_the_codes(items: int, levels: int) -> None:
    least = next(codes for codes in range(1, items + 1) if codes**levels >= items)
    for codes in (least, least + 1, 2 * least, 256):
        branching = branching_of(items, levels, codes)
        assert len(branching) == levels and max(branching) <= max(codes, 1) and math.prod(branching[:-1]) <= items <= math.prod(branching)


def test_buckets_above_the_last_level_hold_ten_to_twenty_items() -> None:
    for items in (2_469, 12_101, 23_742, 87_000, 485_000):
        buckets = math.prod(branching_of(items, 3, 256)[:2])
        assert items / 20 <= buckets <= items / 10


def test_what_cannot_be_branched_is_refused_with_the_branching_that_would_do() -> None:
    with pytest.raises(
        ValueError, match=r"1000 items do not fit into 3 levels of 9 codes, which have 729 SIDs: a branching of 10x10x10 would do"
    ):
        branching_of(1000, 3, 9)
    with pytest.raises(ValueError, match=r"GAOQ of 5 item\(s\) on 1 level"):
        branching_of(5, 1, 9)
    x_MD = shared_offsets(100)
    with pytest.raises(
        ValueError, match=r"branching 5x4x4: the largest of 20 buckets has 5 of 100 items, .* expected 5x4x5 or more buckets"
    ):
        Gaoq.fit(x_MD, (5, 4, 4), seed=0)
    with pytest.raises(ValueError, match=r"branching 20x20x4: 400 buckets of 100 item"):
        Gaoq.fit(x_MD, (20, 20, 4), seed=0)
    for branching in ((100,), (0, 100)):
        with pytest.raises(ValueError, match="at least two levels of at least one child expected"):
            Gaoq.fit(x_MD, branching, seed=0)
    x_MD[4] = np.inf
    with pytest.raises(ValueError, match=r"1 item\(s\) with values that are not finite"):
        Gaoq.fit(x_MD, (5, 4, 5), seed=0)
