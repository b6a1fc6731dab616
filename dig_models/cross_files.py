"""Files of the cross arrays: their names, how they are written and how they are opened.

A folder of ``.npy`` arrays and a ``meta.json`` that is written last. ``meta.json`` lists dtype and shape of every array, so that a
truncated, missing or foreign file is found when it is opened, not when a number is wrong.

Every array is looked up where it lies: nothing is derived when a folder is opened, so memory does not grow with events or users.

``u2i-<key>-<shard>``, events sorted by (user hash, key hash, ts): ``.users`` distinct user hashes, ``.start`` the first row of each and
the row count, ``.keys`` distinct key hashes, ``.group`` ``user index * len(keys) + key index`` of each pair that has events, ``.place``
``group index * span + seconds since first_day`` of each event, ``.cum`` the inclusive running sum of events.
``pop.days`` (days since 1970-01-01), ``pop.items`` (sorted item hashes), ``pop.<w>`` events of the last ``w`` days as of each day's end.
``offers.keys`` distinct offer hashes, ``offers.place`` ``offer index * len(pop.items) + index in pop.items``, ascending,
``offers.<column>`` codes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dig_models.arrays import ArrayError, open_npy
from dig_models.config import Strict
from dig_models.features import SECONDS_PER_DAY, FeatureSpec

FORMAT = 2
META = "meta.json"
REBUILD = "rebuild with python -m jobs.u2i_crosses"


class CrossArraysError(ValueError):
    """The cross arrays cannot be used; the message names the file and what is wrong with it."""


class ArrayMeta(Strict):
    """What an array file must hold."""

    dtype: str
    shape: tuple[int, ...]


class CrossMeta(Strict):
    """Content of ``meta.json``.

    Attributes:
        spec: digest of the feature spec, as far as the lake depends on it.
        first_day, last_day: days whose events the u2i arrays hold, days since 1970-01-01, both included.
        pop_first_day: first day of ``pop.days``; the last one is ``last_day``.
        keys: u2i keys in spec order.
        windows: in days, in spec order.
    """

    format: int = FORMAT
    spec: str
    first_day: int
    last_day: int
    pop_first_day: int
    shards: int
    keys: tuple[str, ...]
    windows: tuple[int, ...]
    offers: tuple[str, ...]
    arrays: dict[str, ArrayMeta]

    @property
    def first_second(self) -> int:
        """Start of ``first_day``, seconds since 1970-01-01."""
        return self.first_day * SECONDS_PER_DAY

    @property
    def span(self) -> int:
        """Seconds that a group of events takes up in ``place``."""
        return span_of(self.first_day, self.last_day)


def span_of(first_day: int, last_day: int) -> int:
    """Seconds of the days, and of one more: a request of the day after the last one sees all of them."""
    return (last_day + 2 - first_day) * SECONDS_PER_DAY


def u2i_name(key: str, shard: int, part: str) -> str:
    """Name of one u2i array; ``part`` is users, start, keys, group, place or cum."""
    return f"u2i-{key}-{shard}.{part}"


class CrossWriter:
    """Writes the arrays of a folder; nothing counts before ``close`` wrote ``meta.json``.

    Args:
        path: the folder; made if missing.
        first_day: first day of the events, days since 1970-01-01.
        last_day: last day of events and popularity.
    """

    def __init__(self, path: str | Path, *, first_day: int, last_day: int) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.first_day, self.last_day = first_day, last_day
        self._arrays: dict[str, ArrayMeta] = {}
        self._items: NDArray[np.int64] | None = None

    def put(self, name: str, array: NDArray[Any]) -> None:
        """Write one array as ``<name>.npy``."""
        np.save(self.path / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
        self._arrays[name] = ArrayMeta(dtype=array.dtype.str, shape=array.shape)

    def put_u2i(
        self,
        key: str,
        shard: int,
        user_R: NDArray[np.int64],
        key_R: NDArray[np.int64],
        ts_R: NDArray[np.int64],
        events_R: NDArray[np.float64],
    ) -> None:
        """Sort the events of one key and shard and write them with their running sum.

        Raises:
            ValueError: an event outside the days of the writer.
        """
        second_R = ts_R.astype(np.int64) - self.first_day * SECONDS_PER_DAY
        if len(second_R) and (second_R.min() < 0 or second_R.max() >= (self.last_day + 1 - self.first_day) * SECONDS_PER_DAY):
            raise ValueError(f"put_u2i: key {key}, shard {shard}: events outside days {self.first_day} to {self.last_day}")
        order = np.lexsort((second_R, key_R, user_R))
        user_R, key_R, second_R = user_R[order].astype(np.int64), key_R[order].astype(np.int64), second_R[order]
        user_start = run_starts(user_R)
        keys, key_index_R = np.unique(key_R, return_inverse=True)
        user_index_R = np.repeat(np.arange(len(user_start)), np.diff(np.append(user_start, len(user_R))))
        code_R = user_index_R * max(len(keys), 1) + key_index_R
        group_start = run_starts(code_R)
        group_R = np.repeat(np.arange(len(group_start)), np.diff(np.append(group_start, len(code_R))))
        arrays = {
            "users": user_R[user_start],
            "start": np.append(user_start, len(user_R)),
            "keys": keys,
            "group": code_R[group_start],
            "place": group_R * span_of(self.first_day, self.last_day) + second_R,
            "cum": np.cumsum(events_R[order], dtype=np.float64),
        }
        for part, array in arrays.items():
            self.put(u2i_name(key, shard, part), array)

    def put_pop(self, days_T: NDArray[np.int64], items_N: NDArray[np.int64], windows: Mapping[int, NDArray[np.float32]]) -> None:
        """Write the popularity arrays ``{w: (T, N)}``; ``items_N`` is sorted."""
        self._items = items_N
        self.put("pop.days", days_T)
        self.put("pop.items", items_N)
        for window, pop_TN in windows.items():
            self.put(f"pop.{window}", pop_TN.astype(np.float32))

    def put_offers(self, offer_O: NDArray[np.int64], item_O: NDArray[np.int64], codes: Mapping[str, NDArray[np.int16]]) -> None:
        """Sort what was offered by (offer hash, item hash) and write it; pairs are distinct, items not in ``pop.items`` are left out.

        Raises:
            ValueError: ``put_pop`` did not come first.
        """
        if self._items is None:
            raise ValueError("put_offers: the items are those of put_pop, which has not been called")
        column_O = find(self._items, item_O)
        known = column_O >= 0
        offers, index_O = np.unique(offer_O[known], return_inverse=True)
        place_O = index_O * max(len(self._items), 1) + column_O[known]
        order = np.argsort(place_O)
        self.put("offers.keys", offers.astype(np.int64))
        self.put("offers.place", place_O[order].astype(np.int64))
        for column, code_O in codes.items():
            self.put(f"offers.{column}", code_O[known][order].astype(np.int16))

    def close(self, spec: FeatureSpec, *, pop_first_day: int, shards: int) -> CrossMeta:
        """Write ``meta.json``, which makes the folder whole."""
        meta = CrossMeta(
            spec=spec.lake_digest,
            first_day=self.first_day,
            last_day=self.last_day,
            pop_first_day=pop_first_day,
            shards=shards,
            keys=spec.u2i_keys,
            windows=spec.windows,
            offers=tuple(o.name for o in spec.offers),
            arrays=dict(sorted(self._arrays.items())),
        )
        (self.path / META).write_text(json.dumps(meta.model_dump(mode="json"), sort_keys=True, indent=1) + "\n")
        return meta


def run_starts(sorted_R: NDArray[np.int64]) -> NDArray[np.int64]:
    """First position of each run of equal values."""
    if not len(sorted_R):
        return np.zeros(0, dtype=np.int64)
    return np.concatenate([[0], np.flatnonzero(sorted_R[1:] != sorted_R[:-1]) + 1])


def find(sorted_G: NDArray[np.int64], value_P: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of each value, ``(P,)``; -1 where it is not there."""
    if not len(sorted_G):
        return np.full(len(value_P), -1, dtype=np.int64)
    at = np.searchsorted(sorted_G, value_P)
    at[at == len(sorted_G)] = 0
    return np.where(sorted_G[at] == value_P, at, -1)


