"""Balanced k-means tree over item embeddings, in residual form: the start of the codebooks.

Level by level, the items of every node are spread over ``K`` children that no child gets more than its share of
(``ceil(n / K)``), so that no two items share a leaf as long as ``N <= K^L``. The children of all nodes of a level share one
codebook of residuals, ``c_{l,k}`` = mean residual of the items under token ``k``: the tree is an assignment of the residual
quantizer that starts without collisions.

Shape suffixes: ``N`` items, ``K`` codes, ``D`` width, ``L`` levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

FREE_ITERATIONS = 8
BALANCED_ITERATIONS = 3


@dataclass(frozen=True)
class CodebookStart:
    """SIDs and the residual codebooks that go with them: those of a tree, or of SIDs made beforehand.

    Attributes:
        code_LKD: code vectors.
        sid_NL: the items' tokens.
        count_LK: items of each code.
        collision_rate: of ``sid_NL``; 0 for a tree if ``N <= K^L``.
        nearest_collision_rate: of the same items once each takes its nearest codes instead of its own.
    """

    code_LKD: Floats
    sid_NL: Ints
    count_LK: Ints
    collision_rate: float
    nearest_collision_rate: float


def balanced_tree(e_ND: Floats, levels: int, codes: int, seed: int) -> CodebookStart:
    """Build the tree; the same input and seed give the same tree.

    Raises:
        ValueError: there are no items, or an embedding is not finite.
    """
    if not len(e_ND):
        raise ValueError("the catalogue is empty: no codebooks can be built from it")
    if not np.isfinite(e_ND).all():
        raise ValueError(f"{int((~np.isfinite(e_ND)).any(1).sum())} item embeddings are not finite: the encoder has diverged")
    rng = np.random.default_rng(seed)
    residual = e_ND.astype(np.float32)
    node = np.zeros(len(e_ND), dtype=np.int64)
    code_LKD, sid_NL = [], []
    for _ in range(levels):
        center_KD, token_N = _spread(residual, node, codes, rng)
        residual = residual - center_KD[token_N]
        _, node = np.unique(node * codes + token_N, return_inverse=True)
        code_LKD.append(center_KD)
        sid_NL.append(token_N)
    sid = np.stack(sid_NL, axis=1)
    code = np.stack(code_LKD)
    counts = np.stack([np.bincount(t, minlength=codes) for t in sid_NL])
    nearest = nearest_codes(e_ND.astype(np.float32), code)
    return CodebookStart(code, sid, counts, _collisions(sid), _collisions(nearest))


def codebooks_of(e_ND: Floats, sid_NL: Ints, codes: int, seed: int) -> CodebookStart:
    """Codebooks of SIDs made beforehand: ``c_{l,k}`` = mean residual of the items with code ``k`` on level ``l``.

    A code without items goes to a random residual of its level, as a dead code does. An item without a SID gets its nearest codes.

    Args:
        e_ND: item embeddings.
        sid_NL: SIDs, -1 for an item that has none.
        codes: size K of a codebook.
        seed: of the residuals for codes without items.

    Raises:
        ValueError: no item has a SID, or a code lies outside the codebook.
    """
    has_N: NDArray[np.bool_] = np.asarray(sid_NL.min(axis=1) >= 0)
    if not has_N.any():
        raise ValueError(f"none of {len(sid_NL)} items has a SID: expected the item ids of this data set")
    if sid_NL.max() >= codes:
        raise ValueError(f"codes run up to {sid_NL.max()}, the codebooks have codes 0..{codes - 1}")
    rng = np.random.default_rng(seed)
    residual = e_ND[has_N].astype(np.float32)
    code_LKD, count_LK = [], []
    for token_M in sid_NL[has_N].T:
        center_KD = means(residual, token_M, residual[rng.integers(0, len(residual), codes)])
        residual = residual - center_KD[token_M]
        code_LKD.append(center_KD)
        count_LK.append(np.bincount(token_M, minlength=codes))
    code = np.stack(code_LKD)
    nearest = nearest_codes(e_ND.astype(np.float32), code)
    sid = np.where(has_N[:, None], sid_NL, nearest)
    return CodebookStart(code, sid, np.stack(count_LK), _collisions(sid), _collisions(nearest))


def _collisions(sid_NL: Ints) -> float:
    return 1.0 - len(np.unique(sid_NL, axis=0)) / len(sid_NL)


def nearest_codes(e_ND: Floats, code_LKD: Floats) -> Ints:
    """Nearest residual codes, ``(N, D) -> (N, L)``; the lower number wins a tie."""
    residual, tokens = e_ND, []
    for code_KD in code_LKD:
        token_N = distances(residual, code_KD).argmin(1)
        residual = residual - code_KD[token_N]
        tokens.append(token_N)
    return np.stack(tokens, axis=1)


def distances(x_ND: Floats, center_KD: Floats) -> Floats:
    """Squared distances ``(N, K)`` up to a constant of the row: what an argmin needs."""
    out: Floats = np.square(center_KD).sum(1)[None, :] - 2.0 * (x_ND @ center_KD.T)
    return out


def _spread(x_ND: Floats, node_N: Ints, codes: int, rng: np.random.Generator) -> tuple[Floats, Ints]:
    """One level: k-means without limits to find the centres, then with the limits of every node."""
    center_KD = seed_centers(x_ND, codes, rng)
    for _ in range(FREE_ITERATIONS):
        center_KD = means(x_ND, distances(x_ND, center_KD).argmin(1), center_KD)
    size = np.bincount(node_N)
    capacity_N = -(-size // codes)[node_N]
    for _ in range(BALANCED_ITERATIONS):
        token_N = balanced_assignment(x_ND, center_KD, node_N, capacity_N)
        center_KD = means(x_ND, token_N, center_KD)
    return center_KD, token_N


def seed_centers(x_ND: Floats, codes: int, rng: np.random.Generator) -> Floats:
    """k-means++ on at most 64 items a code; where there are fewer distinct items than codes the rest are jittered copies."""
    take = rng.permutation(len(x_ND))[: 64 * codes]
    sample = x_ND[take]
    center = np.empty((codes, x_ND.shape[1]), dtype=np.float32)
    center[0] = sample[0]
    distance = np.square(sample - center[0]).sum(1).astype(np.float64)
    scale = float(x_ND.std()) or 1.0
    for k in range(1, codes):
        total = distance.sum()
        if total <= 1e-12:
            center[k] = sample[rng.integers(len(sample))] + rng.normal(0.0, 1e-3 * scale, x_ND.shape[1])
            continue
        center[k] = sample[min(int(np.searchsorted(distance.cumsum(), rng.random() * total)), len(sample) - 1)]
        distance = np.minimum(distance, np.square(sample - center[k]).sum(1))
    return center


def means(x_ND: Floats, token_N: Ints, center_KD: Floats) -> Floats:
    """Mean of the items of each token; a token without items keeps its centre."""
    count = np.bincount(token_N, minlength=len(center_KD))
    order = np.argsort(token_N, kind="stable")
    used = np.flatnonzero(count)
    sums = np.add.reduceat(x_ND[order].astype(np.float64), (count.cumsum() - count)[used], axis=0)
    out = center_KD.copy()
    out[used] = sums / count[used, None]
    return out


def balanced_assignment(x_ND: Floats, center_KD: Floats, node_N: Ints, capacity_N: Ints) -> Ints:
    """Tokens such that within each node no token has more items than the node's capacity.

    Deferred acceptance: each free item asks for the nearest token that has not turned it away; a token of a node keeps its
    nearest items up to capacity and turns the others away for good. Ends because no item asks twice for the same token, and
    places suffice (capacity x K >= items of the node).

    Args:
        x_ND: what is quantized at this level.
        center_KD: centres of the tokens.
        node_N: node of each item, from 0.
        capacity_N: capacity of a token in the item's node.
    """
    codes = len(center_KD)
    # Items compete for a place, so the item's own length counts here.
    distance_NK = distances(x_ND, center_KD) + np.square(x_ND).sum(1, keepdims=True)
    preference_NK = distance_NK.argsort(1, kind="stable")
    asked = np.zeros(len(x_ND), dtype=np.int64)
    token_N = np.full(len(x_ND), -1, dtype=np.int64)
    free = np.arange(len(x_ND))
    while len(free):
        token_N[free] = preference_NK[free, asked[free]]
        place = node_N * codes + token_N
        touched = np.unique(place[free])
        there = np.flatnonzero(np.isin(place, touched, assume_unique=False))
        # Cheapest first within a place; ties go to the earlier item.
        order = there[np.lexsort((distance_NK[there, token_N[there]], place[there]))]
        start = np.flatnonzero(np.r_[True, place[order][1:] != place[order][:-1]])
        rank = np.arange(len(order)) - np.repeat(start, np.diff(np.r_[start, len(order)]))
        free = np.sort(order[rank >= capacity_N[order]])
        asked[free] += 1
    return token_N
