"""Files of the cross arrays: their names, how they are written and how they are opened.

A folder of ``.npy`` arrays and a ``meta.json`` that is written last. ``meta.json`` lists dtype and shape of every array, so that a
truncated, missing or foreign file is found when it is opened, not when a number is wrong.

``u2i-<key>-<shard>.{user,key,ts,cum}``: events sorted by (user hash, key hash, ts); ``cum`` is the inclusive running sum of events.
``pop.days`` (days since 1970-01-01), ``pop.items`` (sorted item hashes), ``pop.<w>`` events of the last ``w`` days as of each day's end.
``offers.{offer,item}`` sorted by (offer hash, item hash), ``offers.<column>`` codes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dig_models.config import Strict
from dig_models.features import FeatureSpec

FORMAT = 1
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
        spec: digest of the feature spec.
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


def u2i_name(key: str, shard: int, part: str) -> str:
    """Name of one u2i array; ``part`` is user, key, ts or cum."""
    return f"u2i-{key}-{shard}.{part}"


class CrossWriter:
    """Writes the arrays of a folder; nothing counts before ``close`` wrote ``meta.json``."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._arrays: dict[str, ArrayMeta] = {}

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
        """Sort the events of one key and shard and write them with their running sum."""
        order = np.lexsort((ts_R, key_R, user_R))
        self.put(u2i_name(key, shard, "user"), user_R[order].astype(np.int64))
        self.put(u2i_name(key, shard, "key"), key_R[order].astype(np.int64))
        self.put(u2i_name(key, shard, "ts"), ts_R[order].astype(np.int64))
        self.put(u2i_name(key, shard, "cum"), np.cumsum(events_R[order], dtype=np.float64))

    def put_pop(self, days_T: NDArray[np.int64], items_N: NDArray[np.int64], windows: Mapping[int, NDArray[np.float32]]) -> None:
        """Write the popularity arrays ``{w: (T, N)}``; ``items_N`` is sorted."""
        self.put("pop.days", days_T)
        self.put("pop.items", items_N)
        for window, pop_TN in windows.items():
            self.put(f"pop.{window}", pop_TN.astype(np.float32))

    def put_offers(self, offer_O: NDArray[np.int64], item_O: NDArray[np.int64], codes: Mapping[str, NDArray[np.int16]]) -> None:
        """Sort what was offered by (offer hash, item hash) and write it; pairs are distinct."""
        order = np.lexsort((item_O, offer_O))
        self.put("offers.offer", offer_O[order].astype(np.int64))
        self.put("offers.item", item_O[order].astype(np.int64))
        for column, code_O in codes.items():
            self.put(f"offers.{column}", code_O[order].astype(np.int16))

    def close(self, spec: FeatureSpec, *, first_day: int, last_day: int, pop_first_day: int, shards: int) -> CrossMeta:
        """Write ``meta.json``, which makes the folder whole."""
        meta = CrossMeta(
            spec=spec.digest,
            first_day=first_day,
            last_day=last_day,
            pop_first_day=pop_first_day,
            shards=shards,
            keys=spec.u2i_keys,
            windows=spec.windows,
            offers=tuple(o.name for o in spec.offers),
            arrays=dict(sorted(self._arrays.items())),
        )
        (self.path / META).write_text(json.dumps(meta.model_dump(mode="json"), sort_keys=True, indent=1) + "\n")
        return meta


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
    except (ValueError, AttributeError) as error:
        raise CrossArraysError(f"{file}: not the description of cross arrays ({error}); {REBUILD}") from None
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
    mode = None if 0 in expected.shape else "r"
    try:
        array: NDArray[Any] = np.load(file, mmap_mode=mode, allow_pickle=False)  # type: ignore[arg-type]
    except (OSError, ValueError, EOFError) as error:
        raise CrossArraysError(f"{file}: missing, truncated or no array ({error}); {REBUILD}") from None
    if array.dtype.str != expected.dtype or array.shape != expected.shape:
        raise CrossArraysError(f"{file}: {array.dtype.str} {array.shape} found, {expected.dtype} {expected.shape} expected; {REBUILD}")
    return array
