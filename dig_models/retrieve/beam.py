"""Batched beam search over the prefixes that exist in a catalogue, scored by the retrieval path of DIG.

Level by level the candidate prefixes of every request are scored at once, the best ``beam`` are kept, and the leaves'
postings give the items (arXiv 2605.14853, inference). With a beam as wide as the trie it equals dense scoring.

Shape suffixes: ``G`` requests of the batch, ``P`` nodes of a level, ``R`` scored (request, node) rows, ``D`` width of an
embedding, ``C`` model crosses, ``N`` catalogue rows, ``J`` items returned, ``Q`` rows kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dig_models.dig import Dig
from dig_models.retrieve.allowed import RequestFilter
from dig_models.retrieve.scorer import OPEN, Candidates, PrefixCrosses, PrefixScorer, ScoredUsers
from dig_models.retrieve.trie import Int64, Trie, expand_ranges

__all__ = ["OPEN", "KnownScores", "Retrieved", "beam_search", "best_rows", "node_embeddings", "top_items"]

Scores = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """Items of each request, best first.

    Attributes:
        item_GJ: int64 rows of the item table; 0 where a request has fewer items.
        score_GJ: float32 log-probability of the item's path; ``-inf`` where there is no item.
    """

    item_GJ: Int64
    score_GJ: NDArray[np.float32]


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


@dataclass(frozen=True, kw_only=True)
class KnownScores:
    """Log-odds of prefixes that searches of some requests have scored: another search of them, by another filter, meets most again.

    Frozen is which arrays it holds, not what they hold: ``logits`` writes every new score into them.

    Attributes:
        logit_GP: by level float32 ``(G, nodes)``, NaN where nothing was scored.
    """

    logit_GP: list[Scores]

    @classmethod
    def none(cls, trie: Trie, requests: int) -> KnownScores:
        """Before the first search; 4 bytes for each request and node."""
        return cls(logit_GP=[np.full((requests, trie.nodes(level)), np.nan, dtype=np.float32) for level in range(trie.levels)])

    def logits(self, scorer: PrefixScorer, level: int, users: ScoredUsers, rows: Candidates, u2t: PrefixCrosses | None) -> Scores:
        """``PrefixScorer.logits``, of the rows that are not known."""
        held_GP, user_R = self.logit_GP[level], rows.users(0, len(rows.node_R))
        logit_R = held_GP[user_R, rows.node_R]
        new_K = np.flatnonzero(np.isnan(logit_R))
        if len(new_K):
            logit_R[new_K] = scorer.logits(level, users, rows.take(new_K), u2t)
            held_GP[user_R[new_K], rows.node_R[new_K]] = logit_R[new_K]
        return logit_R


def beam_search(
    scorer: PrefixScorer,
    trie: Trie,
    users: ScoredUsers,
    *,
    beam: int | Sequence[int],
    limit: int,
    u2t: PrefixCrosses | None = None,
    path_score: Literal["last", "sum_log"] = "last",
    filters: Sequence[RequestFilter] | None = None,
    watch: Callable[[int, Candidates, Scores], None] | None = None,
    known: KnownScores | None = None,
) -> Retrieved:
    """Best items of each request by the retrieval path.

    Above the last level the ``beam`` best prefixes of a request are expanded; every leaf under them is scored anyway, so
    none is thrown away and the best ``limit`` items are returned. Ties go to the smaller SID, then the smaller item row.

    Args:
        scorer: of the model.
        trie: the catalogue's prefixes.
        users: user side of the requests, folded by ``scorer.users``.
        beam: prefixes of a request that are expanded at each level; one number, or one for each request.
        limit: items returned, J.
        u2t: crosses of prefixes; None asks ``MLP_u2t``.
        path_score: ``last`` ranks by the current prefix's probability, ``sum_log`` by the sum of the path's log-probabilities.
        filters: what each request may be answered with; prefixes without such an item are not scored.
        watch: told level, rows and path scores of everything that was scored.
        known: what an earlier search of the same requests with the same ``u2t`` scored is taken from here; the rest is added.

    Raises:
        ValueError: a score that is no number, which a damaged model or cross gives.
    """
    requests = len(users.user_GD)
    beam_G = [beam] * requests if isinstance(beam, int) else list(beam)
    rows = _first(trie, users)
    path_R = np.zeros(len(rows.node_R), dtype=np.float32)
    for level in range(trie.levels):
        if filters is not None:
            rows, path_R = _filtered(level, rows, path_R, filters)
        logit_R = scorer.logits(level, users, rows, u2t) if known is None else known.logits(scorer, level, users, rows, u2t)
        own_R = F.logsigmoid(torch.from_numpy(logit_R)).numpy()
        if not np.isfinite(own_R).all():
            raise ValueError(
                f"prefix scores of level {level + 1}: a score is not a finite number; the model's weights or the crosses are damaged"
            )
        path_R = path_R + own_R if path_score == "sum_log" else own_R
        if watch is not None:
            watch(level, rows, path_R)
        if level + 1 < trie.levels:
            rows, path_R = _expanded(scorer, trie, level, rows, path_R, beam_G)
    return _items(trie, rows, path_R, limit, filters)


def best_rows(score_R: NDArray[np.float32], keep: int) -> Int64:
    """Positions of the best ``keep`` scores, ascending; of equal scores the first ones."""
    if keep >= len(score_R):
        return np.arange(len(score_R), dtype=np.int64)
    last = np.partition(score_R, len(score_R) - keep)[len(score_R) - keep]
    better = np.flatnonzero(score_R > last)
    equal = np.flatnonzero(score_R == last)[: keep - len(better)]
    return np.sort(np.concatenate([better, equal])) if len(equal) else better


def _first(trie: Trie, users: ScoredUsers) -> Candidates:
    requests, nodes = len(users.user_GD), trie.nodes(0)
    return Candidates(
        bound_G=np.arange(requests + 1, dtype=np.int64) * nodes,
        node_R=np.tile(np.arange(nodes, dtype=np.int64), requests),
        token_R=np.tile(np.asarray(trie.token[0]), requests),
        owner_R=np.repeat(np.arange(requests, dtype=np.int64), nodes),
        feature_QF=users.root_GF,
    )


def _filtered(level: int, rows: Candidates, path_R: Scores, filters: Sequence[RequestFilter]) -> tuple[Candidates, Scores]:
    alive = [f.alive(level, rows.node_R[a:b]) for f, (a, b) in zip(filters, pairwise(rows.bound_G.tolist()), strict=True)]
    keep = np.flatnonzero(np.concatenate(alive)) if alive else np.zeros(0, dtype=np.int64)
    return rows.take(keep), path_R[keep]


def _expanded(
    scorer: PrefixScorer, trie: Trie, level: int, rows: Candidates, path_R: Scores, beam_G: Sequence[int]
) -> tuple[Candidates, Scores]:
    """Children of each request's best prefixes."""
    kept = [best_rows(path_R[a:b], beam) + a for beam, (a, b) in zip(beam_G, pairwise(rows.bound_G.tolist()), strict=True)]
    kept_Q = np.concatenate(kept) if kept else np.zeros(0, dtype=np.int64)
    node_R, owner_R = trie.children(level, rows.node_R[kept_Q])
    parent_bound = np.cumsum([0, *(len(k) for k in kept)])
    expanded = Candidates(
        bound_G=np.searchsorted(owner_R, parent_bound).astype(np.int64),
        node_R=node_R,
        token_R=np.asarray(trie.token[level + 1][node_R]),
        owner_R=owner_R,
        feature_QF=scorer.descend(level, rows, kept_Q),
    )
    return expanded, path_R[kept_Q][owner_R]


