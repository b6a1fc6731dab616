"""Crosses of any user, item and time, exposed or not: one look-up for training, evaluation and serving.

The arrays are exported by Spark (``jobs/cross_arrays.py``) from the same daily aggregates as ``examples.cross``; a window is the
difference of two running sums, found by binary search.

Shape suffixes: ``P`` pairs, ``Q`` runs of equal (user, ts, offer), ``R`` event rows of a shard, ``G`` (user, key) groups of a shard,
``N`` items of the table, ``W`` raw crosses, ``O`` offered rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from dig_models.cross_files import CrossMeta, find, open_array, read_meta, u2i_name
from dig_models.features import SECONDS_PER_DAY, FeatureSpec
from dig_models.items import ItemTable

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _Shard:
    """Events of one u2i key and user shard, memory-mapped; ``dig_models.cross_files`` says what each array holds.

    Attributes:
        key_N: key hash of each item; 0 = missing.
    """

    users: Ints
    start: Ints
    keys: Ints
    group: Ints
    place: Ints
    cum: NDArray[np.float64]
    first_second: int
    span: int
    key_N: Ints

    @classmethod
    def open(cls, path: Path, meta: CrossMeta, key: str, shard: int, key_N: Ints) -> _Shard:
        arrays = {part: open_array(path, meta, u2i_name(key, shard, part)) for part in ("users", "start", "keys", "group", "place", "cum")}
        return cls(**arrays, first_second=meta.first_second, span=meta.span, key_N=key_N)

    @cached_property
    def item_key_N(self) -> NDArray[np.int32]:
        """Index into ``keys`` of each item's key, -1 if no user of the shard has it; looked up when first asked for."""
        return np.where(self.key_N == 0, -1, find(self.keys, self.key_N)).astype(np.int32)

    def groups(self, user_Q: Ints, run_P: Ints, item_P: Ints) -> Ints:
        """Group of each pair, ``(P,)``; -1 if the user has no event with the item's key."""
        user_index_P = find(self.users, user_Q)[run_P]
        key_index_P = self.item_key_N[item_P]
        code_P = np.where((user_index_P < 0) | (key_index_P < 0), -1, user_index_P * max(len(self.keys), 1) + key_index_P)
        return find(self.group, code_P)

    def before(self, group_P: Ints, second_P: Ints) -> Ints:
        """Rows of the file that sort before (group, second): ``cum`` up to there."""
        within_P = np.clip(second_P - self.first_second, 0, self.span - 1)
        return np.searchsorted(self.place, group_P * self.span + within_P)

    def sums(self, end_P: Ints) -> NDArray[np.float64]:
        """Running sum of the first ``end_P`` rows."""
        return np.where(end_P > 0, self.cum[np.maximum(end_P - 1, 0)], 0.0)

    def seconds(self, row_P: Ints) -> Ints:
        """Times of some rows, seconds of the local clock."""
        return self.first_second + self.place[row_P] % self.span

    def of_user(self, user: int) -> slice:
        """Rows of one user."""
        at = int(find(self.users, np.array([user]))[0])
        return slice(0, 0) if at < 0 else slice(int(self.start[at]), int(self.start[at + 1]))

    def events(self, rows: slice) -> tuple[Ints, Ints, NDArray[np.float64]]:
        """Group, time and events of consecutive rows."""
        place_R = np.asarray(self.place[rows])
        before = self.cum[rows.start - 1] if rows.start else 0.0
        return place_R // self.span, self.first_second + place_R % self.span, np.diff(self.cum[rows], prepend=before)


@dataclass(frozen=True)
class _Offers:
    """What was offered, memory-mapped: ``place`` is ``offer index * items + column of pop.items``, ascending."""

    keys: Ints
    place: Ints
    codes: list[NDArray[np.int16]]
    items: int

    @classmethod
    def open(cls, path: Path, meta: CrossMeta, items: int) -> _Offers:
        keys, place = (open_array(path, meta, f"offers.{part}") for part in ("keys", "place"))
        codes = [open_array(path, meta, f"offers.{column}") for column in meta.offers]
        return cls(keys=keys, place=place, codes=codes, items=max(items, 1))


