"""Recommendation lists of models and baselines for the same requests, over all items and over items new to the user.

Everything that a request costs once (crosses of the whole catalogue, what the user bought) is computed once for all
models and both variants. In the variant ``new`` no method may list an item that the user bought before.

Shape suffixes: ``Q`` requests, ``K`` ranks, ``N`` catalogue rows, ``W`` raw crosses, ``G`` requests of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dig_models.affinity import beside
from dig_models.evaluate.retrieval import NONE, own_frequency_list, popularity_list
from dig_models.features import FeatureSpec
from dig_models.retrieve.beam import KnownScores, Retrieved, top_items
from dig_models.retrieve.options import SearchOptions, U2t
from dig_models.retrieve.rerank import Retriever, crosses_of
from dig_models.train.data import RequestTable

if TYPE_CHECKING:
    from dig_models.nn.attention import UserSide

Rows = NDArray[np.int64]
Variant = Literal["all", "new"]
VARIANTS: tuple[Variant, ...] = ("all", "new")


@dataclass(frozen=True, kw_only=True)
class Search:
    """How a model retrieves: the settings it would serve with."""

    beam: int
    rerank: int
    u2t: U2t
    path_score: Literal["last", "sum_log"]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model and how it searches; ``name`` labels its lists ``<name>`` (re-ranked) and ``<name>_path`` (path score)."""

    name: str
    retriever: Retriever
    search: Search


Lists = dict[Variant, dict[str, Rows]]
"""Item rows ``(Q, K)`` by variant and method, padded with -1."""


def recommend_all(
    contenders: Sequence[Contender],
    requests: RequestTable,
    index_Q: Rows,
    *,
    k: int,
    chunk: int = 16,
    ready: Callable[[int], None] | None = None,
) -> tuple[Lists, list[Rows]]:
    """Lists of every contender and of the baselines ``popularity`` and ``own_frequency``.

    Args:
        contenders: at least one; all share item table, feature spec and cross store.
        requests: the table to take requests from.
        index_Q: positions in it.
        k: length of the lists.
        chunk: requests at a time.
        ready: told after each chunk how many requests are done.

    Returns:
        The lists, and for each request the item rows that its user bought before.
    """
    first = contenders[0].retriever
    names = [n for c in contenders for n in (c.name, f"{c.name}_path")] + ["popularity", "own_frequency"]
    lists: Lists = {v: {n: np.full((len(index_Q), k), NONE, dtype=np.int64) for n in names} for v in VARIANTS}
    bought = [first.store.bought(int(requests.user_B[b]), int(requests.ts_B[b])) for b in index_Q]
    for at in range(0, len(index_Q), chunk):
        part = index_Q[at : at + chunk]
        raw_GNW = [_raw(first, requests, int(b)) for b in part]
        for variant in VARIANTS:
            excluded = [b if variant == "new" else b[:0] for b in bought[at : at + chunk]]
            place = slice(at, at + len(part))
            for name, rows in baselines(first.spec, raw_GNW, excluded, k).items():
                lists[variant][name][place] = rows
        cross_GNC = [first.spec.transform(raw_NW) for raw_NW in raw_GNW]
        for contender in contenders:
            found = _retrieve(contender, requests, part, cross_GNC, bought[at : at + chunk], k)
            for variant, (reranked, path) in found.items():
                lists[variant][contender.name][place] = reranked
                lists[variant][f"{contender.name}_path"][place] = path
        if ready:
            ready(min(at + chunk, len(index_Q)))
    return lists, bought


def baselines(spec: FeatureSpec, raw_GNW: Sequence[NDArray[np.float32]], excluded: Sequence[Rows], k: int) -> dict[str, Rows]:
    """Popularity and own frequency ``(G, K)`` from the raw crosses of requests with the catalogue."""
    popularity, own = columns(spec)
    popular, frequent = [], []
    for raw_NW, gone in zip(raw_GNW, excluded, strict=True):
        known = np.flatnonzero(raw_NW[:, own] > 0)
        popular.append(popularity_list(raw_NW[:, popularity], k, gone))
        frequent.append(own_frequency_list(known, raw_NW[known, own], raw_NW[:, popularity], k, gone))
    return {"popularity": np.stack(popular), "own_frequency": np.stack(frequent)}


def columns(spec: FeatureSpec) -> tuple[int, int]:
    """Raw cross columns of the baselines: popularity in the window nearest to 30 days, the user's count in the longest."""
    return spec.raw_cross_names.index(f"pop_{spec.month}"), spec.raw_cross_names.index(f"u2i_item_n_{max(spec.windows)}")


@torch.no_grad()
def _retrieve(
    contender: Contender,
    requests: RequestTable,
    part: Rows,
    cross_GNC: list[NDArray[np.float32]],
    bought: Sequence[Rows],
    k: int,
) -> dict[Variant, tuple[Rows, Rows]]:
    retriever, search = contender.retriever, contender.search
    side = retriever.users(requests, part)
    affinity_GN = retriever.affinities(requests, part)
    own_GNC = cross_GNC if affinity_GN is None else [beside(*one) for one in zip(cross_GNC, affinity_GN, strict=True)]
    reranker, known = _Reranker(retriever, side, own_GNC), KnownScores.none(retriever.trie, len(part))
    everything = SearchOptions(k=k, beam=search.beam, rerank=search.rerank, u2t=search.u2t, path_score=search.path_score)
    out: dict[Variant, tuple[Rows, Rows]] = {}
    for variant in VARIANTS:
        options = replace(everything, exclude=list(bought)) if variant == "new" else everything
        found = retriever.paths(requests, part, side, options, affinity_GN, known)
        reranked = reranker.top(found, search.rerank, k) if search.rerank else found
        out[variant] = _padded(reranked, k), _padded(found, k)
    return out


class _Reranker:
    """The ranking path with real crosses for one chunk of requests; scores each (request, item) once."""

    def __init__(self, retriever: Retriever, users: UserSide, cross_GNC: Sequence[NDArray[np.float32]]) -> None:
        self.retriever, self.users, self.cross_GNC = retriever, users, cross_GNC
        self.score_GN = np.full((len(cross_GNC), len(retriever.items)), np.nan, dtype=np.float32)

    def top(self, found: Retrieved, rerank: int, k: int) -> Retrieved:
        """The first ``rerank`` items found, best ``k`` of them by the ranking path."""
        request_P, column_P = np.nonzero(found.item_GJ[:, :rerank])
        item_P = found.item_GJ[request_P, column_P]
        new = np.isnan(self.score_GN[request_P, item_P])
        if new.any():
            asked_P, wanted_P = request_P[new].astype(np.int64), item_P[new]
            self.score_GN[asked_P, wanted_P] = self.retriever.scores(
                self.users, asked_P, wanted_P, crosses_of(self.cross_GNC, asked_P, wanted_P)
            )
        return top_items(request_P.astype(np.int64), item_P, self.score_GN[request_P, item_P], len(self.cross_GNC), k)


def _padded(found: Retrieved, k: int) -> Rows:
    item_GK = found.item_GJ[:, :k]
    return np.where(item_GK == 0, NONE, item_GK)


def _raw(retriever: Retriever, requests: RequestTable, request: int) -> NDArray[np.float32]:
    user, ts, offer = (int(column[request]) for column in (requests.user_B, requests.ts_B, requests.offer_B))
    return retriever.store.catalogue(user, ts, offer)
