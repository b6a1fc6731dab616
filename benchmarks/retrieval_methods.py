"""What ``benchmarks.retrieval`` compares: ways to answer the same requests on the same SIDs with the same beam.

Shape suffixes: ``G`` requests, ``Q`` kept prefixes, ``K`` codes, ``R`` rows, ``P`` nodes of a level, ``J`` items, ``D`` width.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from dig_models.retrieve.beam import Retrieved, beam_search, best_rows
from dig_models.retrieve.options import SearchOptions
from dig_models.retrieve.rerank import Retriever
from dig_models.retrieve.scorer import BLOCK, OPEN, Candidates
from dig_models.retrieve.trie import Int64, Trie
from dig_models.train.data import RequestTable

LIMIT = 100
DENSE_ROWS = 1 << 17
"""Rows that dense scoring takes at a time, so that it fits into memory."""


class Method(Protocol):
    """One way to answer."""

    def answer(self, index_B: Int64) -> Retrieved:
        """The best ``LIMIT`` items of some requests."""
        ...


class Factored:
    """The retriever of the project; ``u2t`` as in ``SearchOptions``, ``rerank`` items re-ranked."""

    def __init__(self, retriever: Retriever, requests: RequestTable, beam: int, u2t: str, rerank: int = 0) -> None:
        self.retriever, self.requests = retriever, requests
        self.options = SearchOptions(k=10 if rerank else LIMIT, beam=beam, rerank=rerank, u2t=cast(Any, u2t))

    def answer(self, index_B: Int64) -> Retrieved:
        """See ``Method``."""
        return self.retriever.search(self.requests, index_B, self.options)


class Dense:
    """(a) ``Dig.recall_logit`` of all K codes of each kept prefix, then a mask of the codes that exist, then ``topk``."""

    def __init__(self, retriever: Retriever, requests: RequestTable, beam: int) -> None:
        self.retriever, self.requests, self.beam = retriever, requests, beam
        self.codes = retriever.model.config.codes

    def answer(self, index_B: Int64) -> Retrieved:
        """See ``Method``."""
        size = max(DENSE_ROWS // (self.beam * self.codes), 1)
        parts = [self._some(index_B[at : at + size]) for at in range(0, len(index_B), size)]
        return Retrieved(item_GJ=np.concatenate([p.item_GJ for p in parts]), score_GJ=np.concatenate([p.score_GJ for p in parts]))

    @torch.no_grad()
    def _some(self, index_B: Int64) -> Retrieved:
        model, trie, codes = self.retriever.model, self.retriever.trie, self.codes
        users = self.retriever.users(self.requests, index_B)
        semantic_LKD = model.quantizer.semantic.weight.view(-1, codes, model.config.dim)
        requests = len(index_B)
        prefix_GQD, node_GQ = torch.zeros(requests, 1, model.config.dim), np.zeros((requests, 1), dtype=np.int64)
        for level in range(trie.levels):
            child_GX = _child_table(trie, level, node_GQ, codes)
            prefix_GXD = (prefix_GQD.unsqueeze(2) + semantic_LKD[level]).flatten(1, 2)
            request_R = torch.arange(requests).repeat_interleave(prefix_GXD.shape[1])
            prefix_RD = prefix_GXD.flatten(0, 1)
            u2t_RC = model.predict_u2t(users, request_R, prefix_RD)
            logit_R = model.recall_logit(users, request_R, prefix_RD, u2t_RC, torch.full_like(request_R, OPEN))
            score_GX = F.logsigmoid(logit_R).view(requests, -1).masked_fill(torch.from_numpy(child_GX < 0), -torch.inf)
            keep = min(self.beam if level + 1 < trie.levels else LIMIT, score_GX.shape[1])
            best_GQ = score_GX.topk(keep, dim=1, sorted=level + 1 == trie.levels)
            at_GQ = best_GQ.indices if level + 1 == trie.levels else best_GQ.indices.sort(1).values
            node_GQ = np.take_along_axis(child_GX, at_GQ.numpy(), axis=1)
            prefix_GQD = prefix_GXD.gather(1, at_GQ.unsqueeze(2).expand(-1, -1, prefix_GXD.shape[2]))
        return _postings(trie, node_GQ, best_GQ.values.numpy())


class DictTrie:
    """(b) The same search over nested Python dictionaries; rows are scored by the project's scorer, so only the trie differs."""

    def __init__(self, retriever: Retriever, requests: RequestTable, beam: int) -> None:
        self.retriever, self.requests, self.beam = retriever, requests, beam
        trie = retriever.trie
        below: list[Any] = [None] * trie.nodes(trie.levels - 1)
        for level in range(trie.levels - 1, 0, -1):
            token = trie.token[level].tolist()
            child = trie.child[level - 1].tolist()
            below = [{token[c]: (c, below[c]) for c in range(a, b)} for a, b in pairwise(child)]
        self.root = {t: (p, below[p]) for p, t in enumerate(trie.token[0].tolist())}

    @torch.no_grad()
    def answer(self, index_B: Int64) -> Retrieved:
        """See ``Method``."""
        retriever, scorer, trie = self.retriever, self.retriever.scorer, self.retriever.trie
        users = scorer.users(retriever.users(self.requests, index_B), mlp=True)
        kept: list[list[Any]] = [[self.root] for _ in index_B]
        feature_QF = users.root_GF
        for level in range(trie.levels):
            owner, token, node, below, bound, parent = [], [], [], [], [0], 0
            for prefixes in kept:
                for prefix in prefixes:
                    for code, (at, deeper) in prefix.items():
                        owner.append(parent)
                        token.append(code)
                        node.append(at)
                        below.append(deeper)
                    parent += 1
                bound.append(len(node))
            rows = Candidates(
                bound_G=np.array(bound, dtype=np.int64),
                node_R=np.array(node, dtype=np.int64),
                token_R=np.array(token, dtype=np.int32),
                owner_R=np.array(owner, dtype=np.int64),
                feature_QF=feature_QF,
            )
            score_R = F.logsigmoid(torch.from_numpy(scorer.logits(level, users, rows, None))).numpy()
            if level + 1 < trie.levels:
                best = [best_rows(score_R[a:b], self.beam) + a for a, b in pairwise(bound)]
                kept = [[below[i] for i in some.tolist()] for some in best]
                feature_QF = scorer.descend(level, rows, np.concatenate(best))
        return _best_leaves(trie, rows.node_R, score_R, bound)


