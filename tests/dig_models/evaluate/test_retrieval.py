import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dig_models.evaluate import retrieval


def csr(lists):
    return np.array([x for items in lists for x in items], dtype=np.int64), np.cumsum([0, *map(len, lists)])


def slow(ranked, relevant, k):
    """Recall and NDCG of one request, straight from their definitions."""
    top = [x for x in ranked if x >= 0][:k]
    found = len(set(top) & set(relevant))
    dcg = sum(1 / math.log2(rank + 2) for rank, item in enumerate(top) if item in relevant)
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(relevant))))
    return found / len(relevant), dcg / ideal


@given(st.integers(0, 10_000))
def test_recall_and_ndcg_agree_with_their_definitions(seed):
    rng = np.random.default_rng(seed)
    ranked = np.stack([rng.permutation(np.arange(1, 30))[:12] for _ in range(5)])
    ranked[0, 7:] = retrieval.NONE
    relevant = [rng.choice(np.arange(1, 40), int(rng.integers(1, 9)), replace=False).tolist() for _ in range(5)]
    hit = retrieval.hits(ranked, *csr(relevant))
    count = np.array([len(r) for r in relevant])
    for k in (1, 3, 10, 50):
        want = np.array([slow(ranked[q], relevant[q], k) for q in range(5)])
        np.testing.assert_allclose(retrieval.recall_at(hit, count, k), want[:, 0])
        np.testing.assert_allclose(retrieval.ndcg_at(hit, count, k), want[:, 1])


def test_a_perfect_list_scores_one_and_a_request_without_relevant_items_is_nan():
    ranked = np.array([[3, 5, 1], [3, 5, 1]])
    hit = retrieval.hits(ranked, *csr([[3, 5], []]))
    count = np.array([2, 0])
    assert retrieval.ndcg_at(hit, count, 10)[0] == pytest.approx(1.0)
    assert retrieval.recall_at(hit, count, 2)[0] == 1.0
    assert np.isnan(retrieval.recall_at(hit, count, 10)[1])
    assert np.isnan(retrieval.ndcg_at(hit, count, 10)[1])


def test_padding_never_counts_as_a_hit():
    hit = retrieval.hits(np.array([[-1, -1], [-1, 4]]), *csr([[1], [4]]))
    assert hit.tolist() == [[False, False], [False, True]]


def test_popularity_breaks_ties_by_row_and_never_lists_the_unknown_item():
    pop = np.array([99.0, 1.0, 5.0, 5.0, 0.0])
    assert retrieval.popularity_list(pop, 3).tolist() == [2, 3, 1]
    assert retrieval.popularity_list(pop, 3, np.array([2])).tolist() == [3, 1, 4]
    assert retrieval.popularity_list(pop, 6).tolist() == [2, 3, 1, 4, -1, -1]


def test_own_frequency_ranks_by_count_then_popularity_then_falls_back_to_popularity():
    pop = np.array([0.0, 9.0, 2.0, 7.0, 8.0, 1.0])
    own = retrieval.own_frequency_list(np.array([2, 3, 5]), np.array([4.0, 4.0, 0.0]), pop, 5)
    assert own.tolist() == [3, 2, 1, 4, 5]
    assert retrieval.own_frequency_list(np.array([2, 3]), np.array([1.0, 4.0]), pop, 1).tolist() == [3]
    no_history = retrieval.own_frequency_list(np.zeros(0, np.int64), np.zeros(0), pop, 2)
    assert no_history.tolist() == retrieval.popularity_list(pop, 2).tolist()


def test_own_frequency_over_new_items_is_popularity_of_what_is_left():
    pop = np.array([0.0, 9.0, 2.0, 7.0, 8.0])
    bought = np.array([1, 3])
    got = retrieval.own_frequency_list(bought, np.array([5.0, 2.0]), pop, 3, excluded_M=bought)
    assert got.tolist() == [4, 2, -1]
