"""Requests as arrays, and the batches that are made of them; the same code feeds training, evaluation and serving.

Sampling and calibration
------------------------
The network models true log-odds ``f``. A sample that keeps every positive and a share ``q`` of the negatives has odds
``p / ((1 - p) q)``, so its log-odds are ``f - log q`` (prior correction: King & Zeng, *Logistic Regression in Rare Events
Data*, 2001, eq. 7; the re-calibration of He et al., *Practical Lessons from Predicting Clicks on Ads at Facebook*, 2014,
section 6.3, is its inverse). ``Batch.offset_R`` is that ``-log q``: the loss sees ``sigmoid(f + offset)`` and ``f`` stays calibrated.

* exposed rows: ``q`` is the keep rate of exposed negatives, hence ``log(1 / keep_rate)``;
* open-catalogue rows: ``k`` of the ``N - 1`` catalogue items are drawn as negatives, ``q = k / (N - 1)``, hence ``log((N - 1) / k)``;
* open-catalogue rows of items in the request's history, positives too, where up to ``h`` of the ``M`` of them that were not bought are
  drawn as well: ``q = k / (N - 1) + min(h / M, 1)``, the copies of such an item to be expected. A sample may depend on request and
  item in any way that the offset knows;
* where ``m`` popular items are drawn as well, item ``v`` with chance ``p_v`` each time: ``q`` is ``m p_v`` larger (the correction of
  Bengio & Senecal, *Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic Language Model*, 2008).

What a user bought before is bought again far likelier than anything else, and is 1% of a catalogue: uniform draws hardly ever show which
of it is not bought, so the order of a user's own items, which lists are made of, is learned from history negatives. What many buy is
likewise a small part of a catalogue and most of what a list of new items is made of: popular negatives teach who does not buy it.

Shape suffixes: ``B`` requests, ``R`` rows (request x item), ``P`` pairs, ``H`` history, ``W`` raw crosses, ``C`` model crosses,
``N`` rows of the item table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from dig_models.affinity import Affinity, beside
from dig_models.batch import Batch
from dig_models.cross_files import find
from dig_models.features import SECONDS_PER_DAY, SOURCE_EXPOSED, SOURCE_ORGANIC, SOURCE_RANDOM, FeatureSpec
from dig_models.items import ItemTable
from dig_models.u2t import PairLookup

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
_REDRAWS = 64


class ExamplesError(ValueError):
    """Stored examples cannot be used as they are; the message names file or column, what was found and what to do."""


class PairSource(Protocol):
    """What looks up raw crosses of pairs that were never exposed (``dig_models.crosses.CrossStore``)."""

    def pairs(self, user_P: Ints, ts_P: Ints, offer_P: Ints, item_P: Ints) -> Floats:
        """Raw crosses ``(P, W)``."""
        ...


class PopularitySource(Protocol):
    """What knows how often items are bought (``dig_models.crosses.CrossStore``)."""

    def popularity(self, ts: int) -> Floats:
        """Raw popularity of every item row at a time, ``(N, windows)``."""
        ...


def pair_lookup(store: PairSource, spec: FeatureSpec) -> PairLookup:
    """Look-up of model crosses: the store's raw crosses, transformed as the spec says."""

    def lookup(user_P: Ints, ts_P: Ints, offer_P: Ints, item_P: Ints) -> Floats:
        return spec.transform(store.pairs(user_P, ts_P, offer_P, item_P))

    return lookup


def popular_chances(store: PopularitySource, spec: FeatureSpec, ts: int) -> NDArray[np.float64]:
    """Chance of each item to be a popular negative, ``(N,)``: its share of the events of the window nearest to 30 days.

    Args:
        store: popularity of the item rows, from closed days alone.
        spec: its windows, in days.
        ts: a time of the first example's day, seconds. What is bought later has no say: it would tell which items the examples are of.

    Returns:
        Chances that sum to 1, row 0 without any; all items alike if none was bought.
    """
    event_N = store.popularity(ts)[:, spec.windows.index(spec.month)].astype(np.float64)
    event_N[0] = 0.0
    if not event_N.any():
        event_N[1:] = 1.0
    return event_N / max(float(event_N.sum()), 1.0)


