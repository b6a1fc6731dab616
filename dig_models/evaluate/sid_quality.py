"""Quality of semantic IDs: use of the codebooks, collisions, stability between generations.

No static figure predicts retrieval: they are gates and alarms, never the objective. Shape suffixes: ``N`` items,
``L`` levels, ``K`` codes of a level, ``D`` embedding width. Entropies are in nats.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

Codes = NDArray[np.signedinteger[Any]]
Floats = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class LevelUse:
    """Use of one level's codes.

    Attributes:
        codes: size K of the codebook.
        used: codes with at least one item.
        dead: codes without any.
        perplexity: exp of the entropy of the items' codes; K if all are used alike.
        gini: inequality of the load over the used codes.
        gini_all: the same over all K codes.
        balance: 1 - sum |n_i - N/K| / (2N); 1 if all codes hold the same number.
        counts: items of each code, ``K`` numbers.
    """

    codes: int
    used: int
    dead: int
    perplexity: float
    gini: float
    gini_all: float
    balance: float
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SidQuality:
    """Quality of the SIDs of a catalogue.

    Attributes:
        collision_rate: (N - distinct SIDs) / N.
        unique_rate: share of the items that have their SID alone.
        largest_bucket: items that share the fullest SID.
        entropy: entropy of the items' SIDs, nats.
        entropy_ratio: ``entropy`` over log(K^L).
        levels: use of each level.
    """

    items: int
    sids: int
    collision_rate: float
    unique_rate: float
    largest_bucket: int
    entropy: float
    entropy_ratio: float
    levels: tuple[LevelUse, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return asdict(self)


def gini(count_K: NDArray[np.integer] | Floats) -> float:
    """Gini coefficient ``(n+1)/n - 2 sum_i (n+1-i) x_i / (n sum x)``, x ascending; 0 = equal, NaN if all are 0."""
    x = np.sort(np.asarray(count_K, dtype=np.float64))
    n, total = len(x), x.sum()
    if total <= 0:
        return float("nan")
    return float((n + 1) / n - 2 * np.dot(np.arange(n, 0, -1), x) / (n * total))


def entropy(count_K: NDArray[np.integer] | Floats) -> float:
    """Entropy in nats of the distribution that counts stand for."""
    x = np.asarray(count_K, dtype=np.float64)
    p = x[x > 0] / x.sum()
    return float(-np.dot(p, np.log(p))) if len(p) else 0.0


def balance(count_K: NDArray[np.integer]) -> float:
    """``1 - sum_i |n_i - N/K| / (2N)``: 1 if all codes hold the same number of items."""
    total = count_K.sum()
    return float(1 - np.abs(count_K - total / len(count_K)).sum() / (2 * total))


def sid_keys(code_NL: Codes) -> NDArray[np.int64]:
    """One number per distinct SID, ``(N, L) -> (N,)``, 0 .. distinct - 1."""
    base = int(code_NL.max(initial=0)) + 1
    if code_NL.min(initial=0) < 0 or base ** code_NL.shape[1] >= 1 << 63:  # else one number a SID, which sorts as the SIDs do
        _, key_N = np.unique(code_NL, axis=0, return_inverse=True)
    else:
        number_N = code_NL.astype(np.int64) @ (base ** np.arange(code_NL.shape[1] - 1, -1, -1, dtype=np.int64))
        _, key_N = np.unique(number_N, return_inverse=True)
    return key_N.reshape(-1).astype(np.int64)


def measure(code_NL: Codes, codes: int) -> SidQuality:
    """Quality of the SIDs of N items, with codebooks of ``codes`` codes per level.

    Args:
        code_NL: codes in ``0 .. codes - 1``; real items only (without the unknown item).
        codes: size K of every level's codebook.

    Raises:
        ValueError: no items, or a code outside the codebook.
    """
    if not len(code_NL):
        raise ValueError("SID quality of an empty catalogue: at least one item is needed")
    if code_NL.min() < 0 or code_NL.max() >= codes:
        raise ValueError(f"codes run from {code_NL.min()} to {code_NL.max()}, the codebooks have codes 0..{codes - 1}")
    items, levels = code_NL.shape
    bucket_S = np.bincount(sid_keys(code_NL))
    spread = entropy(bucket_S)
    return SidQuality(
        items=items,
        sids=len(bucket_S),
        collision_rate=(items - len(bucket_S)) / items,
        unique_rate=float((bucket_S == 1).sum()) / items,
        largest_bucket=int(bucket_S.max()),
        entropy=spread,
        entropy_ratio=spread / (levels * np.log(codes)),
        levels=tuple(_level(code_NL[:, level], codes) for level in range(levels)),
    )


def _level(code_N: Codes, codes: int) -> LevelUse:
    count_K = np.bincount(code_N, minlength=codes)
    used = int((count_K > 0).sum())
    return LevelUse(
        codes=codes,
        used=used,
        dead=codes - used,
        perplexity=float(np.exp(entropy(count_K))),
        gini=gini(count_K[count_K > 0]),
        gini_all=gini(count_K),
        balance=balance(count_K),
        counts=tuple(int(n) for n in count_K),
    )


@dataclass(frozen=True, kw_only=True)
class Churn:
    """What changed between two generations, over the items that are in both.

    Attributes:
        items: items compared.
        rate: share of them whose SID changed.
        first: share whose SID changed at each level first; they add up to ``rate``.
        levels: share whose code of each level changed.
        prefixes: share whose prefix up to each level changed; the last is ``rate``.
        posting_lists: share of the SIDs of either generation whose list of items changed.
    """

    items: int
    rate: float
    first: tuple[float, ...]
    levels: tuple[float, ...]
    prefixes: tuple[float, ...]
    posting_lists: float

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return asdict(self)


def churn(old_hash_M: NDArray[np.int64], old_ML: Codes, new_hash_N: NDArray[np.int64], new_NL: Codes) -> Churn | None:
    """Changes from the old generation to the new one; None if no item is in both or the SIDs differ in length.

    Args:
        old_hash_M: distinct item hashes of the old generation, any order.
        old_ML: their codes.
        new_hash_N: distinct item hashes of the new generation, any order.
        new_NL: their codes.
    """
    _, old_at, new_at = np.intersect1d(old_hash_M, new_hash_N, assume_unique=True, return_indices=True)
    if not len(old_at) or old_ML.shape[1] != new_NL.shape[1]:
        return None
    before, after = old_ML[old_at], new_NL[new_at]
    changed = before != after
    so_far = np.maximum.accumulate(changed, axis=1)
    by_prefix = so_far.mean(axis=0)
    first = np.diff(so_far.sum(axis=0), prepend=0) / len(so_far)
    # Whole generations here: an item that came or went changes a posting list too.
    sid_X = sid_keys(np.concatenate([old_ML, new_NL]))
    item_X = np.concatenate([old_hash_M, new_hash_N])
    order = np.lexsort((item_X, sid_X))
    sid_X, item_X = sid_X[order], item_X[order]
    twice = np.concatenate([[False], (sid_X[1:] == sid_X[:-1]) & (item_X[1:] == item_X[:-1]), [False]])
    differ = len(np.unique(sid_X[~(twice[1:] | twice[:-1])]))  # of postings that only one generation has
    return Churn(
        items=len(old_at),
        rate=float(by_prefix[-1]),
        first=tuple(float(x) for x in first),
        levels=tuple(float(x) for x in changed.mean(axis=0)),
        prefixes=tuple(float(x) for x in by_prefix),
        posting_lists=differ / (int(sid_X.max()) + 1),
    )


def severity(code_NL: Codes, embedding_ND: Floats, *, max_items: int = 2000, seed: int = 0) -> list[dict[str, float]]:
    """Pairs of items by Hamming distance 0, 1, 2 of their SIDs, with the mean cosine of their embeddings.

    Collisions are not equal: two sizes of one product sharing a SID are harmless, unlike items at cosine 0 that do.
    With more than ``max_items`` items a seeded sample is compared.

    Returns:
        One row per distance: ``distance, pairs, cosine`` (NaN without pairs).
    """
    if len(code_NL) > max_items:
        pick = np.sort(np.random.default_rng(seed).choice(len(code_NL), max_items, replace=False))
        code_NL, embedding_ND = code_NL[pick], embedding_ND[pick]
    distance_NN = (code_NL[:, None, :] != code_NL[None, :, :]).sum(axis=2, dtype=np.int8)
    norm_N = np.maximum(np.linalg.norm(embedding_ND, axis=1, keepdims=True), 1e-12)
    cosine_NN = (embedding_ND / norm_N) @ (embedding_ND / norm_N).T
    upper = np.triu(np.ones(distance_NN.shape, dtype=np.bool_), 1)
    rows = []
    for distance in range(min(3, code_NL.shape[1] + 1)):
        of = cosine_NN[(distance_NN == distance) & upper]
        rows.append({"distance": distance, "pairs": len(of), "cosine": float(of.mean()) if len(of) else float("nan")})
    return rows


def embedding_hit_rate(embedding_ND: Floats, neighbour_M: Codes, offsets_N1: Codes, k: int) -> float:
    """Mean over items of the share of their co-occurring neighbours among the k nearest items by cosine (FORGE).

    Args:
        embedding_ND: embeddings of the items.
        neighbour_M: distinct neighbours of each item (rows of ``embedding_ND``), laid end to end.
        offsets_N1: ``neighbour_M[offsets_N1[i] : offsets_N1[i + 1]]`` belongs to item i.
        k: nearest items looked at.

    Returns:
        Value in [0, 1]; NaN if no item has a neighbour.
    """
    query = np.flatnonzero(np.diff(offsets_N1) > 0)
    if not len(query):
        return float("nan")
    unit = embedding_ND / np.maximum(np.linalg.norm(embedding_ND, axis=1, keepdims=True), 1e-12)
    k = min(k, len(unit) - 1)
    shares = np.zeros(len(query))
    for first in range(0, len(query), 1024):
        some = query[first : first + 1024]
        similar = unit[some] @ unit.T
        similar[np.arange(len(some)), some] = -np.inf
        near = np.argpartition(-similar, k - 1, axis=1)[:, :k]
        for row, item in enumerate(some):
            wanted = neighbour_M[offsets_N1[item] : offsets_N1[item + 1]]
            shares[first + row] = np.isin(wanted, near[row]).mean()
    return float(shares.mean())


def history_overlap(code_NL: Codes, target_R: Codes, history_RH: Codes, *, prefix: bool = True) -> list[float]:
    """Share of targets whose prefix up to each level occurs among the prefixes of the user's history (ReSID's diagnostic).

    Args:
        code_NL: codes of all item rows.
        target_R: item rows, all real.
        history_RH: item rows of each target's history, 0 = padding.
        prefix: whole prefixes; off, each level's code alone, whatever comes before it: what aligned codes share across parents.

    Returns:
        L shares, those of prefixes falling with depth; NaN without targets.
    """
    if not len(target_R):
        return [float("nan")] * code_NL.shape[1]
    real_RH = same_RH = history_RH > 0
    out = []
    for level in range(code_NL.shape[1]):
        same_RH = (same_RH if prefix else real_RH) & (code_NL[history_RH, level] == code_NL[target_R, level][:, None])
        out.append(float(same_RH.any(axis=1).mean()))
    return out


def co_occurrence(request_M: Codes, item_M: Codes, items: int, *, top: int = 10, least: int = 2) -> tuple[Codes, Codes]:
    """The items most often bought together with each item, as ``embedding_hit_rate`` wants them.

    Args:
        request_M: request of each purchase; a request holds an item once.
        item_M: its item row, below ``items``.
        items: number of item rows.
        top: neighbours kept of each item, ties by row.
        least: times that two items must have been bought together.

    Returns:
        ``(neighbour_M, offsets_N1)``.
    """
    once = np.ones(len(item_M), dtype=np.int64)
    basket = csr_matrix((once, (request_M, item_M)), shape=(int(request_M.max(initial=-1)) + 1, items))
    pairs = (basket.T @ basket).tocoo()
    keep = (pairs.row != pairs.col) & (pairs.data >= least)
    row, col, count = pairs.row[keep].astype(np.int64), pairs.col[keep].astype(np.int64), pairs.data[keep]
    order = np.lexsort((col, -count, row))
    row, col = row[order], col[order]
    kept = np.arange(len(row)) - np.searchsorted(row, row) < top
    sizes = np.bincount(row[kept], minlength=items)
    return col[kept], np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
