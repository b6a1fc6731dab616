"""Retrieve and re-rank: beam search over prefixes, then the ranking path with real crosses on what was retrieved.

One ``Retriever`` holds what depends on model and catalogue alone, so that a request costs its user side, the prefixes that are
scored and the items that are re-ranked; none of these grows with the catalogue. Where the model reads the affinity and prefixes have exact
crosses, a search adds one row of the catalogue's length for each request, made once. Evaluation and serving share it.

Shape suffixes: ``G`` requests at a time, ``B`` requests asked for, ``N`` catalogue rows, ``J`` items of a request, ``P`` pairs,
``R`` rows, ``D`` embedding width, ``C`` model crosses, ``L`` levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dig_models.affinity import beside, prefix_affinity
from dig_models.dig import Dig
from dig_models.features import FeatureSpec
from dig_models.items import ItemTable
from dig_models.nn.attention import UserSide
from dig_models.retrieve.allowed import AllowedItems, RequestFilter
from dig_models.retrieve.beam import OPEN, KnownScores, Retrieved, beam_search, node_embeddings, top_items
from dig_models.retrieve.options import SearchOptions, U2t
from dig_models.retrieve.prefix_u2t import ExactU2t, Profiles
from dig_models.retrieve.scorer import PrefixCrosses, PrefixScorer
from dig_models.retrieve.trie import Int64, Trie
from dig_models.train.data import RequestTable, collate, histories

Floats = NDArray[np.float32]
Ready = Callable[[int], None]


class Crosses(Profiles, Protocol):
    """What a retriever asks of ``dig_models.crosses.CrossStore``."""

    def pairs(self, user_P: Int64, ts_P: Int64, offer_P: Int64, item_P: Int64) -> Floats:
        """Raw crosses of pairs."""
        ...

    def catalogue(self, user: int, ts: int, offer: int) -> Floats:
        """Raw crosses of one request with every catalogue row."""
        ...

    def bought(self, user: int, ts: int) -> Int64:
        """Item rows with any event before ``ts``."""
        ...


@dataclass(frozen=True, kw_only=True)
class Retriever:
    """A model on a catalogue, ready to answer requests, from several threads at once.

    What is derived from the catalogue (item embeddings, shares of key values, popularity of a day) is made when first needed, and
    shared; ``warm`` makes it beforehand. What a search works in belongs to its thread.

    Attributes:
        model: in eval mode, its item table set to ``items``; its weights must not change any more.
        stored_nodes: prefix embeddings of the trie from an index generation, if there are any.
    """

    model: Dig
    spec: FeatureSpec
    items: ItemTable
    trie: Trie
    store: Crosses
    stored_nodes: list[Tensor] | None = None

    @classmethod
    def of(
        cls,
        model: Dig,
        spec: FeatureSpec,
        items: ItemTable,
        store: Crosses,
        *,
        codes_NL: Int64 | None = None,
        trie: Trie | None = None,
        nodes: list[Tensor] | None = None,
    ) -> Retriever:
        """Prepare a model for a catalogue.

        Args:
            model: put into eval mode and given ``items``.
            spec: the feature spec it was trained with.
            items: the catalogue.
            store: cross look-ups on the same item table.
            codes_NL: SIDs of the catalogue; computed from the model if neither they nor a trie are given.
            trie: the catalogue's trie, if it was built before.
            nodes: its node embeddings, if they were computed before.
        """
        model.eval()
        model.set_items(items)
        if trie is None:
            with torch.no_grad():
                codes_NL = model.codes(model.encode_catalogue()).numpy() if codes_NL is None else codes_NL
            trie = Trie.build(codes_NL)
        return cls(model=model, spec=spec, items=items, trie=trie, store=store, stored_nodes=nodes)

    @cached_property
    def embedding_ND(self) -> Tensor:
        """Item embeddings ``e_v`` of the catalogue."""
        return self.model.encode_catalogue()

    @cached_property
    def nodes(self) -> list[Tensor]:
        """Prefix embeddings of the trie, per level ``(P, D)``; the search needs none of them."""
        return node_embeddings(self.model, self.trie) if self.stored_nodes is None else self.stored_nodes

    @cached_property
    def scorer(self) -> PrefixScorer:
        """The factored retrieval path."""
        return PrefixScorer(self.model)

    @cached_property
    def exact(self) -> ExactU2t:
        """Exact crosses of prefixes."""
        return ExactU2t(self.trie, self.items.key_KN, self.spec, self.store)

    def warm(self, requests: RequestTable, *, u2t: U2t = "exact") -> Retriever:
        """Answer the first of some requests, so that later ones find everything that is made when first needed."""
        if len(requests):
            self.search(requests, np.zeros(1, dtype=np.int64), SearchOptions(u2t=u2t, exclude_bought=True))
        return self

    def allow(self, allowed_N: NDArray[np.bool_]) -> AllowedItems:
        """Prepare a mask over item rows for any number of calls; see ``SearchOptions.allowed``."""
        return AllowedItems.of(self.trie, allowed_N)

    def retrieve(
        self,
        requests: RequestTable,
        index_B: Int64,
        *,
        k: int,
        beam: int | Sequence[int],
        rerank: int,
        u2t: U2t = "exact",
        path_score: Literal["last", "sum_log"] = "last",
        exclude_bought: bool = False,
        allowed_N: NDArray[np.bool_] | None = None,
        chunk: int = 16,
        ready: Ready | None = None,
    ) -> Retrieved:
        """``search`` with the options as keywords; ``allowed_N`` is ``SearchOptions.allowed``."""
        options = SearchOptions(
            k=k, beam=beam, rerank=rerank, u2t=u2t, path_score=path_score, exclude_bought=exclude_bought, allowed=allowed_N, chunk=chunk
        )
        return self.search(requests, index_B, options, ready=ready)

    def search(self, requests: RequestTable, index_B: Int64, options: SearchOptions, *, ready: Ready | None = None) -> Retrieved:
        """The best ``k`` items of each request over the whole catalogue.

        Args:
            requests: the table to take requests from (``examples`` or ``user_state``).
            index_B: positions in it.
            options: how to search and what may be returned.
            ready: told after each chunk how many requests are done.

        Raises:
            ValueError: options that do not fit the catalogue or the requests.
        """
        index_B = np.asarray(index_B, dtype=np.int64)
        options.check(len(index_B))
        if isinstance(options.allowed, np.ndarray):
            options = replace(options, allowed=self.allow(options.allowed))
        found = []
        for at in range(0, len(index_B), options.chunk):
            part = slice(at, at + options.chunk)
            found.append(self._search(requests, index_B[part], _part(options, part)))
            if ready:
                ready(min(at + options.chunk, len(index_B)))
        return _stack(found, options.k)

    @torch.no_grad()
    def _search(self, requests: RequestTable, part: Int64, options: SearchOptions) -> Retrieved:
        side = self.users(requests, part)
        affinity_GN = self.affinities(requests, part) if options.u2t == "exact" else None
        found = self.paths(requests, part, side, options, affinity_GN)
        if not options.rerank:
            return found
        request_P, column_P = (at.astype(np.int64) for at in np.nonzero(found.item_GJ))
        item_P = found.item_GJ[request_P, column_P]
        affinity_P = None if affinity_GN is None else affinity_GN[request_P, item_P]
        score_P = self.scores(side, request_P, item_P, self.pairs(requests, part[request_P], item_P, affinity_P))
        return top_items(request_P, item_P, score_P, len(part), options.k)

    @torch.no_grad()
    def paths(
        self,
        requests: RequestTable,
        part: Int64,
        side: UserSide,
        options: SearchOptions,
        affinity_GN: Floats | None = None,
        known: KnownScores | None = None,
    ) -> Retrieved:
        """The best ``max(k, rerank)`` items of some requests by their paths, before re-ranking.

        Args:
            requests: the table.
            part: positions in it.
            side: ``users`` of these positions.
            options: lists in it hold one entry for each of ``part``.
            affinity_GN: ``affinities`` of these positions, if they were computed before.
            known: shared by searches of these positions that differ in their filters or widths.
        """
        return beam_search(
            self.scorer,
            self.trie,
            self.scorer.users(side, mlp=options.u2t == "mlp"),
            beam=options.beam,
            limit=max(options.k, options.rerank),
            u2t=self._prefix_crosses(requests, part, options.u2t, affinity_GN),
            path_score=options.path_score,
            filters=self._filters(requests, part, options),
            known=known,
        )

    @torch.no_grad()
    def exhaustive(self, requests: RequestTable, index_B: Int64, *, chunk: int = 4) -> Floats:
        """Ranking path over the whole catalogue: log-probabilities ``(B, N)``, row 0 ``-inf``. For evaluation; slow."""
        rows = np.arange(1, len(self.items), dtype=np.int64)
        out_BN = np.full((len(index_B), len(self.items)), -np.inf, dtype=np.float32)
        at = 0
        for part in _chunks(index_B, chunk):
            users = self.users(requests, part)
            cross_RC = np.concatenate([self.catalogue(requests, int(b))[1:] for b in part])
            request_R = np.repeat(np.arange(len(part), dtype=np.int64), len(rows))
            out_BN[at : at + len(part), 1:] = self.scores(users, request_R, np.tile(rows, len(part)), cross_RC).reshape(len(part), -1)
            at += len(part)
        return out_BN

    @torch.no_grad()
    def rank(self, requests: RequestTable, request: int, item_P: Int64) -> Floats:
        """Log-probabilities ``(P,)`` of some items for one request, by the ranking path with real crosses."""
        part = np.array([request], dtype=np.int64)
        cross_PC = self.pairs(requests, np.repeat(part, len(item_P)), item_P)
        return self.scores(self.users(requests, part), np.zeros(len(item_P), dtype=np.int64), item_P, cross_PC)

    def users(self, requests: RequestTable, index_B: Int64) -> UserSide:
        """User side of some requests, computed once for all their candidates."""
        bare = _without_rows(requests)
        batch = collate(bare, index_B, spec=self.spec, items=self.items, lookup=_never, keep_rate=1.0)
        side: UserSide = self.model.user_side(batch)
        return side

    def catalogue(self, requests: RequestTable, request: int) -> Floats:
        """Model crosses ``(N, C)`` of one request with every catalogue row."""
        raw_NW = self.store.catalogue(int(requests.user_B[request]), int(requests.ts_B[request]), int(requests.offer_B[request]))
        cross_NC, affinity_GN = self.spec.transform(raw_NW), self.affinities(requests, np.array([request]))
        return cross_NC if affinity_GN is None else beside(cross_NC, affinity_GN[0])

    def affinities(self, requests: RequestTable, part: Int64) -> Floats | None:
        """Affinity of some requests with every catalogue row, ``(G, N)``; None for a model that does not read it."""
        affinity = self.model.affinity
        return None if affinity is None else affinity.catalogue(histories(requests, part, self.spec.history_length)[0])

    def pairs(self, requests: RequestTable, request_P: Int64, item_P: Int64, affinity_P: Floats | None = None) -> Floats:
        """Model crosses ``(P, C)`` of pairs of requests and item rows; ``affinity_P`` is theirs, if it was computed before."""
        user_P, ts_P, offer_P = requests.user_B[request_P], requests.ts_B[request_P], requests.offer_B[request_P]
        cross_PC, affinity = self.spec.transform(self.store.pairs(user_P, ts_P, offer_P, item_P)), self.model.affinity
        if affinity is None:
            return cross_PC
        if affinity_P is None:
            request_B, at_P = np.unique(request_P, return_inverse=True)
            affinity_P = affinity.pairs(histories(requests, request_B, self.spec.history_length)[0], at_P, item_P)
        return beside(cross_PC, affinity_P)

    def _prefix_crosses(self, requests: RequestTable, part: Int64, u2t: U2t, affinity_GN: Floats | None = None) -> PrefixCrosses | None:
        if u2t == "mlp":
            return None
        if u2t == "exact":
            met = self.exact.of(requests.user_B[part], requests.ts_B[part], requests.offer_B[part])
            affinity_GN = self.affinities(requests, part) if affinity_GN is None else affinity_GN
            if affinity_GN is None:
                return met
            own = prefix_affinity(affinity_GN, self.trie.order_M, self.trie.start)
            return lambda level, user_R, node_R: beside(met(level, user_R, node_R), own(level, user_R, node_R))
        usual_C = self.model.norm_u2t.mean_SC[OPEN].numpy()
        return lambda level, user_R, node_R: np.broadcast_to(usual_C, (len(node_R), len(usual_C))).copy()

    def _filters(self, requests: RequestTable, part: Int64, options: SearchOptions) -> list[RequestFilter] | None:
        """What each request may be answered with; None if that is everything."""
        if options.allowed is None and options.exclude is None and not options.exclude_bought:
            return None
        allowed = options.allowed
        if isinstance(allowed, np.ndarray):
            allowed = self.allow(allowed)
        filters = []
        for g, b in enumerate(part.tolist()):
            excluded = [np.zeros(0, dtype=np.int64)] if options.exclude is None else [np.asarray(options.exclude[g], dtype=np.int64)]
            if options.exclude_bought:
                excluded.append(self.store.bought(int(requests.user_B[b]), int(requests.ts_B[b])))
            own = allowed if allowed is None or isinstance(allowed, AllowedItems) else allowed[g]
            filters.append(RequestFilter(self.trie, own, np.concatenate(excluded)))
        return filters

    @torch.no_grad()
    def scores(self, users: UserSide, request_P: Int64, item_P: Int64, cross_PC: Floats) -> Floats:
        """Log-probabilities ``(P,)`` of (request, item) pairs by the ranking path; requests ascend, crosses are model crosses."""
        request = torch.from_numpy(request_P)
        e_PD = self.embedding_ND.index_select(0, torch.from_numpy(item_P))
        logit_P = self.model.rank_logit(users, request, e_PD, torch.from_numpy(cross_PC), torch.full_like(request, OPEN))
        scored: Floats = F.logsigmoid(logit_P).numpy()
        return scored


def _part(options: SearchOptions, part: slice) -> SearchOptions:
    """The options of some of the requests."""
    beam = options.beam if isinstance(options.beam, int) else options.beam[part]
    exclude = None if options.exclude is None else options.exclude[part]
    allowed = options.allowed
    if allowed is not None and not isinstance(allowed, (np.ndarray, AllowedItems)):
        allowed = allowed[part]
    return replace(options, beam=beam, exclude=exclude, allowed=allowed)


def crosses_of(cross_GNC: Sequence[Floats], request_P: Int64, item_P: Int64) -> Floats:
    """Model crosses ``(P, C)`` of pairs, from those of each request with the catalogue; requests ascend."""
    return np.concatenate([cross_NC[item_P[request_P == g]] for g, cross_NC in enumerate(cross_GNC)])


def _without_rows(requests: RequestTable) -> RequestTable:
    """The same requests with empty row sides, so that collating them costs nothing for rows."""
    return replace(
        requests,
        row_start=np.zeros(len(requests) + 1, dtype=np.int64),
        item_R=requests.item_R[:0],
        label_R=requests.label_R[:0],
        source_R=requests.source_R[:0],
        weight_R=requests.weight_R[:0],
        cross_RW=requests.cross_RW[:0],
    )


def _never(user_P: Int64, ts_P: Int64, offer_P: Int64, item_P: Int64) -> Floats:
    raise AssertionError(f"a batch without random negatives looked up {len(item_P)} pairs")


def _chunks(index_B: Int64, size: int) -> Iterator[Int64]:
    index_B = np.asarray(index_B, dtype=np.int64)
    for at in range(0, len(index_B), size):
        yield index_B[at : at + size]


def _stack(parts: list[Retrieved], k: int) -> Retrieved:
    if not parts:
        return Retrieved(item_GJ=np.zeros((0, k), dtype=np.int64), score_GJ=np.zeros((0, k), dtype=np.float32))
    return Retrieved(item_GJ=np.concatenate([p.item_GJ[:, :k] for p in parts]), score_GJ=np.concatenate([p.score_GJ[:, :k] for p in parts]))
