"""Batched beam search over the prefixes that exist in a catalogue, scored by the retrieval path of DIG.

Level by level the candidate prefixes of every request are scored at once, the best ``beam`` are kept, and the leaves'
postings give the items (arXiv 2605.14853, inference). With a beam as wide as the trie it equals dense scoring.

Shape suffixes: ``G`` requests of the batch, ``P`` nodes of a level, ``R`` scored (request, node) pairs, ``D`` width of an
embedding, ``C`` model crosses, ``N`` catalogue rows, ``J`` items returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from dig_models.retrieve.trie import Int64, Trie, expand_ranges

if TYPE_CHECKING:
    from dig_models.dig import Dig
    from dig_models.nn.attention import UserSide

OPEN = 1
"""Domain of ``Dig.rank_logit`` and ``recall_logit``: a candidate of the open catalogue, not an exposure."""

PrefixCrosses = Callable[[int, Int64, Int64], NDArray[np.float32]]
"""``(level, request_R, node_R) -> u2t_RC``."""


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """Items of each request, best first.

    Attributes:
        item_GJ: int64 rows of the item table; 0 where a request has fewer items.
        score_GJ: float32 log-probability of the item's path; ``-inf`` where there is no item.
    """

    item_GJ: Int64
    score_GJ: NDArray[np.float32]


class ScoreMemo:
    """Prefix scores of one chunk of requests; searches that differ only in what is allowed share it and score a prefix once."""

    def __init__(self, trie: Trie, requests: int) -> None:
        self._score_GP = [np.full((requests, trie.nodes(level)), np.nan, dtype=np.float32) for level in range(trie.levels)]

    def scores(
        self, level: int, request_R: Int64, node_R: Int64, score: Callable[[Int64, Int64], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """Scores of (request, node) pairs, ``(R,)``; ``score`` is asked for those that are not known yet."""
        known_GP = self._score_GP[level]
        new = np.isnan(known_GP[request_R, node_R])
        if new.any():
            known_GP[request_R[new], node_R[new]] = score(request_R[new], node_R[new])
        out: NDArray[np.float32] = known_GP[request_R, node_R]
        return out


@torch.no_grad()
def node_embeddings(model: Dig, trie: Trie) -> list[Tensor]:
    """Prefix embeddings ``e_sid(1:l)`` of every node, per level float32 ``(P, D)``; depend on the model alone."""
    leaf_PL = torch.from_numpy(trie.codes(trie.levels - 1))
    leaf_PLD = model.prefix_embeddings(leaf_PL)
    nodes = [leaf_PLD[:, -1]]
    for level in range(trie.levels - 2, -1, -1):
        # The first leaf under a node: children are contiguous, so it is found by descending first children.
        first = np.arange(trie.nodes(level), dtype=np.int64)
        for child in trie.child[level:]:
            first = child[first]
        nodes.append(leaf_PLD[torch.from_numpy(first), level])
    return [n.contiguous() for n in reversed(nodes)]


@torch.no_grad()
def beam_search(
    model: Dig,
    trie: Trie,
    nodes: Sequence[Tensor],
    users: UserSide,
    requests: int,
    *,
    beam: int,
    limit: int,
    u2t: PrefixCrosses | None = None,
    path_score: Literal["last", "sum_log"] = "last",
    allowed_GN: NDArray[np.bool_] | None = None,
    memo: ScoreMemo | None = None,
) -> Retrieved:
    """Best items of each request by the retrieval path.

    Above the last level the ``beam`` best prefixes of a request are expanded; every leaf under them is scored anyway, so
    none is thrown away and the best ``limit`` items are returned. Ties go to the smaller SID, then the smaller item row.

    Args:
        model: in eval mode.
        trie: the catalogue's prefixes.
        nodes: ``node_embeddings`` of the trie.
        users: user side of the requests.
        requests: G.
        beam: prefixes of a request that are expanded at each level.
        limit: items returned, J.
        u2t: crosses of prefixes; None asks ``model.predict_u2t`` (MLP_u2t).
        path_score: ``last`` ranks by the current prefix's probability, ``sum_log`` by the sum of the path's log-probabilities.
        allowed_GN: items that may be returned; prefixes without any are not scored.
        memo: scores shared with other searches of the same requests, model and crosses.
    """
    memo = memo or ScoreMemo(trie, requests)
    alive = None if allowed_GN is None else _alive(trie, allowed_GN)
    node_R = np.tile(np.arange(trie.nodes(0), dtype=np.int64), requests)
    request_R = np.repeat(np.arange(requests, dtype=np.int64), trie.nodes(0))
    path_R = np.zeros(len(node_R), dtype=np.float32)
    for level in range(trie.levels):
        if alive is not None:
            keep = alive[level][request_R, node_R]
            request_R, node_R, path_R = request_R[keep], node_R[keep], path_R[keep]
        score = partial(_log_probability, model, nodes[level], users, level, u2t)
        own_R = memo.scores(level, request_R, node_R, score)
        path_R = path_R + own_R if path_score == "sum_log" else own_R
        if level + 1 < trie.levels:
            kept = np.sort(_best(request_R, path_R, beam))
            node_R, owner = trie.children(level, node_R[kept])
            request_R, path_R = request_R[kept][owner], path_R[kept][owner]
    return _items(trie, request_R, node_R, path_R, requests, limit, allowed_GN)


def _log_probability(
    model: Dig, node_PD: Tensor, users: UserSide, level: int, u2t: PrefixCrosses | None, request_R: Int64, node_R: Int64
) -> NDArray[np.float32]:
    """Log of the calibrated probability of each (request, prefix), float32 ``(R,)``; keeps the order of the logits."""
    request, prefix_RD = torch.from_numpy(request_R), node_PD.index_select(0, torch.from_numpy(node_R))
    cross_RC = model.predict_u2t(users, request, prefix_RD) if u2t is None else torch.from_numpy(u2t(level, request_R, node_R))
    logit_R = model.recall_logit(users, request, prefix_RD, cross_RC, torch.full_like(request, OPEN))
    scored: NDArray[np.float32] = logsigmoid(logit_R).numpy()
    return scored


def _alive(trie: Trie, allowed_GN: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    per_request = [trie.alive(allowed_N) for allowed_N in allowed_GN]
    return [np.stack([a[level] for a in per_request]) for level in range(trie.levels)]


def _best(request_R: Int64, score_R: NDArray[np.float32], keep: int) -> Int64:
    """Positions of the best ``keep`` rows of each request, best first; the sort is stable, so ties keep their order."""
    order = np.lexsort((-score_R, request_R))
    sorted_request = request_R[order]
    place = np.arange(len(order)) - np.searchsorted(sorted_request, sorted_request)
    return order[place < keep]


def _items(
    trie: Trie,
    request_R: Int64,
    leaf_R: Int64,
    score_R: NDArray[np.float32],
    requests: int,
    limit: int,
    allowed_GN: NDArray[np.bool_] | None,
) -> Retrieved:
    """Postings of scored leaves, best ``limit`` items of each request."""
    best = _best(request_R, score_R, limit)  # every leaf still here holds an item that may be returned
    request_R, leaf_R, score_R = request_R[best], leaf_R[best], score_R[best]
    item_R, owner = trie.postings(leaf_R)
    request_R, score_R = request_R[owner], score_R[owner]
    if allowed_GN is not None:
        keep = allowed_GN[request_R, item_R]
        item_R, request_R, score_R = item_R[keep], request_R[keep], score_R[keep]
    return top_items(request_R, item_R, score_R, requests, limit)


def top_items(request_R: Int64, item_R: Int64, score_R: NDArray[np.float32], requests: int, limit: int) -> Retrieved:
    """The best ``limit`` rows of each request as padded arrays; ties keep the order of the rows."""
    best = _best(request_R, score_R, limit)
    count_G = np.bincount(request_R[best], minlength=requests)
    column, row = expand_ranges(np.zeros(requests, dtype=np.int64), count_G.astype(np.int64))
    item_GJ = np.zeros((requests, limit), dtype=np.int64)
    score_GJ = np.full((requests, limit), -np.inf, dtype=np.float32)
    item_GJ[row, column], score_GJ[row, column] = item_R[best], score_R[best]
    return Retrieved(item_GJ=item_GJ, score_GJ=score_GJ)