class Exhaustive:
    """(c) Every SID of the catalogue scored, by the project's scorer."""

    def __init__(self, retriever: Retriever, requests: RequestTable) -> None:
        self.retriever, self.requests = retriever, requests

    @torch.no_grad()
    def answer(self, index_B: Int64) -> Retrieved:
        """See ``Method``."""
        retriever, scorer, trie = self.retriever, self.retriever.scorer, self.retriever.trie
        parts = []
        for b in index_B:
            users = scorer.users(retriever.users(self.requests, np.array([b])), mlp=True)
            feature_QF, owner_R = users.root_GF, np.zeros(trie.nodes(0), dtype=np.int64)
            for level in range(trie.levels):
                nodes = trie.nodes(level)
                rows = Candidates(
                    bound_G=np.array([0, nodes], dtype=np.int64),
                    node_R=np.arange(nodes, dtype=np.int64),
                    token_R=np.array(trie.token[level]),
                    owner_R=owner_R,
                    feature_QF=feature_QF,
                )
                if level + 1 < trie.levels:
                    feature_QF = scorer.descend(level, rows, rows.node_R)
                    owner_R = np.repeat(rows.node_R, np.diff(trie.child[level]))
            score_R = F.logsigmoid(torch.from_numpy(scorer.logits(trie.levels - 1, users, rows, None))).numpy()
            parts.append(_best_leaves(trie, rows.node_R, score_R, [0, len(score_R)]))
        return Retrieved(item_GJ=np.concatenate([p.item_GJ for p in parts]), score_GJ=np.concatenate([p.score_GJ for p in parts]))


class Floor:
    """(e) The matrix products of ``PrefixScorer`` alone, for as many rows as a search scores, on random arrays that are there before.

    No gathering, no exponentials, no masks, no trie, no user side, no sorting: what is left is the speed of the library's
    products at the shapes of the model. Rows by level and user are those of a real search.
    """

    def __init__(self, retriever: Retriever, requests: RequestTable, beam: int, index_B: Int64) -> None:
        model, scorer = retriever.model, retriever.scorer
        self.slots = retriever.spec.history_length + 1
        dim, rank, width = scorer.dim, scorer.rank, scorer.width
        self.heads, self.experts, self.layers = scorer.heads, scorer.experts, model.config.cross_layers
        size, each = scorer.experts * scorer.hidden, dim // scorer.heads
        self.segments = list(_segments_of(retriever, requests, beam, index_B))
        shapes = {
            "unit": (dim, dim),
            "down1": (width - 2 * dim, rank),
            "up": (rank, width),
            "down": (width, rank),
            "first": (width, size + scorer.experts),
        }
        shapes |= {"head": (dim, 1), "wide": (width - 2 * dim, 1), "u2t": (2 * dim, width - 3 * dim)}
        self.weight = {name: torch.randn(shape) for name, shape in shapes.items()}
        self.key, self.value = torch.randn(self.heads, each, self.slots), torch.randn(self.heads, self.slots, each + 1)
        self.second = torch.randn(self.experts, scorer.hidden, dim)
        outs = {
            "dim": dim,
            "x": width,
            "p": rank,
            "h": size + scorer.experts,
            "m": 2 * dim,
            "c": width - 3 * dim,
            "one": 1,
            "tail": width - 2 * dim,
        }
        self.held = {name: torch.randn(BLOCK, columns) for name, columns in outs.items()}
        self.score, self.read = torch.randn(self.heads * BLOCK * self.slots), torch.randn(self.heads * BLOCK * (each + 1))
        self.expert = torch.randn(self.experts * BLOCK * dim)

    @torch.no_grad()
    def run(self) -> int:
        """All products once; returns the rows."""
        for block in self.segments:
            n = sum(block)
            held = {name: array[:n] for name, array in self.held.items()}
            w = self.weight
            torch.mm(held["dim"], w["unit"], out=self.held["dim"][:n])
            query = held["dim"].view(n, self.heads, -1).transpose(0, 1)
            at = 0
            for rows in block:
                score = self.score[: self.heads * rows * self.slots].view(self.heads, rows, self.slots)
                torch.bmm(query[:, at : at + rows], self.key, out=score)
                read = self.read[: self.heads * rows * self.value.shape[2]].view(self.heads, rows, -1)
                torch.bmm(score, self.value, out=read)
                at += rows
            torch.mm(held["m"], w["u2t"], out=held["c"])
            torch.mm(held["tail"], w["down1"], out=held["p"])
            torch.mm(held["p"], w["up"], out=held["x"])
            for _ in range(self.layers - 1):
                torch.mm(held["x"], w["down"], out=held["p"])
                torch.mm(held["p"], w["up"], out=held["x"])
            torch.mm(held["x"], w["first"], out=held["h"])
            hidden = held["h"][:, : -self.experts].view(n, self.experts, -1).transpose(0, 1)
            out = self.expert[: self.experts * n * held["dim"].shape[1]].view(self.experts, n, -1)
            torch.bmm(hidden, self.second, out=out)
            _ = out.view(-1, held["dim"].shape[1]) @ w["head"]
            torch.mm(held["tail"], w["wide"], out=held["one"])
        return sum(sum(block) for block in self.segments)


