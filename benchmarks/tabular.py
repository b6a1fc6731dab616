"""What rankers without a network read of an exposed row: all fields and crosses that DIG's ranking path has, as columns.

Logistic regression takes each bucket of each field as a column of its own, of multi-valued and text fields each that the row has. Trees
take fields of few buckets as categories. Of a field with more buckets than a tree can split, or with several values, the number of a
bucket says nothing: it is given as the share of bought rows among the training rows with the bucket, smoothed towards that of all
rows, and as the share of rows that have it. Both count the training rows of whole days (UTC) before the row's own, so no label of a
row's day, of a validation or of an evaluation day is in any column. Left out of both is the order of the history; how often and how
lately the user met an item and its likes is among the crosses.

Shape suffixes: ``R`` exposed rows, ``W`` values of a field, ``N`` catalogue, ``U`` days with training rows, ``V`` buckets, ``X`` columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.preprocessing import StandardScaler

from dig_models.affinity import Affinity, beside
from dig_models.evaluate.scoring import exposed_rows
from dig_models.features import SECONDS_PER_DAY, SOURCE_EXPOSED, FeatureSpec, FieldSpec
from dig_models.items import ItemTable
from dig_models.train.data import RequestTable, histories

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
CATEGORIES = 255
"""Buckets at most of a column that trees take as a category."""
SMOOTHING = 20.0
"""Rows of the average that a bucket's share of bought rows starts with."""
LEFT_OUT = "the order of the history; its counts and recencies are among the crosses"


def buckets(spec: FeatureSpec, items: ItemTable, requests: RequestTable) -> Iterator[tuple[FieldSpec, Ints]]:
    """Every field of buckets with its values ``(R, W)`` in the exposed rows, 0 where one is missing: item, user, then context fields."""
    request_R, at_R = _exposed(requests)
    for field in spec.item_fields:
        if not field.is_number:
            yield field, np.asarray(items.fields[field.name]).reshape(len(items), -1)[requests.item_R[at_R]].astype(np.int64)
    for at, field in enumerate((*spec.user_fields, *spec.context_fields)):
        yield field, requests.user_BF[request_R, at][:, None]


def crosses(spec: FeatureSpec, requests: RequestTable, affinity: Affinity | None) -> Floats:
    """Model crosses of the exposed rows, ``(R, C)``, with the affinity as the last one where there is one."""
    request_R, at_R = _exposed(requests)
    cross_RC = spec.transform(requests.cross_RW[at_R])
    if affinity is None:
        return cross_RC
    history_BH, _ = histories(requests, np.arange(len(requests), dtype=np.int64), spec.history_length)
    return beside(cross_RC, affinity.pairs(history_BH, request_R, requests.item_R[at_R]))


def numbers(spec: FeatureSpec, items: ItemTable, requests: RequestTable, affinity: Affinity | None = None) -> Floats:
    """Model crosses, with the affinity of the model compared with if it reads one, and number fields of the items, ``(R, X)``."""
    _, at_R = _exposed(requests)
    parts = [crosses(spec, requests, affinity), *(number[requests.item_R[at_R], None] for number in items.numbers.values())]
    return np.concatenate([part.astype(np.float32) for part in parts], axis=1)


def _exposed(requests: RequestTable) -> tuple[Ints, Ints]:
    request_R, at_R = requests.rows_of(np.arange(len(requests), dtype=np.int64))
    exposed = requests.source_R[at_R] == SOURCE_EXPOSED
    return request_R[exposed], at_R[exposed]


