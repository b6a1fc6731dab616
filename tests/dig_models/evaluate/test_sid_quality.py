import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dig_models.evaluate import sid_quality as sq


def slow_gini(counts):
    """Half the mean absolute difference of all pairs over the mean."""
    n, mean = len(counts), sum(counts) / len(counts)
    return sum(abs(a - b) for a in counts for b in counts) / (2 * n * n * mean)


@given(st.integers(0, 10_000))
def test_every_figure_agrees_with_a_slow_reading(seed):
    rng = np.random.default_rng(seed)
    codes, levels = 5, 3
    code = rng.integers(0, codes, (40, levels)) // rng.integers(1, 3)
    quality = sq.measure(code, codes)
    buckets = Counter(map(tuple, code.tolist()))
    assert quality.sids == len(buckets)
    assert quality.collision_rate == pytest.approx((40 - len(buckets)) / 40)
    assert quality.unique_rate == pytest.approx(sum(n == 1 for n in buckets.values()) / 40)
    assert quality.largest_bucket == max(buckets.values())
    entropy = -sum(n / 40 * math.log(n / 40) for n in buckets.values())
    assert quality.entropy == pytest.approx(entropy)
    assert quality.entropy_ratio == pytest.approx(entropy / math.log(codes**levels))
    for level, use in enumerate(quality.levels):
        counts = [int((code[:, level] == k).sum()) for k in range(codes)]
        some = [n for n in counts if n]
        assert use.counts == tuple(counts)
        assert (use.used, use.dead, use.codes) == (len(some), codes - len(some), codes)
        assert use.perplexity == pytest.approx(math.exp(-sum(n / 40 * math.log(n / 40) for n in some)))
        assert use.gini == pytest.approx(slow_gini(some), abs=1e-12)
        assert use.gini_all == pytest.approx(slow_gini(counts), abs=1e-12)
        assert use.balance == pytest.approx(1 - sum(abs(n - 40 / codes) for n in counts) / 80)


def test_a_perfect_codebook_has_the_known_values():
    code = np.stack(np.meshgrid(range(4), range(4)), -1).reshape(-1, 2)
    quality = sq.measure(code, 4)
    assert (quality.collision_rate, quality.unique_rate, quality.largest_bucket) == (0.0, 1.0, 1)
    assert quality.entropy_ratio == pytest.approx(1.0)
    level = quality.levels[0]
    assert (level.used, level.dead) == (4, 0)
    assert level.perplexity == pytest.approx(4.0)
    assert level.gini == pytest.approx(0.0)
    assert level.balance == 1.0


def test_collapsed_codes_show_in_every_figure():
    quality = sq.measure(np.zeros((10, 2), dtype=np.int64), 8)
    assert quality.collision_rate == 0.9
    assert quality.unique_rate == 0.0
    assert quality.largest_bucket == 10
    assert quality.entropy == 0.0
    assert quality.levels[0].perplexity == 1.0
    assert quality.levels[0].gini_all == pytest.approx(7 / 8)
    assert quality.levels[0].balance == pytest.approx(1 / 8)


def test_an_empty_catalogue_or_a_code_outside_the_codebook_is_refused():
    with pytest.raises(ValueError, match="empty catalogue"):
        sq.measure(np.zeros((0, 3), dtype=np.int64), 4)
    with pytest.raises(ValueError, match=r"0\.\.3"):
        sq.measure(np.array([[4]]), 4)


def test_churn_counts_changes_by_level_by_prefix_and_by_posting_list():
    old_hash, new_hash = np.array([10, 30, 20, 40]), np.array([20, 10, 30, 50])
    old = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])  # 10, 30, 20, 40
    new = np.array([[1, 0], [0, 0], [2, 1], [1, 1]])  # 20 as before, 10 as before, 30 changed in level 1, 50 new
    churn = sq.churn(old_hash, old, new_hash, new)
    assert churn.items == 3
    assert churn.rate == pytest.approx(1 / 3)
    assert churn.first == pytest.approx((1 / 3, 0.0))
    assert churn.levels == pytest.approx((1 / 3, 0.0))
    assert churn.prefixes == pytest.approx((1 / 3, 1 / 3))
    # (0,0) and (1,0) as before; (0,1) emptied, (2,1) new, (1,1) holds 50 instead of 40.
    assert churn.posting_lists == pytest.approx(3 / 5)


def test_an_item_counts_at_the_first_level_that_changed_however_many_changed_below():
    old = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])
    new = np.array([[0, 0, 0], [0, 0, 2], [0, 2, 2], [3, 3, 3]])
    churn = sq.churn(np.arange(4), old, np.arange(4), new)
    assert churn.first == pytest.approx((1 / 4, 1 / 4, 1 / 4))
    assert sum(churn.first) == pytest.approx(churn.rate)


def test_the_same_generation_has_no_churn_and_disjoint_ones_have_none_to_measure():
    code = np.arange(6).reshape(3, 2)
    same = sq.churn(np.arange(3), code, np.arange(3), code)
    assert (same.rate, same.posting_lists) == (0.0, 0.0)
    assert sq.churn(np.arange(3), code, np.arange(3) + 9, code) is None
    assert sq.churn(np.arange(3), code, np.arange(3), code[:, :1]) is None


def test_severity_tells_harmless_collisions_from_harmful_ones():
    code = np.array([[0, 0], [0, 0], [1, 1], [1, 1], [0, 1]])
    embedding = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    rows = sq.severity(code, embedding)
    assert [r["pairs"] for r in rows] == [2, 4, 4]
    assert rows[0]["cosine"] == pytest.approx(0.5)  # one pair at 1, one at 0


def test_severity_of_a_large_catalogue_is_a_seeded_sample():
    rng = np.random.default_rng(0)
    code, embedding = rng.integers(0, 3, (300, 3)), rng.normal(size=(300, 4))
    assert sq.severity(code, embedding, max_items=50, seed=1) == sq.severity(code, embedding, max_items=50, seed=1)
    assert sum(r["pairs"] for r in sq.severity(code, embedding, max_items=50)) <= 50 * 49 / 2


def test_embedding_hit_rate_is_the_share_of_neighbours_found():
    embedding = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    neighbour, offsets = np.array([1, 2, 0]), np.array([0, 2, 3, 3, 3])  # item 0: 1 and 2, item 1: 0
    assert sq.embedding_hit_rate(embedding, neighbour, offsets, 1) == pytest.approx((0.5 + 1.0) / 2)
    assert sq.embedding_hit_rate(embedding, neighbour, offsets, 3) == 1.0
    assert np.isnan(sq.embedding_hit_rate(embedding, np.zeros(0, np.int64), np.zeros(5, np.int64), 1))


def test_history_overlap_falls_with_depth_and_ignores_padding():
    code = np.array([[0, 0], [0, 0], [0, 1], [2, 2]])  # row 0 is padding, with the codes of row 1
    target, history = np.array([1, 3]), np.array([[2, 0], [0, 0]])
    assert sq.history_overlap(code, target, history) == [0.5, 0.0]
    crossed = np.array([[9, 9], [0, 1], [2, 1]])
    assert sq.history_overlap(crossed, np.array([1]), np.array([[2, 0]])) == [0.0, 0.0]
    assert sq.history_overlap(crossed, np.array([1]), np.array([[2, 0]]), prefix=False) == [0.0, 1.0], "the code alone is shared"
    assert all(np.isnan(sq.history_overlap(code, np.zeros(0, np.int64), np.zeros((0, 2), np.int64))))
