"""Items that share a semantic ID, told apart before anything is trained on the SIDs.

Three ways, none of which moves an item to another prefix ``s_1 .. s_{L-1}``:

- ``suffix``: one more token, the item's rank among those that share its SID (TIGER, arXiv 2305.05065, section 3.1);
- ``sinkhorn``: the last codes of colliding items by balanced transport (LC-Rec, arXiv 2311.09049, section 3.2; LETTER 2405.07314 too);
- ``nearest``: one item keeps its SID, the others take the nearest free last code (``index.resolve``, as an index does).

What is published later is resolved by the index, which also keeps what was published before. These are for SIDs that are handed on.

Shape suffixes: ``N`` rows of the item table (row 0 unknown), ``M = N - 1`` items, ``G`` colliding items of one prefix, ``L`` levels,
``K`` codes, ``F`` codes that are free, ``P`` items of one prefix, ``D`` width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp

from dig_models.config import Positive, Strict
from dig_models.evaluate.sid_quality import SidQuality, measure, sid_keys
from dig_models.index.resolve import publish
from dig_models.items import ItemTable
from dig_models.quantize.known import KnownSids
from dig_models.tokenizers.base import Ints, Tokenizer
from dig_models.tokenizers.content import Floats

Method = Literal["none", "suffix", "sinkhorn", "nearest"]


class SinkhornSettings(Strict):
    """Entropic transport of the colliding items of a prefix to its free codes."""

    epsilon: float = Field(0.003, gt=0, description="temperature, of distances that are scaled to -1 .. 1 (LC-Rec)")
    iterations: Positive = 50


@dataclass(frozen=True, kw_only=True)
class Settled:
    """SIDs after collisions were dealt with.

    Attributes:
        code_NL: codes, -1 in row 0; one level more after ``suffix``.
        before: quality of the SIDs as the tokenizer gives them; after: of ``code_NL``.
        moved: items whose codes were changed (of ``suffix``: whose last token is not 0).
    """

    code_NL: Ints
    before: SidQuality
    after: SidQuality
    moved: int

    @property
    def levels(self) -> int:
        """SID length."""
        return int(self.code_NL.shape[1])


def settle(tokenizer: Tokenizer, items: ItemTable, method: Method, *, settings: SinkhornSettings | None = None) -> Settled:
    """The SIDs of a catalogue, with its collisions dealt with.

    Raises:
        ValueError: a method that is not known, or more items share a SID than a suffix has codes.
    """
    was_NL = tokenizer.encode(items)
    if method == "none":
        code_NL = was_NL
    elif method == "suffix":
        code_NL = suffix(was_NL, items.hash_N, codes=tokenizer.codes)
    elif method == "sinkhorn":
        code_NL = sinkhorn(was_NL, tokenizer.embed(items), tokenizer.code_LKD, settings=settings)
    elif method == "nearest":
        code_NL = nearest(was_NL, tokenizer.embed(items), tokenizer.code_LKD, items.hash_N)
    else:
        raise ValueError(f"collisions: method {method!r} found, expected none, suffix, sinkhorn or nearest")
    moved_N = code_NL[:, -1] > 0 if method == "suffix" else (code_NL != was_NL).any(axis=1)
    before, after = (measure(each[1:], tokenizer.codes) for each in (was_NL, code_NL))
    return Settled(code_NL=code_NL, before=before, after=after, moved=int(moved_N.sum()))


def suffix(code_NL: Ints, hash_N: Ints, *, codes: int) -> Ints:
    """SIDs with one more token, the rank by hash among the items that share the SID: ``(N, L) -> (N, L + 1)``.

    No two items share the result. An item that comes in can move those behind it by one: where that matters, let the index resolve.

    Args:
        code_NL: codes, row 0 (the unknown item) -1.
        hash_N: item hashes.
        codes: codes of a level, and so ranks that a token can tell.

    Raises:
        ValueError: an item without codes, or more items share a SID than a level has codes.
    """
    _require_codes(code_NL)
    key_M = sid_keys(code_NL[1:])
    rank_M = _ranks(key_M, hash_N[1:])
    most = int(rank_M.max(initial=-1)) + 1
    if most > codes:
        sid = code_NL[1 + int(rank_M.argmax())].tolist()
        raise ValueError(f"SID {sid}: {most} items share it, a suffix tells {codes} apart; use more levels or codes, or better vectors")
    return np.column_stack([code_NL, np.concatenate([[-1], rank_M])]).astype(np.int64)


def _require_codes(code_NL: Ints) -> None:
    without = 1 + np.flatnonzero(code_NL[1:].min(axis=1, initial=0) < 0)
    if len(without):
        raise ValueError(f"{len(without)} items have no codes, the first in row {without[0]}: collisions are settled of items that have")


def _ranks(key_M: Ints, hash_M: Ints) -> Ints:
    """Place of each item among those with the same key, by hash, from 0."""
    order = np.lexsort((hash_M, key_M))
    _, first, count = np.unique(key_M[order], return_index=True, return_counts=True)
    rank_M = np.empty(len(key_M), dtype=np.int64)
    rank_M[order] = np.arange(len(key_M)) - np.repeat(first, count)
    return rank_M


def nearest(code_NL: Ints, embedding_ND: Floats, code_LKD: Floats, hash_N: Ints) -> Ints:
    """The first item by hash keeps a SID, the others take the nearest last code that is free under their prefix.

    Raises:
        ValueError: an item without codes.
    """
    _require_codes(code_NL)
    out_NL = code_NL.copy()
    nobody: KnownSids | None = None
    publish(out_NL, embedding_ND, code_LKD, hash_N, known_N=np.ones(len(hash_N), dtype=np.bool_), before=nobody)
    return out_NL


def sinkhorn(code_NL: Ints, embedding_ND: Floats, code_LKD: Floats, *, settings: SinkhornSettings | None = None) -> Ints:
    """Last codes of colliding items anew, all items of a prefix at once: ``(N, L) -> (N, L)``.

    The items that share a SID go to the codes that no other item of their prefix has, by an entropic transport plan in which no code gets
    more than its share, and from the plan to one code each by the best one-to-one assignment. LC-Rec takes each item's largest entry of
    the plan instead, SID by SID, and repeats, which cannot part items with equal vectors. A prefix with more colliding items than free
    codes keeps collisions.

    Args:
        code_NL: codes, row 0 (the unknown item) -1; items that have their SID alone keep it.
        embedding_ND: what was quantized, of the same rows.
        code_LKD: code vectors.
        settings: of the transport.

    Raises:
        ValueError: an item without codes, or shapes that do not fit.
    """
    _require_codes(code_NL)
    if len(code_NL) != len(embedding_ND) or code_NL.shape[1] != len(code_LKD):
        raise ValueError(f"codes {code_NL.shape}, embeddings {embedding_ND.shape} and code vectors {code_LKD.shape} do not fit")
    settings, out_NL = settings or SinkhornSettings(), code_NL.copy()
    sid_M = sid_keys(code_NL[1:])
    shared_M = np.bincount(sid_M, minlength=1)[sid_M] > 1
    for row_P in _by_prefix(code_NL):
        row_G = row_P[shared_M[row_P - 1]]
        if not len(row_G):
            continue
        free_F = np.setdiff1d(np.arange(code_LKD.shape[1]), code_NL[row_P[~shared_M[row_P - 1]], -1])
        plan_GF = _plan(_distances(code_NL[row_G], embedding_ND[row_G], code_LKD)[:, free_F], settings)
        out_NL[row_G, -1] = free_F[_one_to_one(plan_GF)]
    return out_NL


def _by_prefix(code_NL: Ints) -> list[Ints]:
    """Rows of the items of each prefix, ascending."""
    if code_NL.shape[1] == 1:
        return [np.arange(1, len(code_NL))]
    prefix_M = sid_keys(code_NL[1:, :-1])
    order = np.argsort(prefix_M, kind="stable")
    return [1 + rows for rows in np.split(order, np.cumsum(np.bincount(prefix_M))[:-1])]


def _distances(code_GL: Ints, embedding_GD: Floats, code_LKD: Floats) -> NDArray[np.float64]:
    """Squared distances of what the codes before the last leave to the codes of the last level, ``(G, K)``."""
    residual_GD = embedding_GD.astype(np.float64)
    for level, code_KD in enumerate(code_LKD[:-1]):
        residual_GD -= code_KD[code_GL[:, level]]
    last_KD = code_LKD[-1].astype(np.float64)
    distance_GK = np.square(residual_GD).sum(1)[:, None] - 2.0 * (residual_GD @ last_KD.T) + np.square(last_KD).sum(1)
    return np.asarray(np.maximum(distance_GK, 0.0))


def _plan(distance_GF: NDArray[np.float64], settings: SinkhornSettings) -> NDArray[np.float64]:
    """Logarithm of the transport plan between items and codes (Cuturi 2013); all codes get the same mass.

    An item has mass 1, a code room for 1, or for ``G / F`` if there are more items than codes. One more row takes the room that is left,
    at no cost: without it codes that are far from every item would have to be filled as well.
    """
    items, codes = distance_GF.shape
    spare = codes - items
    log_XF = -distance_GF / (max(np.ptp(distance_GF) / 2, 1e-12) * settings.epsilon)
    mass_X1 = np.zeros((items, 1))
    if spare > 0:
        log_XF, mass_X1 = np.vstack([log_XF, np.zeros(codes)]), np.append(mass_X1, [[np.log(spare)]], axis=0)
    room = np.log(max(items, codes) / codes)
    for _ in range(settings.iterations):
        log_XF = log_XF - logsumexp(log_XF, axis=1, keepdims=True) + mass_X1
        log_XF = log_XF - logsumexp(log_XF, axis=0, keepdims=True) + room
    return np.asarray(log_XF[:items])


def _one_to_one(plan_GF: NDArray[np.float64]) -> Ints:
    """The code of each item: of a one-to-one assignment as far as codes reach, beyond them the largest entry of the plan."""
    code_G: Ints = plan_GF.argmax(axis=1).astype(np.int64)
    item, code = linear_sum_assignment(plan_GF, maximize=True)
    code_G[item] = code
    return code_G
