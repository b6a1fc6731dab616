"""Scores of stored rows by both paths of a model: ranking, and retrieval at the deepest level.

Shape suffixes: ``B`` requests, ``R`` exposed rows whose item is in the catalogue, ``P`` pairs, ``N`` catalogue rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from dig_models.features import SOURCE_EXPOSED
from dig_models.items import ItemTable
from dig_models.retrieve.rerank import Retriever
from dig_models.train.data import RequestTable, collate

if TYPE_CHECKING:
    from dig_models.dig import Dig

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
EXPOSED = 0
"""Domain of ``Dig.rank_logit`` and ``recall_logit``: a promoted exposure."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What the scored rows are; the same for every model that shares the item table.

    Attributes:
        request_R: position in the request table.
        user_R: user hash.
        label_R: 1 = bought.
        weight_R: 1 / keep rate.
    """

    request_R: Ints
    user_R: Ints
    label_R: Floats
    weight_R: Floats


@dataclass(frozen=True, kw_only=True)
class Scores:
    """True log-odds of each row.

    Attributes:
        rank_R: ranking path.
        exact_R: retrieval path at the full SID, u2t = exact mean of the crosses over the items that share it.
        mlp_R: the same with u2t from ``MLP_u2t``.
        none_R: with the same u2t for every SID, its mean in training; empty if that was not asked for.
    """

    rank_R: Floats
    exact_R: Floats
    mlp_R: Floats
    none_R: Floats


def exposed_rows(requests: RequestTable) -> Rows:
    """The exposed rows whose item is in the catalogue, in the order of ``score_rows``."""
    request_R, at_R = requests.rows_of(np.arange(len(requests), dtype=np.int64))
    exposed = requests.source_R[at_R] == SOURCE_EXPOSED
    request_R, at_R = request_R[exposed], at_R[exposed]
    return Rows(
        request_R=request_R,
        user_R=requests.user_B[request_R],
        label_R=requests.label_R[at_R].astype(np.float64),
        weight_R=requests.weight_R[at_R].astype(np.float64),
    )


@torch.no_grad()
def rank_rows(model: Dig, requests: RequestTable, items: ItemTable, *, chunk: int = 256) -> Floats:
    """Log-odds of every exposed row by the ranking path alone; also for a model without semantic IDs.

    Args:
        model: in eval mode, its item table set to ``items``.
        requests: made with ``items``.
        items: the catalogue.
        chunk: requests at a time.
    """
    e_ND, parts = model.encode_catalogue(), [np.zeros(0)]
    for first in range(0, len(requests), chunk):
        index_B = np.arange(first, min(first + chunk, len(requests)), dtype=np.int64)
        batch = collate(requests, index_B, spec=model.spec, items=items, lookup=_no_lookup, keep_rate=1.0, affinity=model.affinity)
        exposed = torch.nonzero(batch.source_R == SOURCE_EXPOSED).squeeze(1)
        request_R, item_R = batch.request_R[exposed], batch.item_R[exposed]
        e_RD, domain_R = e_ND.index_select(0, item_R), torch.full_like(request_R, EXPOSED)
        logit_R = model.rank_logit(model.user_side(batch), request_R, e_RD, batch.cross_RC[exposed], domain_R)
        parts.append(logit_R.double().numpy())
    return np.concatenate(parts)


@torch.no_grad()
def score_rows(
    retriever: Retriever, requests: RequestTable, *, chunk: int = 256, ready: Callable[[int], None] | None = None, none: bool = False
) -> Scores:
    """Score every exposed row with both paths.

    Args:
        retriever: model, catalogue and cross look-up.
        requests: made with the same item table.
        chunk: requests at a time.
        ready: told after each chunk how many requests are done.
        none: also score without u2t, which only an ablation asks for.
    """
    leaf_N = _leaf_of_item(retriever)
    parts: list[tuple[Floats, ...]] = []
    for first in range(0, len(requests), chunk):
        index_B = np.arange(first, min(first + chunk, len(requests)), dtype=np.int64)
        parts.append(_score_chunk(retriever, requests, index_B, leaf_N, none))
        if ready:
            ready(int(index_B[-1]) + 1)
    empty = np.zeros(0)
    columns = [np.concatenate([empty, *column]) for column in zip(*parts, strict=True)] if parts else [empty] * 4
    return Scores(**dict(zip(("rank_R", "exact_R", "mlp_R", "none_R"), columns, strict=True)))


def _score_chunk(retriever: Retriever, requests: RequestTable, index_B: Ints, leaf_N: Ints, none: bool) -> tuple[Floats, ...]:
    model = retriever.model
    batch = collate(
        requests, index_B, spec=retriever.spec, items=retriever.items, lookup=_no_lookup, keep_rate=1.0, affinity=model.affinity
    )
    users = model.user_side(batch)
    exposed = torch.nonzero(batch.source_R == SOURCE_EXPOSED).squeeze(1)
    request_R, item_R = batch.request_R[exposed], batch.item_R[exposed]
    domain_R = torch.full_like(request_R, EXPOSED)
    e_RD = retriever.embedding_ND.index_select(0, item_R)
    rank_R = model.rank_logit(users, request_R, e_RD, batch.cross_RC[exposed], domain_R)
    leaf_R = leaf_N[item_R.numpy()]
    prefix_RD = retriever.nodes[-1].index_select(0, torch.from_numpy(leaf_R))
    exact_RC = torch.from_numpy(leaf_means(retriever, requests, index_B[request_R.numpy()], leaf_R))
    mlp_RC = model.predict_u2t(users, request_R, prefix_RD)
    usual_RC = model.norm_u2t.mean_SC[EXPOSED].expand_as(mlp_RC)
    recall = [
        model.recall_logit(users, request_R, prefix_RD, u2t_RC, domain_R) for u2t_RC in (exact_RC, mlp_RC, usual_RC)[: 3 if none else 2]
    ]
    scored = [logit.double().numpy() for logit in (rank_R, *recall)]
    return tuple(scored if none else [*scored, np.zeros(0)])


def leaf_means(retriever: Retriever, requests: RequestTable, request_R: Ints, leaf_R: Ints) -> NDArray[np.float32]:
    """Mean model crosses of each row's request with the items under a leaf, ``(R, C)``: exact u2t at the full SID."""
    item_P, owner_P = retriever.trie.postings(leaf_R)
    cross_PC = retriever.pairs(requests, request_R[owner_P], item_P)
    if not len(leaf_R):
        return cross_PC
    count_R = np.bincount(owner_P, minlength=len(leaf_R))
    sum_RC = np.add.reduceat(cross_PC, np.cumsum(count_R) - count_R, axis=0)  # no leaf is empty
    return (sum_RC / count_R[:, None]).astype(np.float32)


def _leaf_of_item(retriever: Retriever) -> Ints:
    trie = retriever.trie
    leaf_N = np.zeros(len(retriever.items), dtype=np.int64)
    leaf_N[trie.order_M] = np.repeat(np.arange(trie.nodes(trie.levels - 1)), np.diff(trie.start[-1]))
    return leaf_N


def _no_lookup(user_P: Ints, ts_P: Ints, offer_P: Ints, item_P: Ints) -> NDArray[np.float32]:
    raise AssertionError(f"a batch without random negatives looked up {len(item_P)} pairs")
