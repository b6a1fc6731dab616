"""Verifies what a generation knows of users: their state and the cross arrays, value by value, a piece at a time.

What cannot be told from the files alone is left out: an offer hash may name nothing that is on offer, and the number of a user's events
is whatever it was.

Shape suffixes: ``U`` users, ``H`` history entries of all users, ``E`` events of a shard, ``G`` (user, key) groups of a shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from dig_models.arrays import ArrayError, Strings, open_npy
from dig_models.cross_files import META, CrossArraysError, CrossMeta, open_array, read_meta, u2i_name
from dig_models.features import SECONDS_PER_DAY, FeatureSpec, hash_id
from dig_models.index import generation as g
from dig_models.index.encode import chunks
from dig_models.index.reader import IndexReader
from dig_models.index.state import FIELDS, HASHES, HISTORY_HASH, HISTORY_ITEM, HISTORY_TS, START, TIMES, USERS

PIECE, USERS_AT_ONCE = 1 << 20, 1 << 14
FAR = 10_000_000  # days; their seconds still fit an int64 many times
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Demand:
    """Refuses a generation whose file is not as it should be."""

    generation: str
    folder: str

    def __call__(self, sound: bool, file: str, expected: str, found: str = "others") -> None:
        """Go on if it is sound.

        Raises:
            IndexCorrupt: it is not; names the file below ``folder``.
        """
        if not sound:
            raise g.IndexCorrupt(self.generation, f"{self.folder}/{file}", expected=expected, found=found)


def ascending(array: NDArray[Any], *, strictly: bool = True) -> bool:
    """Whether values ascend; neighbours are compared, not subtracted, for hashes may lie further apart than an int64 holds."""
    for first, last in chunks(len(array), PIECE):
        piece = array[first : last + 1]
        if not bool((piece[1:] > piece[:-1]).all() if strictly else (piece[1:] >= piece[:-1]).all()):
            return False
    return True


def inside(array: NDArray[Any], low: float, high: float) -> bool:
    """Whether all values lie in ``low <= value < high``; those that are not numbers do not."""
    pieces = (array[first:last] for first, last in chunks(len(array), PIECE))
    return all(bool(((piece >= low) & (piece < high)).all()) for piece in pieces)


def check_text(generation: str, file: str, strings: Strings) -> None:
    """Strings are UTF-8 within their bounds.

    Raises:
        IndexCorrupt: they are not.
    """
    try:
        strings.check(file)
    except ArrayError as error:
        raise g.IndexCorrupt(generation, file, expected="UTF-8 in order", found=str(error)) from None


def hashes_of(ids: Strings, hash_N: Ints, first: int = 0) -> bool:
    """Whether hashes are those of the ids beside them, from a row on."""
    for low, high in chunks(len(ids) - first, USERS_AT_ONCE):
        piece = slice(first + low, first + high)
        if [hash_id(text) for text in ids.to_arrow(piece.start, piece.stop).to_pylist()] != hash_N[piece].tolist():
            return False
    return True


def check_state(reader: IndexReader) -> str:
    """Users ascend and have their hashes; times are those that the cross arrays answer; buckets and histories are what the model takes.

    Raises:
        IndexCorrupt: something is not so.
    """
    state, spec, ids, demand = reader.state, reader.bundle.spec, reader.user_ids, Demand(reader.manifest.id, g.STATE)
    check_text(reader.manifest.id, f"{g.STATE}/{USERS}", ids)
    for first, last in chunks(len(ids), PIECE):
        some = ids.to_arrow(first, min(last + 1, len(ids)))
        demand(len(some) < 2 or pc.all(pc.less(some[:-1], some[1:])).as_py(), USERS, "user ids, ascending, each once", "another order")
    demand(hashes_of(ids, state.user_B), HASHES, "hashes of the user ids")
    days = _pop_days(reader)
    low, high = (days[0] + 1) * SECONDS_PER_DAY, (days[-1] + 2) * SECONDS_PER_DAY
    demand(inside(state.ts_B, low, high), TIMES, f"times that the cross arrays answer, {low} to {high - 1}")
    fields = [*spec.user_fields, *spec.context_fields]
    for column, field in enumerate(fields):
        demand(inside(state.user_BF[:, column], 0, field.buckets), FIELDS, f"buckets 0 to {field.buckets - 1} of {field.name}")
    _check_histories(reader, spec, demand)
    return f"{len(ids)} users, {len(state.history_item)} events"


def _pop_days(reader: IndexReader) -> tuple[int, int]:
    """First and last day whose popularity is there, days since 1970-01-01; the day that the generation serves must be one."""
    meta, served = _meta(reader), (reader.manifest.date - date(1970, 1, 1)).days
    first, last = meta.pop_first_day, meta.last_day
    demand = Demand(reader.manifest.id, f"{g.STATE}/{g.CROSS_ARRAYS}")
    demand(first <= served <= last < FAR, META, f"days that include {served} ({reader.manifest.date})", f"{first} to {last}")
    return first, last


def _check_histories(reader: IndexReader, spec: FeatureSpec, demand: Demand) -> None:
    """Lists newest first, no longer and no older than the model's spec says, before the request; rows are those of the item table."""
    state, items, start = reader.state, reader.bundle.items, reader.state.history_start
    events, longest = len(state.history_item), spec.history_length
    demand(int(start[0]) == 0 and int(start[-1]) == events and ascending(start, strictly=False), START, "bounds of lists")
    hash_H = open_npy(reader.folder / g.STATE / HISTORY_HASH, np.int64, (None,))
    demand(len(hash_H) == events, HISTORY_HASH, f"{events} hashes", str(len(hash_H)))
    for first, last in chunks(events, PIECE):
        found_P = state.history_item[first:last]
        demand(np.array_equal(found_P, items.rows(hash_H[first:last])), HISTORY_ITEM, f"rows of the item table, as {HISTORY_HASH} says")
    for first, last in chunks(len(state), USERS_AT_ONCE):
        bounds = start[first : last + 1]
        length_U = bounds[1:] - bounds[:-1]
        demand(inside(length_U, 0, longest + 1), START, f"histories of up to {longest} events", f"one of {length_U.max(initial=0)}")
        ts_H, ts_U = state.history_ts[bounds[0] : bounds[-1]], state.ts_B[first:last]
        oldest_U = (ts_U // SECONDS_PER_DAY - spec.history_days) * SECONDS_PER_DAY
        owner_H = np.repeat(np.arange(last - first), length_U)
        demand(bool((ts_H < ts_U[owner_H]).all()), HISTORY_TS, "events before the user's request", "later ones")
        demand(
            bool((ts_H >= oldest_U[owner_H]).all()), HISTORY_TS, f"events of the {spec.history_days} days before the request", "older ones"
        )
        newest_first = (ts_H[1:] <= ts_H[:-1]) | (owner_H[1:] != owner_H[:-1])
        demand(bool(newest_first.all()), HISTORY_TS, "histories newest first", "another order")


def _meta(reader: IndexReader) -> CrossMeta:
    folder = reader.folder / g.STATE / g.CROSS_ARRAYS
    try:
        return read_meta(folder, reader.bundle.spec)
    except CrossArraysError as error:
        raise g.IndexCorrupt(reader.manifest.id, f"{g.STATE}/{g.CROSS_ARRAYS}/{META}", expected="cross arrays", found=str(error)) from None


def check_crosses(reader: IndexReader) -> str:
    """Cross arrays are what ``dig_models.cross_files`` says: what is searched ascends, what points somewhere points into its array.

    Raises:
        IndexCorrupt: something is not so.
    """
    meta, spec = _meta(reader), reader.bundle.spec
    place = f"{g.STATE}/{g.CROSS_ARRAYS}"
    look = _Look(reader.folder / g.STATE / g.CROSS_ARRAYS, meta, Demand(reader.manifest.id, place))
    told, own = (meta.keys, meta.windows, meta.offers), (spec.u2i_keys, spec.windows, tuple(o.name for o in spec.offers))
    look.demand(told == own, META, f"keys, windows and offers {own}", f"{told}")
    in_order = meta.first_day <= meta.last_day and all(abs(day) < FAR for day in (meta.first_day, meta.last_day, meta.pop_first_day))
    look.demand(
        in_order and meta.shards > 0, META, "days in order and at least one shard", f"{meta.first_day} to {meta.last_day}, {meta.shards}"
    )
    try:
        items = look.popularity()
        events = sum(look.events(key, shard) for key in meta.keys for shard in range(meta.shards))
        offered = look.offers(spec, items)
    except CrossArraysError as error:
        raise g.IndexCorrupt(reader.manifest.id, place, expected="cross arrays", found=str(error)) from None
    return f"{events} events by {len(meta.keys)} keys, popularity of {items} items, {offered} offered rows"


@dataclass(frozen=True)
class _Look:
    """Looks at the arrays of one folder; ``demand`` names its files."""

    folder: Path
    meta: CrossMeta
    demand: Demand

    def array(self, name: str, dtype: str, shape: tuple[int | None, ...] = (None,)) -> NDArray[Any]:
        found = open_array(self.folder, self.meta, name)
        fits = len(found.shape) == len(shape) and all(want in (None, have) for have, want in zip(found.shape, shape, strict=True))
        self.demand(fits and found.dtype == dtype, f"{name}.npy", f"{dtype} {shape}", f"{found.dtype} {found.shape}")
        return found

    def popularity(self) -> int:
        """The number of items that have one."""
        first, last = self.meta.pop_first_day, self.meta.last_day
        days, items = self.array("pop.days", "int64"), self.array("pop.items", "int64")
        every = len(days) == last - first + 1 and bool((days == np.arange(len(days)) + first).all())
        self.demand(every, "pop.days.npy", f"the days {first} to {last}")
        self.demand(ascending(items), "pop.items.npy", "ascending hashes")
        for window in self.meta.windows:
            pop_TN = self.array(f"pop.{window}", "float32", (len(days), len(items)))
            self.demand(inside(pop_TN.reshape(-1), 0, np.inf), f"pop.{window}.npy", "numbers of events")
        return len(items)

    def events(self, key: str, shard: int) -> int:
        """The number of events of a key and shard."""
        wanted = dict.fromkeys(("users", "start", "keys", "group", "place"), "int64") | {"cum": "float64"}
        parts = {part: self.array(u2i_name(key, shard, part), dtype) for part, dtype in wanted.items()}
        files = {part: f"{u2i_name(key, shard, part)}.npy" for part in wanted}
        users, start, keys, group, place, cum = parts.values()
        mine = all(bool((users[a:b] % self.meta.shards == shard).all()) for a, b in chunks(len(users), PIECE))
        self.demand(ascending(users) and mine, files["users"], f"ascending hashes of users of shard {shard}")
        self.demand(ascending(keys), files["keys"], "ascending hashes")
        bounds = len(start) == len(users) + 1 and start[0] == 0 and start[-1] == len(place) and ascending(start)
        self.demand(bounds, files["start"], "bounds of users")
        codes = len(users) * len(keys)
        self.demand(ascending(group) and inside(group, 0, codes), files["group"], f"ascending pairs of user and key, below {codes}")
        self._places(files["place"], start, len(keys), group, place)
        self.demand(len(cum) == len(place) and ascending(cum) and inside(cum, 0, np.inf), files["cum"], "a running sum")
        return len(place)

    def _places(self, file: str, start: Ints, keys: int, group: Ints, place: Ints) -> None:
        """Events ascend by group and time; every group has some, they are its user's, and lie in the days of the arrays."""
        self.demand(ascending(place, strictly=False), file, "places in order")
        ends = (place[0] // self.meta.span, place[-1] // self.meta.span + 1) if len(place) else (0, 0)
        self.demand(tuple(ends) == (0, len(group)), file, f"events of the groups 0 to {len(group) - 1}", f"{ends[0]} to {ends[1] - 1}")
        seconds = (self.meta.last_day + 1 - self.meta.first_day) * SECONDS_PER_DAY
        for first, last in chunks(len(place), PIECE):
            piece = place[first : last + 1]
            group_E, second_E = np.divmod(piece, self.meta.span)
            self.demand(bool((group_E[1:] - group_E[:-1] <= 1).all()), file, "events of every group", "a group without")
            self.demand(inside(second_E, 0, seconds), file, f"events of the days {self.meta.first_day} to {self.meta.last_day}")
            user_E = np.searchsorted(start, np.arange(first, first + len(piece)), side="right") - 1
            self.demand(np.array_equal(group[group_E] // keys, user_E), file, "events of the users that the bounds give them")

    def offers(self, spec: FeatureSpec, items: int) -> int:
        """The number of rows offered."""
        keys, place = self.array("offers.keys", "int64"), self.array("offers.place", "int64")
        self.demand(ascending(keys), "offers.keys.npy", "ascending hashes")
        highest = len(keys) * max(items, 1)
        self.demand(ascending(place) and inside(place, 0, highest), "offers.place.npy", f"ascending places below {highest}")
        for offer in spec.offers:
            codes = self.array(f"offers.{offer.name}", "int16", (len(place),))
            self.demand(inside(codes, 0, len(offer.values) + 1), f"offers.{offer.name}.npy", f"codes 0 to {len(offer.values)}")
        return len(place)