def request_columns(spec: FeatureSpec) -> list[str]:
    """Columns of ``examples`` that a model reads; the string ids are left on disk."""
    buckets = [f"u_{f.name}" for f in spec.user_fields] + [f"c_{f.name}" for f in spec.context_fields]
    return ["user_hash", "ts", "offer_hash", *buckets, "hist_item", "hist_ts", "item", "label", "source", "weight", "cross"]


@dataclass(frozen=True, kw_only=True)
class RequestTable:
    """Requests as flat arrays; the lists of request ``b`` lie at ``start[b]:start[b + 1]``.

    Attributes:
        user_B, ts_B, offer_B: int64 user hash, seconds, offer hash.
        user_BF: int64 buckets of ``spec.user_fields`` then ``spec.context_fields``.
        history_start, row_start: int64 ``(B + 1,)`` list bounds.
        history_item: int64 rows of the item table (0 = not in it), newest first; ``history_ts`` int64 seconds.
        item_R: int64 rows of the item table (0 = not in it); ``label_R`` int8, ``source_R`` int8, ``weight_R`` float32.
        cross_RW: float32 raw crosses. All row arrays are empty for ``user_state``.
    """

    user_B: Ints
    ts_B: Ints
    offer_B: Ints
    user_BF: Ints
    history_start: Ints
    history_item: Ints
    history_ts: Ints
    row_start: Ints
    item_R: Ints
    label_R: NDArray[np.int8]
    source_R: NDArray[np.int8]
    weight_R: Floats
    cross_RW: Floats

    def __len__(self) -> int:
        return len(self.user_B)

    @classmethod
    def from_arrow(cls, table: pa.Table, spec: FeatureSpec, items: ItemTable) -> RequestTable:
        """From rows of ``examples``, or of ``user_state`` (which has no row columns).

        List values are taken without a copy where Arrow's layout allows.

        Raises:
            ExamplesError: a needed column is missing, parallel lists differ in length, or the crosses do not fit the spec.
        """
        wanted = request_columns(spec) if "item" in table.column_names else request_columns(spec)[:-5]
        missing = [c for c in wanted if c not in table.column_names]
        if missing:
            raise ExamplesError(f"examples lack column(s) {', '.join(missing)}; the table has {', '.join(table.column_names)}")
        fields = [c for c in wanted if c.startswith(("u_", "c_"))]
        user_BF = np.stack([_flat(table, c, np.int64) for c in fields], axis=1) if fields else np.zeros((len(table), 0), np.int64)
        history_start, history_hash = _lists(table, "hist_item", np.int64)
        history_ts = _parallel(table, "hist_ts", np.int64, history_start)
        rows = _rows(table, spec, items) if "item" in table.column_names else _no_rows(len(table), spec)
        return cls(
            user_B=_flat(table, "user_hash", np.int64),
            ts_B=_flat(table, "ts", np.int64),
            offer_B=_flat(table, "offer_hash", np.int64),
            user_BF=user_BF,
            history_start=history_start,
            history_item=items.rows(history_hash),
            history_ts=history_ts,
            **rows,
        )

    def rows_of(self, index_B: Ints) -> tuple[Ints, Ints]:
        """Stored rows of some requests whose item is in the item table, in the order in which ``collate`` puts them.

        Returns:
            ``(request_R, at_R)``: position in ``index_B``, and position in the row arrays (``weight_R[at_R]`` and so on).
        """
        request_R, at_R = _ranges(self.row_start, np.asarray(index_B, dtype=np.int64))
        known = self.item_R[at_R] != 0
        return request_R[known], at_R[known]