def _items(trie: Trie, rows: Candidates, score_R: Scores, limit: int, filters: Sequence[RequestFilter] | None) -> Retrieved:
    """Postings of scored leaves, best ``limit`` items of each request."""
    requests = len(rows.bound_G) - 1
    item_GJ = np.zeros((requests, limit), dtype=np.int64)
    score_GJ = np.full((requests, limit), -np.inf, dtype=np.float32)
    for g, (a, b) in enumerate(pairwise(rows.bound_G.tolist())):
        best = best_rows(score_R[a:b], limit) + a  # every leaf still here holds an item that may be returned
        best = best[np.argsort(-score_R[best], kind="stable")]
        item_R, owner = trie.postings(rows.node_R[best])
        if filters is not None:
            keep = filters[g].items(item_R)
            item_R, owner = item_R[keep], owner[keep]
        item_R, owner = item_R[:limit], owner[:limit]
        item_GJ[g, : len(item_R)], score_GJ[g, : len(item_R)] = item_R, score_R[best[owner]]
    return Retrieved(item_GJ=item_GJ, score_GJ=score_GJ)


def top_items(request_R: Int64, item_R: Int64, score_R: NDArray[np.float32], requests: int, limit: int) -> Retrieved:
    """The best ``limit`` rows of each request as padded arrays; ties keep the order of the rows."""
    order = np.lexsort((-score_R, request_R))
    place = np.arange(len(order)) - np.searchsorted(request_R[order], request_R[order])
    best = order[place < limit]
    count_G = np.bincount(request_R[best], minlength=requests)
    column, row = expand_ranges(np.zeros(requests, dtype=np.int64), count_G.astype(np.int64))
    item_GJ = np.zeros((requests, limit), dtype=np.int64)
    score_GJ = np.full((requests, limit), -np.inf, dtype=np.float32)
    item_GJ[row, column], score_GJ[row, column] = item_R[best], score_R[best]
    return Retrieved(item_GJ=item_GJ, score_GJ=score_GJ)