def rows_by_level(retriever: Retriever, requests: RequestTable, beam: int, index_B: Int64) -> list[list[int]]:
    """Rows that a search scores, by level and request."""
    seen: list[list[int]] = []
    users = retriever.scorer.users(retriever.users(requests, index_B), mlp=True)

    def watch(level: int, rows: Candidates, score_R: NDArray[np.float32]) -> None:
        seen.append(np.diff(rows.bound_G).tolist())

    with torch.no_grad():
        beam_search(retriever.scorer, retriever.trie, users, beam=beam, limit=LIMIT, watch=watch)
    return seen


def _segments_of(retriever: Retriever, requests: RequestTable, beam: int, index_B: Int64) -> Iterator[list[int]]:
    """Rows of each request in each block that a search scores, in its chunks."""
    chunk = SearchOptions().chunk
    for at in range(0, len(index_B), chunk):
        for rows in rows_by_level(retriever, requests, beam, index_B[at : at + chunk]):
            block: list[int] = []
            for left in rows:
                while left:
                    taken = min(left, BLOCK - sum(block))
                    block.append(taken)
                    left -= taken
                    if sum(block) == BLOCK:
                        yield block
                        block = []
            if block:
                yield block


def _child_table(trie: Trie, level: int, node_GQ: Int64, codes: int) -> Int64:
    """Child of each kept prefix by code, ``(G, Q * K)``; -1 where the catalogue has none."""
    requests, kept = node_GQ.shape
    table = np.full((requests * kept, codes), -1, dtype=np.int64)
    if level == 0:
        table[:, np.asarray(trie.token[0])] = np.arange(trie.nodes(0))
    else:
        known = np.flatnonzero(node_GQ.ravel() >= 0)
        child, owner = trie.children(level - 1, node_GQ.ravel()[known])
        table[known[owner], trie.token[level][child]] = child
    return table.reshape(requests, kept * codes)


def _postings(trie: Trie, leaf_GQ: Int64, score_GQ: NDArray[np.float32]) -> Retrieved:
    """Items of leaves that are sorted by score; -1 where there is no leaf."""
    item_GJ = np.zeros((len(leaf_GQ), LIMIT), dtype=np.int64)
    score_GJ = np.full((len(leaf_GQ), LIMIT), -np.inf, dtype=np.float32)
    for g, (leaf_Q, score_Q) in enumerate(zip(leaf_GQ, score_GQ, strict=True)):
        real = leaf_Q >= 0
        item, owner = trie.postings(leaf_Q[real])
        count = min(len(item), LIMIT)
        item_GJ[g, :count], score_GJ[g, :count] = item[:count], score_Q[real][owner[:count]]
    return Retrieved(item_GJ=item_GJ, score_GJ=score_GJ)


def _best_leaves(trie: Trie, leaf_R: Int64, score_R: NDArray[np.float32], bound: list[int]) -> Retrieved:
    leaf_GQ = np.full((len(bound) - 1, LIMIT), -1, dtype=np.int64)
    score_GQ = np.full((len(bound) - 1, LIMIT), -np.inf, dtype=np.float32)
    for g, (a, b) in enumerate(pairwise(bound)):
        best = best_rows(score_R[a:b], LIMIT) + a
        best = best[np.argsort(-score_R[best], kind="stable")]
        leaf_GQ[g, : len(best)], score_GQ[g, : len(best)] = leaf_R[best], score_R[best]
    return _postings(trie, leaf_GQ, score_GQ)
