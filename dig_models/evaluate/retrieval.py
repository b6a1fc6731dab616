"""Retrieval metrics over a full catalogue, and the baselines to beat.

Shape suffixes: ``Q`` requests, ``K`` ranks, ``N`` catalogue items (rows of an ``ItemTable``, row 0 = unknown item),
``M`` relevant items of all requests, laid end to end with offsets ``Q + 1``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]

NONE = -1


def hits(ranked_QK: Rows, relevant_M: Rows, offsets_Q1: Rows) -> NDArray[np.bool_]:
    """Which of the ranked items are relevant, ``(Q, K)``.

    Args:
        ranked_QK: distinct item rows, best first; ``-1`` pads lists that are shorter.
        relevant_M: distinct relevant item rows of each request.
        offsets_Q1: ``relevant_M[offsets_Q1[q] : offsets_Q1[q + 1]]`` belongs to request q.
    """
    requests, width = ranked_QK.shape
    top = max(int(ranked_QK.max(initial=0)), int(relevant_M.max(initial=0))) + 2
    owner_M = np.repeat(np.arange(requests), np.diff(offsets_Q1))
    wanted = np.sort(owner_M * top + relevant_M + 1)
    asked = (np.arange(requests)[:, None] * top + ranked_QK + 1).ravel()
    if not len(wanted):
        return np.zeros((requests, width), dtype=np.bool_)
    at = np.minimum(np.searchsorted(wanted, asked), len(wanted) - 1)
    found: NDArray[np.bool_] = ((wanted[at] == asked) & (ranked_QK.ravel() >= 0)).reshape(requests, width)
    return found


def recall_at(hit_QK: NDArray[np.bool_], relevant_Q: Rows, k: int) -> Floats:
    """Recall@k of each request: relevant items among the first k over all relevant items; NaN without relevant items."""
    found_Q = hit_QK[:, :k].sum(axis=1)
    return np.asarray(np.divide(found_Q, relevant_Q, out=np.full(len(relevant_Q), np.nan), where=relevant_Q > 0))


def ndcg_at(hit_QK: NDArray[np.bool_], relevant_Q: Rows, k: int) -> Floats:
    """NDCG@k of each request with binary gains ``1 / log2(rank + 1)``; the ideal list is cut at k too.

    NaN without relevant items.
    """
    gain_K = 1 / np.log2(np.arange(2, k + 2))
    seen_QK = hit_QK[:, :k]
    dcg_Q = seen_QK @ gain_K[: seen_QK.shape[1]]
    ideal_Q = np.concatenate([[0.0], np.cumsum(gain_K)])[np.minimum(relevant_Q, k)]
    return np.asarray(np.divide(dcg_Q, ideal_Q, out=np.full(len(relevant_Q), np.nan), where=ideal_Q > 0))


def popularity_list(popularity_N: NDArray[np.floating], k: int, excluded_M: Rows | None = None) -> Rows:
    """The k most popular items, ``(k,)`` item rows, ties by row; never row 0 nor an excluded one; padded with -1."""
    allowed_N = _allowed(len(popularity_N), excluded_M)
    order_N = np.argsort(-popularity_N, kind="stable")
    return _padded(order_N[allowed_N[order_N]][:k], k)


def own_frequency_list(
    item_M: Rows, count_M: NDArray[np.floating], popularity_N: NDArray[np.floating], k: int, excluded_M: Rows | None = None
) -> Rows:
    """The user's own most frequent items, ties by popularity; after them the most popular others.

    Args:
        item_M: distinct item rows that the user knows.
        count_M: events of the user with each; rows with a count of 0 rank as if unknown to the user.
        popularity_N: events of all users.
        k: length of the list.
        excluded_M: item rows that must not be listed.

    Returns:
        ``(k,)`` item rows, padded with -1.
    """
    own_N = np.zeros(len(popularity_N))
    own_N[item_M] = count_M
    allowed_N = _allowed(len(popularity_N), excluded_M)
    known = np.flatnonzero((own_N > 0) & allowed_N)
    own = known[np.lexsort((known, -popularity_N[known], -own_N[known]))][:k]
    if len(own) == k:
        return own.astype(np.int64)
    rest = np.argsort(-popularity_N, kind="stable")
    rest = rest[allowed_N[rest] & (own_N[rest] <= 0)][: k - len(own)]
    return _padded(np.concatenate([own, rest]), k)


def _allowed(items: int, excluded_M: Rows | None) -> NDArray[np.bool_]:
    allowed_N = np.ones(items, dtype=np.bool_)
    allowed_N[0] = False
    if excluded_M is not None:
        allowed_N[excluded_M] = False
    return allowed_N


def _padded(rows: Rows, k: int) -> Rows:
    out = np.full(k, NONE, dtype=np.int64)
    out[: len(rows)] = rows
    return out
