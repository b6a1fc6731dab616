"""Retrieve and re-rank: beam search over prefixes, then the ranking path with real crosses on what was retrieved.

One ``Retriever`` holds what depends on model and catalogue alone (node embeddings, item embeddings, averaging weights), so
that a request costs its user side, one cross look-up of the catalogue and the scored prefixes. Evaluation and serving share it.

Shape suffixes: ``G`` requests at a time, ``B`` requests asked for, ``N`` catalogue rows, ``J`` items of a request, ``P`` pairs,
``R`` rows, ``D`` embedding width, ``C`` model crosses, ``L`` levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from dig_models.features import FeatureSpec
from dig_models.items import ItemTable
from dig_models.retrieve.beam import OPEN, PrefixCrosses, Retrieved, beam_search, node_embeddings, top_items
from dig_models.retrieve.prefix_means import PrefixMeans
from dig_models.retrieve.trie import Int64, Trie
from dig_models.train.data import RequestTable, collate

if TYPE_CHECKING:
    from dig_models.dig import Dig
    from dig_models.nn.attention import UserSide

Floats = NDArray[np.float32]
Ready = Callable[[int], None]


class Crosses(Protocol):
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
    """A model on a catalogue, ready to answer requests.

    Attributes:
        model: in eval mode, its item table set to ``items``.
        nodes: prefix embeddings of the trie, per level ``(P, D)``.
        embedding_ND: item embeddings ``e_v``.
    """

    model: Dig
    spec: FeatureSpec
    items: ItemTable
    trie: Trie
    store: Crosses
    nodes: list[Tensor]
    embedding_ND: Tensor
    means: PrefixMeans

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
        with torch.no_grad():
            embedding_ND = model.encode_catalogue()
            if trie is None:
                trie = Trie.build(model.codes(embedding_ND).numpy() if codes_NL is None else codes_NL)
        return cls(
            model=model,
            spec=spec,
            items=items,
            trie=trie,
            store=store,
            nodes=node_embeddings(model, trie) if nodes is None else nodes,
            embedding_ND=embedding_ND,
            means=PrefixMeans(trie),
        )

    def retrieve(
        self,
        requests: RequestTable,
        index_B: Int64,
        *,
        k: int,
        beam: int,
        rerank: int,
        u2t: Literal["mlp", "exact"] = "exact",
        path_score: Literal["last", "sum_log"] = "last",
        exclude_bought: bool = False,
        allowed_N: NDArray[np.bool_] | None = None,
        chunk: int = 4,
        ready: Ready | None = None,
    ) -> Retrieved:
        """The best ``k`` items of each request over the whole catalogue.

        Args:
            requests: the table to take requests from (``examples`` or ``user_state``).
            index_B: positions in it.
            k: items returned a request.
            beam: prefixes kept at each level.
            rerank: retrieved items (at least ``k``) scored again by the ranking path with real crosses; 0 keeps the path scores.
            u2t: prefix crosses: the exact mean over the prefix, or ``MLP_u2t``.
            path_score: see ``beam_search``.
            exclude_bought: leave out items that the user bought before the request.
            allowed_N: items that may be returned at all; row 0 is ignored.
            chunk: requests at a time.
            ready: told after each chunk how many requests are done.
        """
        found = []
        for part in _chunks(index_B, chunk):
            found.append(self._retrieve(requests, part, k, beam, rerank, u2t, path_score, exclude_bought, allowed_N))
            if ready:
                ready(min(len(found) * chunk, len(index_B)))
        return _stack(found, k)

    @torch.no_grad()
    def _retrieve(
        self,
        requests: RequestTable,
        part: Int64,
        k: int,
        beam: int,
        rerank: int,
        u2t: Literal["mlp", "exact"],
        path_score: Literal["last", "sum_log"],
        exclude_bought: bool,
        allowed_N: NDArray[np.bool_] | None,
    ) -> Retrieved:
        users = self.users(requests, part)
        cross_GNC = [self.catalogue(requests, int(b)) for b in part] if u2t == "exact" else None
        allowed_GN = self._allowed(requests, part, exclude_bought, allowed_N)
        found = beam_search(
            self.model,
            self.trie,
            self.nodes,
            users,
            len(part),
            beam=beam,
            limit=max(k, rerank),
            u2t=None if cross_GNC is None else self.exact(cross_GNC),
            path_score=path_score,
            allowed_GN=allowed_GN,
        )
        if not rerank:
            return found
        request_P, column_P = np.nonzero(found.item_GJ)
        item_P = found.item_GJ[request_P, column_P]
        cross_PC = self.pairs(requests, part[request_P], item_P) if cross_GNC is None else crosses_of(cross_GNC, request_P, item_P)
        score_P = self.scores(users, request_P.astype(np.int64), item_P, cross_PC)
        return top_items(request_P.astype(np.int64), item_P, score_P, len(part), k)

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
        return self.spec.transform(raw_NW)

    def pairs(self, requests: RequestTable, request_P: Int64, item_P: Int64) -> Floats:
        """Model crosses ``(P, C)`` of pairs of requests and item rows."""
        user_P, ts_P, offer_P = requests.user_B[request_P], requests.ts_B[request_P], requests.offer_B[request_P]
        return self.spec.transform(self.store.pairs(user_P, ts_P, offer_P, item_P))

    def exact(self, cross_GNC: Sequence[Floats]) -> PrefixCrosses:
        """Exact u2t of some requests from their model crosses with the catalogue, for ``beam_search``."""
        means = [self.means(cross_NC) for cross_NC in cross_GNC]

        def u2t(level: int, request_R: Int64, node_R: Int64) -> Floats:
            bounds = np.searchsorted(request_R, np.arange(len(means) + 1))  # rows ascend by request
            return np.concatenate([m[level][node_R[a:b]] for m, (a, b) in zip(means, pairwise(bounds), strict=True)])

        return u2t

    def _allowed(
        self, requests: RequestTable, part: Int64, exclude_bought: bool, allowed_N: NDArray[np.bool_] | None
    ) -> NDArray[np.bool_] | None:
        if not exclude_bought and allowed_N is None:
            return None
        base_N = np.ones(len(self.items), dtype=bool) if allowed_N is None else allowed_N
        allowed_GN = np.repeat(base_N[None, :], len(part), axis=0)
        if exclude_bought:
            for g, b in enumerate(part):
                allowed_GN[g, self.store.bought(int(requests.user_B[b]), int(requests.ts_B[b]))] = False
        return allowed_GN

    @torch.no_grad()
    def scores(self, users: UserSide, request_P: Int64, item_P: Int64, cross_PC: Floats) -> Floats:
        """Log-probabilities ``(P,)`` of (request, item) pairs by the ranking path; requests ascend, crosses are model crosses."""
        request = torch.from_numpy(request_P)
        e_PD = self.embedding_ND.index_select(0, torch.from_numpy(item_P))
        logit_P = self.model.rank_logit(users, request, e_PD, torch.from_numpy(cross_PC), torch.full_like(request, OPEN))
        scored: Floats = logsigmoid(logit_P).numpy()
        return scored


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
