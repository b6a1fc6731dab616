"""Names for the codes of a new model that leave as many items as possible with the semantic ID that they had.

Training anew gives codes in no particular order: level ``l`` of one model and level ``l`` of the next may hold the same groups of
items under other numbers. What a code is called means nothing to the model, so the codes of each level are renamed by one
permutation, found by optimal assignment (Kuhn 1955; ``scipy.optimize.linear_sum_assignment``) on the items that two codes share.

All nodes of a level share one codebook, so a level has one permutation, not one for each prefix. An item keeps its SID down to level
``l`` only if it kept it down to ``l - 1``; so level ``l`` counts the items whose renamed prefix is their old prefix, and of
assignments that are equal in that, takes one with the largest overlap over all items. Each level is optimal for the levels above it;
the whole is greedy from the first level down, where a change costs most.

Shape suffixes: ``M`` items, ``L`` levels, ``K`` codes of a level.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from dig_models.quantize.known import KnownSids

Ints = NDArray[np.int64]
_EXACT = 1 << 53


def labels_for(old: KnownSids, new: KnownSids, codes: int) -> Ints:
    """New names of the codes of ``new``, so that its items keep the SIDs they have in ``old`` as far as renaming can do that.

    Where the names in force are as good as the best, they stay: aligning twice changes nothing more.

    Args:
        old: SIDs to come close to; its codebooks may have had another size.
        new: SIDs of the model, in ``0 .. codes - 1``.
        codes: size K of every level's codebook of the model.

    Returns:
        ``label_LK``: ``label_LK[l, k]`` is the new name of code ``k`` of level ``l``, a permutation in every row.

    Raises:
        ValueError: the SIDs differ in length, or a code of ``new`` lies outside its codebook.
    """
    if old.levels != new.levels:
        raise ValueError(f"SIDs of {new.levels} levels cannot be aligned with SIDs of {old.levels}: expected the same model.levels")
    if len(new) and new.code_XL.max() >= codes:
        raise ValueError(f"codes run up to {new.code_XL.max()}, the codebooks have codes 0..{codes - 1}")
    was_ML = old.find(new.hash_X)
    # A code of a larger codebook has no counterpart here: its items cannot keep their SIDs.
    both_M = (was_ML[:, 0] >= 0) & (was_ML < codes).all(axis=1)
    was_ML, now_ML = was_ML[both_M], new.code_XL[both_M]
    same_M = np.ones(len(was_ML), dtype=np.bool_)
    label_LK = np.empty((new.levels, codes), dtype=np.int64)
    for level in range(new.levels):
        now_M, was_M = now_ML[:, level], was_ML[:, level]
        label_LK[level] = _assignment(_overlap(now_M[same_M], was_M[same_M], codes), _overlap(now_M, was_M, codes))
        same_M &= label_LK[level][now_M] == was_M
    return label_LK


def _overlap(now_M: Ints, was_M: Ints, codes: int) -> Ints:
    """Items that a new and an old code share, ``(K, K)``."""
    return np.bincount(now_M * codes + was_M, minlength=codes * codes).reshape(codes, codes).astype(np.int64)


def _assignment(first_KK: Ints, second_KK: Ints) -> Ints:
    """The assignment with the largest sum of ``first_KK``, and among those of ``second_KK``; the identity if none is better."""
    identity = np.arange(len(first_KK))
    scale = int(second_KK.sum()) + 1
    # The solver counts in float64: beyond some 90 million items the tie-break is dropped.
    exact = (int(first_KK.sum()) + 1) * scale <= _EXACT
    weight_KK = first_KK * scale + second_KK if exact else first_KK
    row_K, label_K = linear_sum_assignment(weight_KK, maximize=True)
    if weight_KK[row_K, label_K].sum() <= weight_KK.trace():
        return identity
    return _undisturbed(label_K.astype(np.int64), weight_KK)


def _undisturbed(label_K: Ints, weight_KK: Ints) -> Ints:
    """The same assignment, where pairs that share nothing keep their names as far as these are free."""
    identity = np.arange(len(label_K))
    idle_K = weight_KK[identity, label_K] == 0
    free = np.setdiff1d(identity, label_K[~idle_K])
    stays_K = idle_K & np.isin(identity, free)
    moves_K = idle_K & ~stays_K
    out = label_K.copy()
    out[stays_K] = identity[stays_K]
    out[moves_K] = np.setdiff1d(free, identity[stays_K])
    return out


def renamed(code_ML: Ints, label_LK: Ints) -> Ints:
    """Codes under their new names, ``(M, L) -> (M, L)``; -1 stays -1."""
    level_L = np.arange(code_ML.shape[1])
    return np.where(code_ML >= 0, label_LK[level_L, np.maximum(code_ML, 0)], -1)


def inverse(label_LK: Ints) -> Ints:
    """The renaming that undoes another."""
    return np.argsort(label_LK, axis=1)