def read_meta(path: Path, spec: FeatureSpec) -> CrossMeta:
    """Read ``meta.json`` and check that the arrays were made for ``spec``.

    Raises:
        CrossArraysError: no or broken ``meta.json``, or another format.
        FeatureSpecMismatch: made with another feature spec.
    """
    file = path / META
    if not file.is_file():
        raise CrossArraysError(f"{file}: not found; cross arrays are written by python -m jobs.u2i_crosses, run it for that date")
    try:
        loaded = json.loads(file.read_text())
        if loaded.get("format") != FORMAT:
            raise CrossArraysError(f"{file}: format {loaded.get('format')!r} found, {FORMAT} expected; {REBUILD}")
        meta = CrossMeta.model_validate(loaded)
    except CrossArraysError:
        raise
    except (ValueError, AttributeError, RecursionError) as error:
        raise CrossArraysError(f"{file}: not the description of cross arrays ({error}); {REBUILD}") from None
    if meta.spec != spec.lake_digest:
        spec.require(meta.spec, f"{path} (cross arrays)")
    return meta


def open_array(path: Path, meta: CrossMeta, name: str) -> NDArray[Any]:
    """One array, memory-mapped (an empty one is read), checked against ``meta``.

    Raises:
        CrossArraysError: missing, truncated or foreign file.
    """
    file, expected = path / f"{name}.npy", meta.arrays.get(name)
    if expected is None:
        raise CrossArraysError(f"{path / META}: array {name!r} is not listed; {REBUILD}")
    try:
        return open_npy(file, np.dtype(expected.dtype), expected.shape)
    except (ArrayError, TypeError) as error:
        raise CrossArraysError(f"missing, truncated or no array: {error}; {REBUILD}") from None
