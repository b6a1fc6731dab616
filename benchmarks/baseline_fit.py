"""How the baselines of ``benchmarks.baselines`` learn: from the training days, the epoch chosen on the validation days.

Shape suffixes: ``B`` requests of a batch, ``R`` rows, ``H`` history, ``D`` width, ``N`` catalogue, ``K`` ranks, ``Q`` requests, ``P``
positives.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau

from benchmarks.baseline_models import Ranker, SasRec, TwoTower
from dig_models import losses
from dig_models.affinity import Affinity
from dig_models.batch import Batch
from dig_models.config import TrainConfig
from dig_models.crosses import CrossStore
from dig_models.dig import DOMAINS
from dig_models.evaluate import ranking
from dig_models.evaluate.retrieval import NONE
from dig_models.evaluate.scoring import exposed_rows
from dig_models.features import SOURCE_EXPOSED, FeatureSpec
from dig_models.items import ItemTable
from dig_models.nn.norm import commit_moments, members
from dig_models.retrieve.trie import Int64
from dig_models.train import optim
from dig_models.train.data import RequestTable, collate, pair_lookup, popular_chances

Floats = NDArray[np.float64]
NEGATIVES = 512
WARMUP = 50
"""Steps at most in which the rate of a patient training rises; never more than its first epoch has."""
DROP, DROP_AFTER = 0.3, 2
"""A patient training multiplies its rate by this after more than so many epochs without a gain."""
EVENTS = 60
"""Newest events of a history that SASRec reads."""


@dataclass(frozen=True, kw_only=True)
class Days:
    """What a baseline learns from; the item table is that of the model it is compared with.

    Attributes:
        epochs: of a ranker, all of them taken.
        affinity: the last cross, where the model reads it.
        cap: epochs of a retriever at most.
        patience: epochs without a gain after which a retriever is done.
    """

    spec: FeatureSpec
    items: ItemTable
    store: CrossStore
    fit: RequestTable
    validation: RequestTable
    train: TrainConfig
    keep_rate: float
    seed: int
    epochs: int
    cap: int = 40
    patience: int = 6
    affinity: Affinity | None = None

    @property
    def crosses(self) -> int:
        """Columns of the model crosses."""
        return self.spec.cross_width + (self.affinity is not None)

    @cached_property
    def chance_N(self) -> NDArray[np.float64]:
        """Chance of each item to be a popular negative."""
        return popular_chances(self.store, self.spec, int(self.fit.ts_B.min()))

    def batches(self, requests: RequestTable, index_B: Int64, size: int, *, negatives: int = 0, step: int = 0) -> Iterator[Batch]:
        """Batches of some requests in the given order."""
        for at in range(0, len(index_B), size):
            rng = np.random.default_rng([self.seed, step, at]) if negatives else None
            yield collate(
                requests,
                index_B[at : at + size],
                spec=self.spec,
                items=self.items,
                lookup=pair_lookup(self.store, self.spec),
                keep_rate=self.keep_rate,
                random_negatives=negatives,
                history_negatives=self.train.history_negatives,
                popular_negatives=self.train.popular_negatives,
                chance_N=self.chance_N,
                rng=rng,
                affinity=self.affinity,
            )

    def shuffled(self, epoch: int, of: Int64 | None = None) -> Int64:
        """Training requests (or some of them) in the order of an epoch."""
        among = np.arange(len(self.fit), dtype=np.int64) if of is None else of
        return np.random.default_rng([self.seed, epoch]).permutation(among)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """How a training went on the validation days.

    Attributes:
        figures: after each epoch, larger is better.
        cap: epochs that it could have had.
    """

    figures: tuple[float, ...]
    cap: int

    @property
    def chosen(self) -> int:
        """The epoch kept, from 1: the first with the best figure."""
        return int(np.nanargmax(self.figures)) + 1

    @property
    def last_won(self) -> bool:
        """Whether the last epoch allowed was the best: more of them might be better still."""
        return self.chosen == self.cap

    def row(self) -> dict[str, Any]:
        """For the file of the run."""
        return {"chosen": self.chosen, "taken": len(self.figures), "cap": self.cap, "last_won": self.last_won, "curve": list(self.figures)}


def best_epoch(
    model: nn.Module,
    days: Days,
    batches: Callable[[int], Iterator[Batch]],
    steps: int,
    loss: Callable[[Batch], Tensor],
    judge: Callable[[], float],
    *,
    patient: bool,
) -> Curve:
    """Train, and leave the model as it was after the epoch that the validation days like best.

    Args:
        model: its parameters move.
        days: rate, epochs.
        batches: of an epoch; ``steps`` of them.
        steps: batches of an epoch.
        loss: of a batch.
        judge: figure on the validation days, larger is better.
        patient: up to ``days.cap`` epochs, until ``days.patience`` of them bring no gain, with a rate that falls where gains stop; else
            ``days.epochs`` with half a cosine over all of them.

    Raises:
        ValueError: the validation days judge no epoch.
    """
    optimizer = optim.build(model, days.train)
    plateau = ReduceLROnPlateau(optimizer, mode="max", factor=DROP, patience=DROP_AFTER, threshold=0.0)
    best, kept, step, figures = -np.inf, copy.deepcopy(model.state_dict()), 0, list[float]()
    cap, warmup = days.cap if patient else days.epochs, min(WARMUP, steps)
    for epoch in range(cap):
        model.train()
        for batch in batches(epoch):
            if not patient:
                optim.set_lr(optimizer, step, steps * cap)
            elif step < warmup:
                for group in optimizer.param_groups:
                    group["lr"] = group["base_lr"] * (step + 1) / warmup
            optimizer.zero_grad()
            loss(batch).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), days.train.grad_clip)
            optimizer.step()
            step += 1
        model.eval()
        figures.append(judge())
        if figures[-1] > best:
            best, kept = figures[-1], copy.deepcopy(model.state_dict())
        if not np.isfinite(best):
            raise ValueError(
                f"validation after epoch {epoch + 1}: {figures[-1]} found, a figure expected; the days need rows of both labels"
            )
        if patient:
            plateau.step(figures[-1])
            if epoch + 1 - (int(np.nanargmax(figures)) + 1) >= days.patience:
                break
    model.load_state_dict(kept)
    model.eval()
    return Curve(figures=tuple(figures), cap=cap)


# ---- rankers


def ranker(kind: Literal["din", "dcn"], days: Days, test: RequestTable) -> tuple[Floats, Curve]:
    """Log-odds of the exposed rows of ``test`` by DIN or DCNv2, trained on the batches that DIG's ranking path sees; and how it went."""
    torch.manual_seed(days.seed)
    model = Ranker(kind, days.spec, days.items, days.crosses)
    size, negatives = days.train.requests_per_batch, days.train.random_negatives

    def loss(batch: Batch) -> Tensor:
        logit_R = model(batch)
        commit_moments([model.norm])
        return losses.click_loss(logit_R, batch.offset_R, batch.label_R, members(batch.domain_R, DOMAINS))

    def judge() -> float:
        rows = exposed_rows(days.validation)
        return ranking.auc(rank_by(model, days, days.validation), rows.label_R, rows.weight_R)

    steps = -(-len(days.fit) // size)

    def batches(epoch: int) -> Iterator[Batch]:
        return days.batches(days.fit, days.shuffled(epoch), size, negatives=negatives, step=epoch)

    curve = best_epoch(model, days, batches, steps, loss, judge, patient=False)
    return rank_by(model, days, test), curve


@torch.no_grad()
def rank_by(model: Ranker, days: Days, requests: RequestTable) -> Floats:
    """Log-odds of the exposed rows, in the order of ``exposed_rows``."""
    batches = days.batches(requests, np.arange(len(requests), dtype=np.int64), 256)
    return np.concatenate([np.zeros(0), *(model(b)[b.source_R == SOURCE_EXPOSED].double().numpy() for b in batches)])


def logistic(x_RX: sparse.csr_array, y_R: Floats, test_RX: sparse.csr_array, seed: int) -> Floats:
    """Log-odds by logistic regression.

    Args:
        x_RX: columns of the training rows, as ``benchmarks.tabular.linear`` gives them.
        y_R: labels.
        test_RX: columns of the rows to score.
        seed: of the solver.
    """
    model = LogisticRegression(C=0.1, max_iter=200, random_state=seed).fit(x_RX, y_R)
    return np.asarray(model.decision_function(test_RX), dtype=np.float64)


# ---- retrievers


def positives(requests: RequestTable, index_B: Int64) -> tuple[Int64, Int64]:
    """Bought items of requests: position in ``index_B`` and item row, ``(P,), (P,)``."""
    request_R, at_R = requests.rows_of(index_B)
    bought = requests.label_R[at_R] > 0
    return request_R[bought], requests.item_R[at_R[bought]]


def with_positives(requests: RequestTable) -> Int64:
    """Requests with a known item bought."""
    return np.unique(positives(requests, np.arange(len(requests), dtype=np.int64))[0])


def frequency(days: Days) -> Tensor:
    """Share of each item row among the positives of the training days, smoothed by one, ``(N,)``."""
    _, item_P = positives(days.fit, np.arange(len(days.fit), dtype=np.int64))
    count_N = np.bincount(item_P, minlength=len(days.items)) + 1.0
    return torch.from_numpy((count_N / count_N.sum()).astype(np.float32))


class TowerRetriever:
    """Two towers with in-batch softmax, corrected by the log frequency of the items (Yi et al., 2019), searched by FAISS.

    Attributes:
        curve: how its training went: recall@10 on validation requests.
    """

    def __init__(self, days: Days) -> None:
        torch.manual_seed(days.seed)
        self.days, self.model = days, TwoTower(days.spec, days.items)
        log_q_N, useful = frequency(days).log(), with_positives(days.fit)
        rng, bought_fit = np.random.default_rng([days.seed, 9]), bought_alone(days.fit)
        size = 8 * days.train.requests_per_batch

        def batches(epoch: int) -> Iterator[Batch]:
            return days.batches(bought_fit, days.shuffled(epoch, useful), size)

        def loss(batch: Batch) -> Tensor:
            bought = torch.nonzero(batch.label_R > 0).squeeze(1).numpy()
            taken = torch.from_numpy(rng.permutation(bought)[: 8 * size])
            request_P, item_P = batch.request_R[taken], batch.item_R[taken]
            logit_PP = self.model.users(batch)[request_P] @ self.model.items(item_P).T - log_q_N[item_P]
            mine = (request_P.unsqueeze(1) == request_P) | (item_P.unsqueeze(1) == item_P)
            mine.fill_diagonal_(False)  # other purchases of the request are no negatives of it
            return F.cross_entropy(logit_PP.masked_fill(mine, -torch.inf), torch.arange(len(item_P)))

        steps = -(-len(useful) // size)
        self.curve = best_epoch(self.model, days, batches, steps, loss, lambda: validation_recall(self, days), patient=True)

    @torch.no_grad()
    def lists(self, requests: RequestTable, index_Q: Int64, excluded: Sequence[Int64], k: int) -> Int64:
        """The best ``k`` items of each request without the excluded ones, ``(Q, K)``."""
        import faiss

        item_ND = self.model.items(torch.arange(1, len(self.days.items))).numpy()
        index = faiss.IndexFlatIP(item_ND.shape[1])
        index.add(np.ascontiguousarray(item_ND))
        width = min(k + max((len(e) for e in excluded), default=0), len(item_ND))
        parts = [self.model.users(b).numpy() for b in self.days.batches(_bare(requests), index_Q, 256)]
        found_QX = index.search(np.ascontiguousarray(np.concatenate(parts)), width)[1] + 1
        return np.stack([_first(row, gone, k) for row, gone in zip(found_QX, excluded, strict=True)])


class SasRecRetriever:
    """SASRec with a softmax over sampled negatives at every place of the sequence; what comes after its end is an item of the request.

    Attributes:
        curve: how its training went: recall@10 on validation requests.
    """

    def __init__(self, days: Days) -> None:
        torch.manual_seed(days.seed)
        self.days, self.model = days, SasRec(days.spec, days.items)
        useful, size = with_positives(days.fit), 4 * days.train.requests_per_batch
        generator = torch.Generator().manual_seed(days.seed)
        rng, bought_fit = np.random.default_rng([days.seed, 8]), bought_alone(days.fit)

        def batches(epoch: int) -> Iterator[Batch]:
            return days.batches(bought_fit, days.shuffled(epoch, useful), size)

        def loss(batch: Batch) -> Tensor:
            history_BH = oldest_first(batch.history_BH)
            target_B1 = torch.from_numpy(_one_each(batch, rng)).unsqueeze(1)
            next_BH = torch.cat([history_BH, target_B1], dim=1)  # place h is to be followed by event h
            real = next_BH > 0
            state_PD, target_P = self.model.states(history_BH)[real], next_BH[real]
            drawn_X = torch.randint(1, len(days.items), (NEGATIVES,), generator=generator)
            own_P1 = (state_PD * self.model.item(target_P)).sum(1, keepdim=True)
            other_PX = state_PD @ self.model.item(drawn_X).T
            other_PX = other_PX.masked_fill(target_P.unsqueeze(1) == drawn_X, -torch.inf)
            # Uniform draws stand for the whole catalogue: each counts for N / NEGATIVES items.
            other_PX = other_PX + float(np.log(len(days.items) / NEGATIVES))
            return F.cross_entropy(torch.cat([own_P1, other_PX], dim=1), torch.zeros(len(target_P), dtype=torch.int64))

        steps = -(-len(useful) // size)
        self.curve = best_epoch(self.model, days, batches, steps, loss, lambda: validation_recall(self, days), patient=True)

    @torch.no_grad()
    def lists(self, requests: RequestTable, index_Q: Int64, excluded: Sequence[Int64], k: int) -> Int64:
        """The best ``k`` items of each request without the excluded ones, ``(Q, K)``."""
        out, at = np.full((len(index_Q), k), NONE, dtype=np.int64), 0
        for batch in self.days.batches(_bare(requests), index_Q, 64):
            score_BN = self.model.states(oldest_first(batch.history_BH))[:, -1] @ self.model.item.weight.T
            for score_N in score_BN.numpy():
                out[at] = best(score_N, excluded[at], k)
                at += 1
        return out


Retrieving = TowerRetriever | SasRecRetriever


def validation_recall(retriever: Retrieving, days: Days, most: int = 500) -> float:
    """Mean recall@10 over all items on validation requests, the first ones with a purchase in a seeded order."""
    index_Q = np.sort(np.random.default_rng([days.seed, 7]).permutation(with_positives(days.validation))[:most])
    list_QK = retriever.lists(days.validation, index_Q, [np.zeros(0, np.int64)] * len(index_Q), 10)
    request_P, item_P = positives(days.validation, index_Q)
    wanted = [set(item_P[request_P == q].tolist()) for q in range(len(index_Q))]
    return float(np.mean([len(w & set(row.tolist())) / len(w) for w, row in zip(wanted, list_QK, strict=True)]))


def oldest_first(history_BH: Tensor) -> Tensor:
    """Histories, newest first, as sequences of the newest ``EVENTS``: oldest first, padding and unknown items (0) in front."""
    history_BH = history_BH[:, :EVENTS].flip(1)
    return history_BH.gather(1, (history_BH > 0).long().argsort(dim=1, stable=True))


def best(score_N: NDArray[np.float32], excluded: Int64, k: int) -> Int64:
    """The ``k`` best item rows without row 0 and the excluded ones, padded with -1."""
    score_N = score_N.copy()
    score_N[0] = -np.inf
    score_N[excluded] = -np.inf
    order = np.argsort(-score_N, kind="stable")[:k]
    out = np.where(np.isfinite(score_N[order]), order, NONE)
    return np.pad(out, (0, k - len(out)), constant_values=NONE).astype(np.int64)


def _first(row_X: Int64, excluded: Int64, k: int) -> Int64:
    kept = row_X[~np.isin(row_X, excluded)][:k]
    return np.pad(kept, (0, k - len(kept)), constant_values=NONE).astype(np.int64)


def _one_each(batch: Batch, rng: np.random.Generator) -> Int64:
    """A purchase of each request, drawn evenly, ``(B,)``; 0 where there is none."""
    bought = np.flatnonzero(batch.label_R.numpy() > 0)
    mixed = rng.permutation(bought)
    out = np.zeros(batch.requests, dtype=np.int64)
    out[batch.request_R.numpy()[mixed]] = batch.item_R.numpy()[mixed]
    return out


def bought_alone(requests: RequestTable) -> RequestTable:
    """The requests with the rows of bought items alone: a retriever learns from no other."""
    return _with_rows(requests, requests.label_R > 0)


def _bare(requests: RequestTable) -> RequestTable:
    """The requests without their rows: a list is made from the user side alone."""
    return _with_rows(requests, np.zeros(len(requests.item_R), dtype=np.bool_))


def _with_rows(requests: RequestTable, kept_R: NDArray[np.bool_]) -> RequestTable:
    return replace(
        requests,
        row_start=np.concatenate([[0], np.cumsum(kept_R)])[requests.row_start].astype(np.int64),
        item_R=requests.item_R[kept_R],
        label_R=requests.label_R[kept_R],
        source_R=requests.source_R[kept_R],
        weight_R=requests.weight_R[kept_R],
        cross_RW=requests.cross_RW[kept_R],
    )