def linear(
    spec: FeatureSpec, items: ItemTable, fit: RequestTable, test: RequestTable, affinity: Affinity | None = None
) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Columns of logistic regression for training rows and for those to score: numbers standardised by the former, buckets multi-hot."""
    scaler = StandardScaler().fit(numbers(spec, items, fit, affinity))
    out = []
    for requests in (fit, test):
        scaled = sparse.csr_array(scaler.transform(numbers(spec, items, requests, affinity)))
        out.append(sparse.csr_array(sparse.hstack([scaled, *(_multi_hot(*of) for of in buckets(spec, items, requests))])))
    return out[0], out[1]


def _multi_hot(field: FieldSpec, bucket_RW: Ints) -> sparse.csr_array:
    """A column for each bucket, ``(R, V)``; of a missing value none."""
    row, at = np.nonzero(bucket_RW)
    found = sparse.csr_array((np.ones(len(row), np.float32), (row, bucket_RW[row, at])), shape=(len(bucket_RW), field.buckets))
    found.data[:] = 1.0  # what a field says twice counts once
    return found


@dataclass(frozen=True)
class _Seen:
    """Training rows of a field, counted up to each day: ``count_UV[u]`` are those of days before the ``u``-th."""

    count_UV: NDArray[np.float32]
    bought_UV: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TreeColumns:
    """Columns of gradient-boosted trees.

    Attributes:
        day_U: days with training rows, ascending, days since 1970.
        seen: of each field that is read as shares of earlier days, by its place among the fields of ``buckets``.
        rows_U, bought_U: training rows, and bought ones, of days before each; one more entry than ``day_U``.
        categorical: columns that are categories.
        affinity: of the model compared with, if it reads one.
    """

    spec: FeatureSpec
    items: ItemTable
    day_U: Ints
    seen: dict[int, _Seen]
    rows_U: NDArray[np.float64]
    bought_U: NDArray[np.float64]
    categorical: list[int]
    affinity: Affinity | None = None

    @classmethod
    def fit(
        cls, spec: FeatureSpec, items: ItemTable, requests: RequestTable, affinity: Affinity | None = None, *, shares: bool = True
    ) -> TreeColumns:
        """Count the exposed rows of training requests; without ``shares`` a field that is not a category has no column."""
        rows = exposed_rows(requests)
        day_U, at_R = np.unique(requests.ts_B[rows.request_R] // SECONDS_PER_DAY, return_inverse=True)
        seen, categorical, width = {}, [], spec.cross_width + (affinity is not None) + len(items.numbers)
        for place, (field, bucket_RW) in enumerate(buckets(spec, items, requests)):
            if _is_category(field, bucket_RW):
                categorical.append(width)
                width += 1
            elif shares:
                seen[place] = _Seen(*(_up_to(at_R, bucket_RW, weight_R, len(day_U), field.buckets) for weight_R in (None, rows.label_R)))
                width += 2
        totals = [np.concatenate([[0.0], np.cumsum(np.bincount(at_R, weights=w, minlength=len(day_U)))]) for w in (None, rows.label_R)]
        sums = {"rows_U": totals[0], "bought_U": totals[1]}
        return cls(spec=spec, items=items, day_U=day_U, seen=seen, **sums, categorical=categorical, affinity=affinity)

    def of(self, requests: RequestTable) -> Floats:
        """Columns of the exposed rows of any requests, ``(R, X)``; NaN where no training day is before the row, or a row has no value."""
        request_R, _ = _exposed(requests)
        at_R = np.searchsorted(self.day_U, requests.ts_B[request_R] // SECONDS_PER_DAY)
        parts = [numbers(self.spec, self.items, requests, self.affinity)]
        for place, (field, bucket_RW) in enumerate(buckets(self.spec, self.items, requests)):
            if place in self.seen:
                parts.append(self._encoded(self.seen[place], at_R, bucket_RW))
            elif _is_category(field, bucket_RW):
                parts.append(bucket_RW.astype(np.float32))
        return np.concatenate(parts, axis=1)

    def _encoded(self, seen: _Seen, at_R: Ints, bucket_RW: Ints) -> Floats:
        """Smoothed share of bought rows, and share of rows, each the mean over the values of a row, ``(R, 2)``."""
        at_R1 = at_R[:, None]
        count_RW, bought_RW = seen.count_UV[at_R1, bucket_RW], seen.bought_UV[at_R1, bucket_RW]
        rows_U = np.where(self.rows_U > 0, self.rows_U, np.nan)
        prior_R1 = (self.bought_U / rows_U)[at_R1]
        both = ((bought_RW + SMOOTHING * prior_R1) / (count_RW + SMOOTHING), count_RW / rows_U[at_R1])
        # A field of one value has a bucket for "missing"; of several, empty places say nothing.
        there_RW = (bucket_RW > 0) | (bucket_RW.shape[1] == 1)
        size_R = np.where(there_RW.any(axis=1), there_RW.sum(axis=1), np.nan)
        return np.stack([np.where(there_RW, of, 0.0).sum(axis=1) / size_R for of in both], axis=1).astype(np.float32)


def _is_category(field: FieldSpec, bucket_RW: NDArray[Any]) -> bool:
    return field.kind == "categorical" and field.buckets <= CATEGORIES and bucket_RW.shape[1] == 1


def _up_to(at_R: Ints, bucket_RW: Ints, weight_R: NDArray[np.float64] | None, days: int, size: int) -> NDArray[np.float32]:
    """Sums over rows of days before each, ``(U + 1, V)``."""
    cell_RW = at_R[:, None] * size + bucket_RW
    weight = None if weight_R is None else np.repeat(weight_R, bucket_RW.shape[1])
    day_UV = np.bincount(cell_RW.ravel(), weights=weight, minlength=days * size).reshape(days, size)
    return np.concatenate([np.zeros((1, size)), np.cumsum(day_UV, axis=0)]).astype(np.float32)
