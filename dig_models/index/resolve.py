"""Collision resolution in what is published: where several items have one SID, one keeps it, the others get another last code.

An item that loses its SID takes the nearest code of the last level that no item of its prefix ``s_1 .. s_{L-1}`` has. No other level moves:
an item stays under its prefix; a prefix with more items than codes keeps the collisions that are left. The order decides nothing but
ties and is the same every time: items published before come first and keep what was published as long as the model gives them the
same prefix, then items that the model knows, then the others, each by row. What an item had that left the catalogue is kept for it.

Memory is some 8-byte numbers an item; embeddings are read for items that lose their SID alone, a chunk at a time.

Shape suffixes: ``N`` rows of the item table (row 0 unknown), ``M`` items, ``X`` items elsewhere, ``A`` prefixes with a collision,
``L`` levels, ``K`` codes, ``D`` width, ``R`` rows of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dig_models.quantize.known import KnownSids

CHUNK = 4096
STAYS, PUBLISHED, KNOWN, ARRIVED = -1, 0, 1, 2
"""Ranks: an item that must not move; then who keeps a SID that several items have, the smallest first."""

Ints = NDArray[np.int64]
Codes = NDArray[np.signedinteger[Any]]
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """How a resolution went.

    Attributes:
        moved: items that got another last code than the model's.
        left: items that still share a SID with one before them.
    """

    moved: int
    left: int


def resolve(
    sid_NL: Codes, embedding_ND: Floats, code_LKD: Floats, *, rank_N: NDArray[np.signedinteger[Any]], taken_XL: Codes | None = None
) -> Resolved:
    """Give items that share a SID others, in place.

    Args:
        sid_NL: SIDs, row 0 left alone; may be mapped from a file.
        embedding_ND: item embeddings.
        code_LKD: code vectors.
        rank_N: who keeps a SID, see ``STAYS``; rows settle what ranks leave open.
        taken_XL: SIDs that no item of rank ``KNOWN`` or ``ARRIVED`` may have.

    Raises:
        ValueError: so many levels that a SID does not fit 63 bits.
    """
    codes = code_LKD.shape[1]
    prefix_M, last_M = _prefixes(sid_NL[1:], codes), np.asarray(sid_NL[1:, -1], dtype=np.int64)
    rank_M = np.asarray(rank_N[1:], dtype=np.int64)
    none = np.zeros(0, dtype=np.int64)
    taken_X = none if taken_XL is None else _prefixes(taken_XL, codes) * codes + np.asarray(taken_XL[:, -1], dtype=np.int64)
    number_M = prefix_M * codes + last_M
    order = np.lexsort((rank_M, number_M))  # stable: rows ascend within a rank
    first = np.concatenate([[True], number_M[order][1:] != number_M[order][:-1]]) if len(order) else np.zeros(0, dtype=np.bool_)
    keeps_M = np.zeros(len(number_M), dtype=np.bool_)
    keeps_M[order[first]] = True
    keeps_M &= ~np.isin(number_M, taken_X) | (rank_M <= PUBLISHED)
    keeps_M |= rank_M == STAYS
    loser = np.flatnonzero(~keeps_M)
    loser = loser[np.argsort(rank_M[loser], kind="stable")]
    if not len(loser):
        return Resolved(moved=0, left=0)
    affected_A, at = np.unique(prefix_M[loser], return_inverse=True)
    taken_AK = _taken(affected_A, np.concatenate([number_M[keeps_M], taken_X]), codes)
    moved = 0
    for begin in range(0, len(loser), CHUNK):
        rows = loser[begin : begin + CHUNK] + 1
        prefer_RK = _preferences(sid_NL[rows], embedding_ND[rows], code_LKD)
        for row, a, prefer_K in zip(rows, at[begin : begin + CHUNK], prefer_RK, strict=True):
            free_K = ~taken_AK[a, prefer_K]
            if free_K.any():
                code = prefer_K[free_K.argmax()]
                taken_AK[a, code] = True
                sid_NL[row, -1] = code
                moved += 1
    return Resolved(moved=moved, left=len(loser) - moved)


def _prefixes(sid_ML: Codes, codes: int) -> Ints:
    """The prefix of all but the last code, as one number in base ``codes``."""
    if codes ** sid_ML.shape[1] >= 1 << 63:
        raise ValueError(f"{sid_ML.shape[1]} levels of {codes} codes do not fit a 64-bit number: use fewer levels or codes")
    number_M = np.zeros(len(sid_ML), dtype=np.int64)
    for level in range(sid_ML.shape[1] - 1):
        number_M = number_M * codes + sid_ML[:, level]
    return number_M


def _taken(affected_A: Ints, number_X: Ints, codes: int) -> NDArray[np.bool_]:
    """Last codes that are in use under some prefixes, ``(A, K)``."""
    out_AK = np.zeros((len(affected_A), codes), dtype=np.bool_)
    prefix_X = number_X // codes
    at = np.minimum(np.searchsorted(affected_A, prefix_X), len(affected_A) - 1)
    mine = affected_A[at] == prefix_X
    out_AK[at[mine], number_X[mine] % codes] = True
    return out_AK


def _preferences(sid_RL: Codes, embedding_RD: Floats, code_LKD: Floats) -> Ints:
    """Codes of the last level by distance from what the codes before leave of the embedding, ``(R, K)``; ties by number."""
    residual_RD = np.array(embedding_RD, dtype=np.float32)
    for level in range(len(code_LKD) - 1):
        residual_RD -= code_LKD[level][sid_RL[:, level]]
    distance_RK = np.square(code_LKD[-1]).sum(1)[None, :] - 2.0 * (residual_RD @ code_LKD[-1].T)
    return np.asarray(distance_RK.argsort(axis=1, kind="stable"), dtype=np.int64)


def publish(
    sid_NL: Codes, embedding_ND: Floats, code_LKD: Floats, hash_N: Ints, *, known_N: NDArray[np.bool_], before: KnownSids | None
) -> Resolved:
    """Resolve the SIDs of a catalogue, in place; who was published ``before`` keeps that SID while the model gives it the same prefix.

    Args:
        sid_NL: what the model gives.
        embedding_ND: item embeddings.
        code_LKD: code vectors.
        hash_N: item hashes.
        known_N: items that the model knew before this catalogue.
        before: what was published last, and what is kept for items that left; SIDs of another length are not looked at.
    """
    rank_N, taken_XL = np.where(known_N, KNOWN, ARRIVED), None
    if before is not None and before.levels == sid_NL.shape[1] and len(before) and before.code_XL.max() < code_LKD.shape[1]:
        was_NL, same_N = kept(hash_N, sid_NL, before)
        same_N[0] = False
        sid_NL[same_N, -1] = was_NL[same_N, -1]
        rank_N = np.where(same_N, PUBLISHED, rank_N)
        taken_XL = before.without(hash_N).code_XL
    return resolve(sid_NL, embedding_ND, code_LKD, rank_N=rank_N, taken_XL=taken_XL)


def kept(hash_N: Ints, sid_NL: Codes, before: KnownSids) -> tuple[Ints, NDArray[np.bool_]]:
    """SIDs published before ``(N, L)``, and where they hold, ``(N,)``: where the model gives the item the same prefix."""
    was_NL = before.find(hash_N)
    return was_NL, np.asarray((was_NL[:, -1] >= 0) & (was_NL[:, :-1] == sid_NL[:, :-1]).all(axis=1))