class CrossStore:
    """Raw crosses ``(…, W)`` float32 in ``spec.raw_cross_names`` order, for pairs, for a whole catalogue, and what a user bought.

    Unknown users and items, and keys that are missing, have counts 0 and days -1. Files are memory-mapped and opened when first
    needed, one shard of users at a time, and searched where they lie; thread safety is that of NumPy reads.
    """

    def __init__(self, path: Path, spec: FeatureSpec, items: ItemTable, meta: CrossMeta) -> None:
        self._path, self._spec, self._items, self.meta = path, spec, items, meta
        self._shards: dict[tuple[int, int], _Shard] = {}
        self._pop = [open_array(path, meta, f"pop.{w}") for w in spec.windows]
        self._pop_days: Ints = np.asarray(open_array(path, meta, "pop.days"))
        self._pop_items: Ints = open_array(path, meta, "pop.items")
        self._columns = len(self._pop_items)

    @classmethod
    def open(cls, path: str | Path, spec: FeatureSpec, keys: ItemTable) -> CrossStore:
        """Open the folder that ``jobs.u2i_crosses`` wrote.

        Args:
            path: data folder of a ``cross_arrays`` partition, or its copy in an index generation.
            spec: feature spec in force.
            keys: the items that may be asked for; ``item_P`` and the rows of ``catalogue`` are its rows.

        Raises:
            CrossArraysError: a file is missing, truncated or foreign.
            FeatureSpecMismatch: the arrays were made with another feature spec.
        """
        return cls(Path(path), spec, keys, read_meta(Path(path), spec))

    def preload(self) -> CrossStore:
        """Open every file now, so that a folder that is removed later (retention of an index) goes on answering."""
        for k in range(len(self._spec.u2i_keys)):
            for shard in range(self.meta.shards):
                self._shard(k, shard)
        if self._spec.offers:
            _ = self._offers
        return self

    def pairs(self, user_P: Ints, ts_P: Ints, offer_P: Ints, item_P: Ints) -> Floats:
        """Raw crosses of any pairs, ``(P, W)``; fastest when pairs of one request are neighbours.

        Args:
            user_P: user hashes.
            ts_P: seconds of the local clock; only events strictly before count.
            offer_P: offer hashes (0 or an unknown one: nothing offered).
            item_P: rows of the item table.

        Raises:
            ValueError: a time that the arrays do not cover.
        """
        spec, step = self._spec, len(self._spec.windows) + 1
        out_PW = np.zeros((len(item_P), spec.cross_width_raw), dtype=np.float32)
        if not len(item_P):
            return out_PW
        change = (user_P[1:] != user_P[:-1]) | (ts_P[1:] != ts_P[:-1]) | (offer_P[1:] != offer_P[:-1])
        first_Q = np.concatenate([[0], np.flatnonzero(change) + 1])
        run_P = np.repeat(np.arange(len(first_Q)), np.diff(np.append(first_Q, len(item_P))))
        user_Q, ts_Q = user_P[first_Q], ts_P[first_Q]
        day_Q = self._pop_rows(ts_Q)
        shard_Q = user_Q % self.meta.shards
        for shard in np.unique(shard_Q):
            at_P = np.flatnonzero((shard_Q == shard)[run_P])
            for k in range(len(spec.u2i_keys)):
                self._u2i(k, int(shard), user_Q, ts_Q, run_P[at_P], item_P[at_P], at_P, out_PW[:, k * step : (k + 1) * step])
        column_P = self._pop_column_N[item_P]
        head = len(spec.u2i_keys) * step
        for j, pop_TN in enumerate(self._pop):
            if pop_TN.shape[1]:
                out_PW[:, head + j] = np.where(column_P < 0, 0.0, pop_TN[day_Q[run_P], np.maximum(column_P, 0)])
        self._offered(offer_P[first_Q], run_P, item_P, out_PW[:, head + len(self._pop) :])
        return out_PW

    def catalogue(self, user: int, ts: int, offer: int) -> Floats:
        """Raw crosses of one request against every row of the item table, ``(N, W)``; row 0 is the unknown item.

        Raises:
            ValueError: a time that the arrays do not cover.
        """
        spec, step = self._spec, len(self._spec.windows) + 1
        out_NW = np.zeros((len(self._items), spec.cross_width_raw), dtype=np.float32)
        for k in range(len(spec.u2i_keys)):
            part = self._shard(k, user % self.meta.shards)
            table, index_N = self._user_table(part, user, ts)
            out_NW[:, k * step : (k + 1) * step] = table[index_N]
        head = len(spec.u2i_keys) * step
        tail = head + len(self._pop)
        out_NW[:, head:tail] = self.popularity(ts)
        row_O, code_OX = self.offered(offer)
        out_NW[row_O, tail:] = code_OX
        return out_NW

    def profile(self, user: int, ts: int) -> list[tuple[Ints, Floats]]:
        """What is known of a user, by u2i key of the spec: hashes ``(S,)`` of the values with events, raw crosses ``(S, windows + 1)``."""
        found = []
        for k in range(len(self._spec.u2i_keys)):
            part = self._shard(k, user % self.meta.shards)
            table, groups = self._user_groups(part, user, ts)
            found.append((part.keys[groups % max(len(part.keys), 1)], table[1:]))
        return found

    def popularity(self, ts: int) -> Floats:
        """Popularity of every item row at a time, ``(N, windows)``: closed days only, so it is the same all day.

        Raises:
            ValueError: a time that the arrays do not cover.
        """
        out_NW = np.zeros((len(self._items), len(self._pop)), dtype=np.float32)
        day, known = int(self._pop_rows(np.array([ts]))[0]), self._pop_column_N >= 0
        for j, pop_TN in enumerate(self._pop):
            out_NW[known, j] = pop_TN[day][self._pop_column_N[known]]
        return out_NW

    def offered(self, offer: int) -> tuple[Ints, Floats]:
        """What an offer shows: distinct item rows ``(O,)`` and their codes ``(O, offer columns)``."""
        offers, columns = self._offers, len(self._spec.offers)
        at = int(find(offers.keys, np.array([offer]))[0]) if columns else -1
        if at < 0:
            return np.zeros(0, dtype=np.int64), np.zeros((0, columns), dtype=np.float32)
        low, high = np.searchsorted(offers.place, [at * offers.items, (at + 1) * offers.items])
        row_O = self._row_of_column[offers.place[low:high] - at * offers.items]
        code_OX = np.stack([np.asarray(code_O[low:high], dtype=np.float32) for code_O in offers.codes], axis=1)
        return row_O[row_O > 0], code_OX[row_O > 0]

    def bought(self, user: int, ts: int) -> Ints:
        """Rows of the items that the user has an event with before ``ts`` (in the days that the arrays hold), ascending."""
        part = self._shard(self._spec.u2i_keys.index("item"), user % self.meta.shards)
        group_R, ts_R, _ = part.events(part.of_user(user))
        hashes = part.keys[np.unique(part.group[np.unique(group_R[ts_R < ts])] % max(len(part.keys), 1))]
        item_rows = self._items.rows(hashes)
        return item_rows[item_rows > 0]

    @cached_property
    def _pop_column_N(self) -> Ints:
        """Column of each item in the popularity arrays, -1 if they do not know it; looked up when first asked for."""
        hash_N = self._items.hash_N
        return np.where(hash_N == hash_N[0], -1, find(self._pop_items, hash_N))

    @cached_property
    def _offers(self) -> _Offers:
        return _Offers.open(self._path, self.meta, self._columns)

    @cached_property
    def _row_of_column(self) -> Ints:
        """Item row of each item that the arrays know, 0 if the table does not hold it."""
        row = np.zeros(self._columns, dtype=np.int64)
        known = self._pop_column_N >= 0
        row[self._pop_column_N[known]] = np.flatnonzero(known)
        return row

    def _shard(self, k: int, shard: int) -> _Shard:
        found = self._shards.get((k, shard))
        if found is None:
            found = _Shard.open(self._path, self.meta, self._spec.u2i_keys[k], shard, self._items.key_KN[k])
            self._shards[k, shard] = found
        return found

    def _u2i(self, k: int, shard: int, user_Q: Ints, ts_Q: Ints, run_P: Ints, item_P: Ints, at_P: Ints, out_PW: Floats) -> None:
        """Counts and days of one key and shard into ``out_PW[at_P]``."""
        part, windows = self._shard(k, shard), self._spec.windows
        out_PW[at_P, len(windows)] = -1.0
        group_P = part.groups(user_Q, run_P, item_P)
        hit = np.flatnonzero(group_P >= 0)
        if not len(hit):
            return
        group_P, ts_P, at_P = group_P[hit], ts_Q[run_P[hit]], at_P[hit]
        midnight_P = ts_P // SECONDS_PER_DAY * SECONDS_PER_DAY
        end_P = part.before(group_P, ts_P)
        total_P, widest = part.sums(end_P), int(np.argmax(windows))
        for j, window in enumerate(windows):
            begin_P = part.before(group_P, midnight_P - window * SECONDS_PER_DAY)
            out_PW[at_P, j] = total_P - part.sums(begin_P)
            if j == widest:
                seen = end_P > begin_P
                out_PW[at_P[seen], len(windows)] = (ts_P[seen] - part.seconds(end_P[seen] - 1)) / SECONDS_PER_DAY

    def _user_table(self, part: _Shard, user: int, ts: int) -> tuple[Floats, Ints]:
        """Crosses of one user for each of his keys, row 0 for "never" ``(keys + 1, windows + 1)``, and each item's row of it ``(N,)``."""
        table, groups = self._user_groups(part, user, ts)
        index = np.zeros(len(part.keys) + 1, dtype=np.int64)  # the last one answers key index -1
        if len(groups):
            index[groups % len(part.keys)] = np.arange(1, len(groups) + 1)
        return table, index[part.item_key_N]

    def _user_groups(self, part: _Shard, user: int, ts: int) -> tuple[Floats, Ints]:
        """Crosses of one user, row 0 for "never" ``(S + 1, windows + 1)``, and the groups of the other rows ``(S,)``."""
        windows = self._spec.windows
        group_R, ts_R, events_R = part.events(part.of_user(user))
        size = int(group_R[-1] - group_R[0]) + 1 if len(group_R) else 0
        table = np.zeros((size + 1, len(windows) + 1), dtype=np.float32)
        table[:, -1] = -1.0
        if not size:
            return table, np.zeros(0, dtype=np.int64)
        local = group_R - group_R[0]
        midnight = ts // SECONDS_PER_DAY * SECONDS_PER_DAY
        for j, window in enumerate(windows):
            inside = (ts_R >= midnight - window * SECONDS_PER_DAY) & (ts_R < ts)
            table[1:, j] = np.bincount(local[inside], weights=events_R[inside], minlength=size)
        recent = (ts_R >= midnight - max(windows) * SECONDS_PER_DAY) & (ts_R < ts)
        # Rows of a group ascend in time and of repeated indices the last assignment stays.
        table[1 + local[recent], -1] = (ts - ts_R[recent]) / SECONDS_PER_DAY
        return table, np.asarray(part.group[group_R[0] : group_R[-1] + 1])

    def _pop_rows(self, ts_Q: Ints) -> Ints:
        """Rows of the popularity arrays: the day before each request."""
        row_Q = ts_Q // SECONDS_PER_DAY - 1 - self._pop_days[0]
        outside = (row_Q < 0) | (row_Q >= len(self._pop_days))
        if outside.any():
            asked = date(1970, 1, 1) + timedelta(days=int(ts_Q[outside][0] // SECONDS_PER_DAY))
            first, last = (date(1970, 1, 1) + timedelta(days=int(d) + 1) for d in self._pop_days[[0, -1]])
            raise ValueError(
                f"{self._path}: crosses of a request on {asked} asked, the arrays answer {first} to {last}; use those of a later date"
            )
        return cast(Ints, row_Q)

    def _offered(self, offer_Q: Ints, run_P: Ints, item_P: Ints, out_PW: Floats) -> None:
        """Offer codes of each pair."""
        if not self._spec.offers:
            return
        offers = self._offers
        index_P, column_P = find(offers.keys, offer_Q)[run_P], self._pop_column_N[item_P]
        place_P = find(offers.place, np.where((index_P < 0) | (column_P < 0), -1, index_P * offers.items + column_P))
        hit = np.flatnonzero(place_P >= 0)
        for j, code_O in enumerate(offers.codes):
            out_PW[hit, j] = code_O[place_P[hit]]