def collate(
    requests: RequestTable,
    index_B: Ints,
    *,
    spec: FeatureSpec,
    items: ItemTable,
    lookup: PairLookup,
    keep_rate: float,
    random_negatives: int = 0,
    history_negatives: int = 0,
    popular_negatives: int = 0,
    chance_N: NDArray[np.float64] | None = None,
    rng: np.random.Generator | None = None,
    open_positives: Literal["all", "organic"] = "all",
    affinity: Affinity | None = None,
) -> Batch:
    """A batch of some requests, on the CPU.

    Rows whose item is not in ``items`` are dropped; what is left of the stored rows keeps its order within a request
    (``RequestTable.rows_of`` names it). With ``random_negatives`` each request also gets, after its stored rows, its exposed positives once
    more as open-catalogue rows (``open_positives="all"``, source organic) and that many random negatives, drawn uniformly
    from the catalogue except the request's own positives; then distinct items of its history, as far as it did not buy them again; then
    popular items, draws that hit a positive left out.
    Without random negatives the batch is the stored rows alone, and the offset of organic rows is 0.

    Args:
        requests: the table to take requests from.
        index_B: positions in it, any order, repeats allowed.
        spec: its transform turns raw crosses into the model's.
        items: the catalogue; ``requests`` was made with the same one.
        lookup: model crosses of pairs, used for drawn negatives only.
        keep_rate: share of exposed negatives that the examples kept.
        random_negatives: catalogue items drawn a request; 0 for evaluation.
        history_negatives: distinct items drawn from the history of a request, if it has so many; only beside random negatives.
        popular_negatives: items drawn a request, with replacement, with ``chance_N`` each (``popular_chances``); only beside random ones.
        chance_N: needed with ``popular_negatives``; float64.
        rng: needed with ``random_negatives``.
        open_positives: whether exposed positives are open-catalogue rows too (``all``) or only organic ones are.
        affinity: of ``items``, for a model that reads it: one more cross of every row, of the history that the batch carries.

    Raises:
        ValueError: ``random_negatives`` without ``rng``, or a catalogue without items to draw; ``popular_negatives`` without the chances
            of this catalogue.
    """
    index_B = np.asarray(index_B).astype(np.int64)
    request_R, at_R = requests.rows_of(index_B)
    label_R, source_R, item_R = requests.label_R[at_R], requests.source_R[at_R].astype(np.int64), requests.item_R[at_R]
    cross_RC = spec.transform(requests.cross_RW[at_R])
    history_BH, age_BH = histories(requests, index_B, spec.history_length)
    open_R = np.zeros(len(item_R), dtype=np.float64)
    if random_negatives:
        if rng is None or len(items) < 2:
            raise ValueError(f"random negatives need rng and items to draw from; rng is {rng}, the catalogue has {len(items) - 1} item(s)")
        positive = label_R > 0
        again = np.flatnonzero(positive & (source_R == SOURCE_EXPOSED)) if open_positives == "all" else np.zeros(0, np.int64)
        taken = np.unique(request_R[positive] * len(items) + item_R[positive])
        met = _met(history_BH, len(items))
        request_M, item_M = _random_negatives(taken, len(index_B), len(items), random_negatives, rng)
        own_M = _history_negatives(met, taken, len(items), history_negatives, rng)
        share_B = _shares(met, taken, len(index_B), len(items), history_negatives)
        popular_M = _popular_negatives(taken, len(index_B), len(items), popular_negatives, chance_N, rng)
        further_M = np.concatenate([own_M, popular_M])
        request_M, item_M = np.concatenate([request_M, further_M // len(items)]), np.concatenate([item_M, further_M % len(items)])
        of_M = index_B[request_M]
        cross_MC = lookup(requests.user_B[of_M], requests.ts_B[of_M], requests.offer_B[of_M], item_M)
        cross_RC = np.concatenate([cross_RC, cross_RC[again], cross_MC])
        request_R = np.concatenate([request_R, request_R[again], request_M])
        item_R = np.concatenate([item_R, item_R[again], item_M])
        label_R = np.concatenate([label_R, label_R[again], np.zeros(len(item_M), np.int8)])
        source_R = np.concatenate([source_R, np.full(len(again), SOURCE_ORGANIC), np.full(len(item_M), SOURCE_RANDOM)])
        order = np.argsort(request_R, kind="stable")
        request_R, item_R, label_R = request_R[order], item_R[order], label_R[order]
        source_R, cross_RC = source_R[order], cross_RC[order]
        share_R = share_B[request_R] * _isin_sorted(request_R * len(items) + item_R, met)
        popular_R = 0.0 if chance_N is None else popular_negatives * chance_N[item_R]
        open_R = -np.log(random_negatives / (len(items) - 1) + share_R + popular_R)
    offset_R = np.where(source_R == SOURCE_EXPOSED, -np.log(keep_rate), open_R).astype(np.float32)
    if affinity is not None:
        cross_RC = beside(cross_RC, affinity.pairs(history_BH, request_R, item_R))
    return Batch(
        user_BF=torch.from_numpy(requests.user_BF[index_B]),
        history_BH=torch.from_numpy(history_BH),
        history_age_BH=torch.from_numpy(age_BH),
        user_hash_B=torch.from_numpy(requests.user_B[index_B]),
        ts_B=torch.from_numpy(requests.ts_B[index_B]),
        offer_B=torch.from_numpy(requests.offer_B[index_B]),
        request_R=torch.from_numpy(request_R),
        item_R=torch.from_numpy(item_R),
        cross_RC=torch.from_numpy(np.ascontiguousarray(cross_RC)),
        label_R=torch.from_numpy(label_R.astype(np.float32)),
        source_R=torch.from_numpy(source_R),
        offset_R=torch.from_numpy(offset_R),
    )


def _met(history_BH: Ints, rows: int) -> Ints:
    """Distinct items of each history as ``request x rows + item``, ascending."""
    request_X, slot_X = np.nonzero(history_BH)
    return np.unique(request_X * rows + history_BH[request_X, slot_X])


def _history_negatives(met: Ints, taken: Ints, rows: int, each: int, rng: np.random.Generator) -> Ints:
    """Up to ``each`` of a request's ``met`` that are not ``taken`` (all as ``request x rows + item``, ascending)."""
    if not each:
        return met[:0]
    free = met[~_isin_sorted(met, taken)]
    free = free[np.lexsort((rng.random(len(free)), free // rows))]
    count_B = np.bincount(free // rows)
    place_X = np.arange(len(free)) - np.repeat(np.cumsum(count_B) - count_B, count_B)
    return free[place_X < each]


def _popular_negatives(
    taken: Ints, requests: int, rows: int, each: int, chance_N: NDArray[np.float64] | None, rng: np.random.Generator
) -> Ints:
    """Items drawn by chance that are not ``taken``, as ``request x rows + item``; ``each`` draws a request, with replacement."""
    if not each:
        return taken[:0]
    if chance_N is None or len(chance_N) != rows:
        raise ValueError(
            f"popular negatives need a chance of each of the {rows} item rows, {0 if chance_N is None else len(chance_N)} given"
        )
    upto_N = np.cumsum(chance_N)
    item_X = np.searchsorted(upto_N, rng.random(requests * each) * upto_N[-1], side="right")
    drawn_X: Ints = np.repeat(np.arange(requests, dtype=np.int64), each) * rows + item_X
    free_X: Ints = drawn_X[~_isin_sorted(drawn_X, taken)]
    return free_X


def _shares(met: Ints, taken: Ints, requests: int, rows: int, each: int) -> NDArray[np.float64]:
    """Share of its ``met`` that are not ``taken`` which ``_history_negatives`` draws for each request, ``(B,)``."""
    free = met[~_isin_sorted(met, taken)]
    share_B: NDArray[np.float64] = np.minimum(each / np.maximum(np.bincount(free // rows, minlength=requests), 1), 1.0)
    return share_B


def history_shares(history_BH: Ints, taken: Ints, rows: int, each: int) -> tuple[Ints, NDArray[np.float64]]:
    """What ``collate`` draws from histories, in expectation.

    Args:
        history_BH: item rows, 0 for none.
        taken: positives of the requests as ``request x rows + item``, ascending.
        rows: of the item table.
        each: history negatives a request.

    Returns:
        Items of the histories, as ``taken``; and the share of a request's that is drawn, ``(B,)``.
    """
    met = _met(history_BH, rows)
    return met, _shares(met, taken, len(history_BH), rows, each)


def _random_negatives(taken: Ints, requests: int, rows: int, each: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """``each`` uniform draws a request from item rows ``1..rows-1`` without its positives (``request x rows + item``, ascending).

    A draw that hits a positive is drawn again; what still hits one after ``_REDRAWS`` rounds (a request that bought nearly
    everything) is left out.
    """
    request_M = np.repeat(np.arange(requests, dtype=np.int64), each)
    item_M = rng.integers(1, rows, size=len(request_M))
    for _ in range(_REDRAWS):
        hit = np.flatnonzero(_isin_sorted(request_M * rows + item_M, taken))
        if not len(hit):
            return request_M, item_M
        item_M[hit] = rng.integers(1, rows, size=len(hit))
    free = ~_isin_sorted(request_M * rows + item_M, taken)
    return request_M[free], item_M[free]


def _isin_sorted(values: Ints, sorted_values: Ints) -> NDArray[np.bool_]:
    return find(sorted_values, values) >= 0


def histories(requests: RequestTable, index_B: Ints, longest: int) -> tuple[Ints, Floats]:
    """Histories padded to the longest of the batch (at least 1 wide): item rows ``(B, H)`` and ages in days ``(B, H)``."""
    start_B = requests.history_start[index_B]
    length_B = np.minimum(requests.history_start[index_B + 1] - start_B, longest)
    width = max(int(length_B.max(initial=0)), 1)
    valid_BH = np.arange(width) < length_B[:, None]
    at_BH = np.where(valid_BH, start_B[:, None] + np.arange(width), 0)
    if not len(requests.history_item):
        return np.zeros(valid_BH.shape, np.int64), np.zeros(valid_BH.shape, np.float32)
    item_BH = np.where(valid_BH, requests.history_item[at_BH], 0)
    age_BH = (requests.ts_B[index_B][:, None] - requests.history_ts[at_BH]) / SECONDS_PER_DAY
    return item_BH, np.where(item_BH != 0, age_BH, 0.0).astype(np.float32)


def _ranges(start: Ints, index_B: Ints) -> tuple[Ints, Ints]:
    """All positions of the lists ``index_B``: ``(position in index_B, position in the values)``."""
    length_B = start[index_B + 1] - start[index_B]
    owner = np.repeat(np.arange(len(index_B), dtype=np.int64), length_B)
    within = np.arange(len(owner), dtype=np.int64) - np.repeat(np.cumsum(length_B) - length_B, length_B)
    return owner, start[index_B][owner] + within


def _rows(table: pa.Table, spec: FeatureSpec, items: ItemTable) -> dict[str, Any]:
    row_start, item_hash = _lists(table, "item", np.int64)
    cross_start, cross = _lists(table, "cross", np.float32)
    width = spec.cross_width_raw
    if not np.isfinite(cross).all():
        raise ExamplesError(f"examples: 'cross' holds {int((~np.isfinite(cross)).sum())} non-finite values; rebuild the examples")
    if not np.array_equal(cross_start, row_start * width):
        raise ExamplesError(
            f"examples: 'cross' holds {len(cross)} values for {len(item_hash)} rows; the feature spec expects {width} a row: "
            "the examples were made with another data-set config, rebuild them"
        )
    return {
        "row_start": row_start,
        "item_R": items.rows(item_hash),
        "label_R": _parallel(table, "label", np.int8, row_start),
        "source_R": _parallel(table, "source", np.int8, row_start),
        "weight_R": _parallel(table, "weight", np.float32, row_start),
        "cross_RW": cross.reshape(-1, width),
    }


def _no_rows(requests: int, spec: FeatureSpec) -> dict[str, Any]:
    return {
        "row_start": np.zeros(requests + 1, np.int64),
        "item_R": np.zeros(0, np.int64),
        "label_R": np.zeros(0, np.int8),
        "source_R": np.zeros(0, np.int8),
        "weight_R": np.zeros(0, np.float32),
        "cross_RW": np.zeros((0, spec.cross_width_raw), np.float32),
    }


def _column(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    if column.num_chunks == 1:  # combine_chunks would copy it
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)


def _flat(table: pa.Table, name: str, dtype: type[np.generic]) -> NDArray[Any]:
    column = _column(table, name)
    if column.null_count:
        raise ExamplesError(f"examples: column {name!r} has {column.null_count} null(s); none are allowed")
    return np.asarray(column.to_numpy(zero_copy_only=False)).astype(dtype, copy=False)


def _lists(table: pa.Table, name: str, dtype: type[np.generic]) -> tuple[Ints, NDArray[Any]]:
    """Bounds ``(B + 1,)`` and values of a list column."""
    column = _column(table, name)
    if not len(column):
        return np.zeros(1, np.int64), np.zeros(0, dtype)
    bounds = column.offsets.to_numpy().astype(np.int64)
    values = column.values.slice(bounds[0], bounds[-1] - bounds[0])
    if column.null_count or values.null_count:
        raise ExamplesError(
            f"examples: column {name!r} holds nulls ({column.null_count} lists, {values.null_count} values); none are allowed"
        )
    return bounds - bounds[0], np.asarray(values.to_numpy(zero_copy_only=False)).astype(dtype, copy=False)


def _parallel(table: pa.Table, name: str, dtype: type[np.generic], start: Ints) -> NDArray[Any]:
    own, values = _lists(table, name, dtype)
    if not np.array_equal(own, start):
        raise ExamplesError(f"examples: the lists of {name!r} do not have the lengths of the lists beside them")
    return values
