"""Exact u2t of some prefixes at a cost that follows the user's past and the prefixes asked for, not the catalogue.

The exact u2t of a prefix is the mean of the model crosses of its items. Crosses of a user with an item are those of his profile at
the item's key values and zero where he never met them, so a mean is sparse: over key ``k`` it is ``sum_v share(p, v) cross(u, v)``
with ``share`` the part of the prefix's items that have value ``v``, a property of the catalogue. Popularity belongs to a day and
offers to an offer key: their means are made once and kept for the requests that share them. Agrees with
``prefix_means.PrefixMeans`` on the whole catalogue's crosses.

Shape suffixes: ``N`` catalogue rows, ``M`` sorted items, ``P`` nodes of a level, ``V`` values of all keys, ``T`` (node, value) pairs of a
level, ``S`` values in a profile, ``R`` rows, ``W`` raw and ``C`` model crosses, ``X`` columns of one kind, ``O`` offered items.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dig_models.cross_files import find, run_starts
from dig_models.features import SECONDS_PER_DAY, FeatureSpec
from dig_models.retrieve.prefix_means import PrefixMeans
from dig_models.retrieve.recent import Recent
from dig_models.retrieve.trie import Int64, Trie, expand_ranges

Floats = NDArray[np.float32]
Int32 = NDArray[np.int32]

TYPICAL_VALUES, TYPICAL_ROWS = 64, 4096
"""Values of a key in a profile and rows of a level, by which it is decided how shares are stored."""
DAYS_KEPT, OFFERS_KEPT = 4, 64


class Profiles(Protocol):
    """What exact u2t asks of ``dig_models.crosses.CrossStore``."""

    def profile(self, user: int, ts: int) -> list[tuple[Int64, Floats]]:
        """By u2i key: hashes of the user's values, and their raw crosses."""
        ...

    def popularity(self, ts: int) -> Floats:
        """Raw popularity of every item row."""
        ...

    def offered(self, offer: int) -> tuple[Int64, Floats]:
        """Item rows that an offer shows, and their codes."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Shares:
    """Shares of a level as lists, ``start[i]:start[i + 1]`` of each value (other: nodes), or of each node (other: values)."""

    start: Int64
    other_T: Int32
    share_T: Floats

    def of(self, rows: Int64) -> tuple[Int64, Int64]:
        """Places in ``other_T`` of some lists, and which list each belongs to."""
        return expand_ranges(self.start[rows], self.start[rows + 1])


@dataclass(frozen=True, kw_only=True)
class _Profile:
    """Model crosses of a user: ``cross_SX[i]`` with items that have value ``value_S[i]`` of key ``key_S[i]``."""

    value_S: Int64
    key_S: Int64
    cross_SX: Floats


class ShareTable:
    """Which part of each prefix's items has which key value, for every level of a trie.

    A level keeps the shares of a key by value where few prefixes have one (an item lies under one prefix of a level), or by
    prefix where few values meet in one (the departments of a leaf), whichever touches less. Made when first asked for.

    Args:
        trie: prefixes of the catalogue.
        key_KN: hashes of the items' key values, 0 = missing.
    """

    def __init__(self, trie: Trie, key_KN: Int64) -> None:
        if key_KN.shape[1] != trie.items + 1:
            raise ValueError(f"shares: key values of {key_KN.shape[1]} catalogue rows, the trie was built on {trie.items + 1}")
        self.trie, self._key_KN = trie, key_KN
        self._levels: dict[int, tuple[_Shares, _Shares]] = {}
        self._building = threading.Lock()

    @cached_property
    def _values(self) -> list[tuple[Int64, Int32]]:
        """By key: distinct hashes, ascending, and the place of each sorted item's among them (-1 = missing)."""
        out = []
        for key_N in self._key_KN:
            hashes, place_M = np.unique(key_N[self.trie.order_M], return_inverse=True)
            if len(hashes) and (missing := int(np.searchsorted(hashes, 0))) < len(hashes) and hashes[missing] == 0:
                place_M = np.where(place_M == missing, -1, place_M - (place_M > missing))
                hashes = np.delete(hashes, missing)
            out.append((hashes, place_M.astype(np.int32)))
        return out

    @cached_property
    def first_value(self) -> Int64:
        """First of all values of each key, and the number of values."""
        return np.cumsum([0, *(len(hashes) for hashes, _ in self._values)]).astype(np.int64)

    def find(self, key: int, hash_S: Int64) -> Int64:
        """Values by key and hash, ``(S,)``; -1 for those that no item has."""
        at = find(self._values[key][0], hash_S)
        return np.where(at < 0, -1, at + self.first_value[key])

    def level(self, level: int) -> tuple[_Shares, _Shares]:
        """Shares by value and by node; every (node, value) pair is in just one of them."""
        with self._building:  # the work of seconds on a large catalogue: once, whoever asks
            if level not in self._levels:
                self._levels[level] = self._build(level)
            return self._levels[level]

    def _build(self, level: int) -> tuple[_Shares, _Shares]:
        nodes, size_P = self.trie.nodes(level), np.diff(self.trie.start[level])
        node_M = np.repeat(np.arange(nodes, dtype=np.int64), size_P)
        by_value: list[tuple[Int64, Int64, Floats]] = []
        by_node: list[tuple[Int64, Int64, Floats]] = []
        for (hashes, place_M), first in zip(self._values, self.first_value, strict=False):
            known = place_M >= 0
            pair_T, count_T = np.unique(node_M[known] * max(len(hashes), 1) + place_M[known], return_counts=True)
            node_T, place_T = np.divmod(pair_T, max(len(hashes), 1))
            spread_V = np.bincount(place_T, minlength=len(hashes))
            # A value is the likelier in a profile the more items have it.
            touched = min(TYPICAL_VALUES, len(hashes)) * float(count_T @ spread_V[place_T]) / max(int(count_T.sum()), 1)
            kept = by_value if touched <= min(nodes, TYPICAL_ROWS) * len(pair_T) / nodes else by_node
            kept.append((node_T, place_T + first, (count_T / size_P[node_T]).astype(np.float32)))
        return self._lists(by_value, int(self.first_value[-1]), of_value=True), self._lists(by_node, nodes, of_value=False)

    @staticmethod
    def _lists(parts: list[tuple[Int64, Int64, Floats]], rows: int, *, of_value: bool) -> _Shares:
        empty = np.zeros(0, dtype=np.int64)
        node_T, value_T = (np.concatenate([empty, *(p[i] for p in parts)]) for i in (0, 1))
        share_T = np.concatenate([empty.astype(np.float32), *(p[2] for p in parts)])
        row_T, other_T = (value_T, node_T) if of_value else (node_T, value_T)
        order = np.argsort(row_T, kind="stable")
        start = np.concatenate([[0], np.cumsum(np.bincount(row_T, minlength=rows))]).astype(np.int64)
        return _Shares(start=start, other_T=other_T[order].astype(np.int32), share_T=share_T[order])


class _Scratch(threading.local):
    """Room that one thread works in; gone with what it belongs to or with the thread.

    Attributes:
        place: by level, where in a list of nodes each node stands, int32 ``(P,)``.
        value_V: zeros but while one profile is spread over them, int32 ``(V,)``.
    """

    def __init__(self) -> None:
        self.place: dict[int, Int32] = {}
        self.value_V: Int32 = np.zeros(0, dtype=np.int32)


class ExactU2t:
    """Exact u2t of (request, prefix) rows.

    Threads share what belongs to the catalogue, a day or an offer; each has room of its own, four bytes for a node and for a key value.

    Args:
        trie: prefixes of the catalogue.
        key_KN: hashes of the items' key values (``ItemTable.key_KN``).
        spec: its transform makes model crosses.
        store: profiles, popularity and offers.
    """

    def __init__(self, trie: Trie, key_KN: Int64, spec: FeatureSpec, store: Profiles) -> None:
        self.trie, self.spec, self.store = trie, spec, store
        self.shares = ShareTable(trie, key_KN)
        self._step = len(spec.windows) + 1
        self._head = len(spec.u2i_keys) * self._step
        self._tail = self._head + len(spec.windows)
        self._popular = Recent[int, list[Floats]](DAYS_KEPT)
        self._shown = Recent[int, list[tuple[Int64, Floats]]](OFFERS_KEPT)
        self._scratch = _Scratch()

    def of(self, user_G: Int64, ts_G: Int64, offer_G: Int64) -> Callable[[int, Int64, Int64], Floats]:
        """u2t of some requests, for ``PrefixScorer``: ``(level, request_R, node_R) -> (R, C)``; nodes ascend within a request."""
        known: dict[int, _Profile] = {}

        def u2t(level: int, request_R: Int64, node_R: Int64) -> Floats:
            out_RC = np.zeros((len(node_R), self.spec.cross_width), dtype=np.float32)
            bounds = np.searchsorted(request_R, np.arange(len(user_G) + 1))
            for g in np.flatnonzero(np.diff(bounds)).tolist():
                rows = slice(int(bounds[g]), int(bounds[g + 1]))
                if g not in known:
                    known[g] = self._profile(int(user_G[g]), int(ts_G[g]))
                self._met(level, known[g], node_R[rows], out_RC[rows, : self._head])
                out_RC[rows, self._head : self._tail] = self._popularity(int(ts_G[g]))[level][node_R[rows]]
                if self.spec.offers:
                    shown_O, mean_OX = self._offered(int(offer_G[g]))[level]
                    at_R = np.searchsorted(shown_O, node_R[rows])
                    at_R[shown_O[at_R] != node_R[rows]] = len(shown_O) - 1
                    out_RC[rows, self._tail :] = mean_OX[at_R]
            return out_RC

        return u2t

    def _profile(self, user: int, ts: int) -> _Profile:
        found = self.store.profile(user, ts)
        values = [self.shares.find(k, hash_S) for k, (hash_S, _) in enumerate(found)]
        value_S, key_S = np.concatenate(values), np.repeat(np.arange(len(found)), [len(v) for v in values])
        raw_SW = np.zeros((len(value_S), self.spec.cross_width_raw), dtype=np.float32)
        at = 0
        for k, (_, raw_SX) in enumerate(found):
            raw_SW[at : at + len(raw_SX), k * self._step : (k + 1) * self._step] = raw_SX
            at += len(raw_SX)
        held = np.flatnonzero(value_S >= 0)
        value_S, key_S = value_S[held], key_S[held]
        by_key_SKX = self.spec.transform(raw_SW[held])[:, : self._head].reshape(len(held), len(found), self._step)
        return _Profile(value_S=value_S, key_S=key_S, cross_SX=by_key_SKX[np.arange(len(held)), key_S])

    def _met(self, level: int, profile: _Profile, node_R: Int64, out_RX: Floats) -> None:
        """Means of the u2i crosses of one user into ``out_RX``."""
        by_value, by_node = self.shares.level(level)
        at, owner = by_value.of(profile.value_S)
        place_P = self._place(level)
        place_P[node_R] = np.arange(len(node_R))
        node_T = by_value.other_T[at]
        row = place_P[node_T].astype(np.int64)  # what an earlier call left behind is told by the node that it leads to
        row[row >= len(node_R)] = 0
        hit = np.flatnonzero(node_R[row] == node_T)
        row, source, share = row[hit], owner[hit], by_value.share_T[at[hit]]
        if len(by_node.other_T):
            at, owner = by_node.of(node_R)
            value_V = self._values()
            value_V[profile.value_S] = np.arange(1, len(profile.value_S) + 1)
            found = value_V[by_node.other_T[at]]
            value_V[profile.value_S] = 0
            hit = np.flatnonzero(found)
            row, source = np.concatenate([row, owner[hit]]), np.concatenate([source, found[hit] - 1])
            share = np.concatenate([share, by_node.share_T[at[hit]]])
        keys = len(self.spec.u2i_keys)
        mean_TX = torch.zeros(len(node_R) * keys, self._step)
        part_TX = torch.from_numpy(profile.cross_SX[source] * share[:, None])
        mean_TX.index_add_(0, torch.from_numpy(row * keys + profile.key_S[source]), part_TX)
        out_RX[:] = mean_TX.numpy().reshape(len(node_R), -1)

    def _place(self, level: int) -> Int32:
        """Room of this thread for where in a list of nodes each node of a level stands."""
        place = self._scratch.place
        if level not in place:
            place[level] = np.zeros(self.trie.nodes(level), dtype=np.int32)
        return place[level]

    def _values(self) -> Int32:
        """Zeros of this thread, one for each key value; whoever writes into them leaves zeros behind."""
        scratch, values = self._scratch, int(self.shares.first_value[-1])
        if len(scratch.value_V) != values:
            scratch.value_V = np.zeros(values, dtype=np.int32)
        return scratch.value_V

    @cached_property
    def _means(self) -> PrefixMeans:
        return PrefixMeans(self.trie)

    def _popularity(self, ts: int) -> list[Floats]:
        """Mean model popularity per level ``(P, windows)``, one set a day."""

        def make() -> list[Floats]:
            pop_NX = self.store.popularity(ts)
            raw_NW = np.zeros((len(pop_NX), self.spec.cross_width_raw), dtype=np.float32)
            raw_NW[:, self._head : self._tail] = pop_NX
            return self._means(np.ascontiguousarray(self.spec.transform(raw_NW)[:, self._head : self._tail]))

        return self._popular.get(ts // SECONDS_PER_DAY, make)

    def _offered(self, offer: int) -> list[tuple[Int64, Floats]]:
        """Per level: the nodes under which something is offered, ascending, and their mean offers; last "no node" and zeros."""

        def make() -> list[tuple[Int64, Floats]]:
            row_O, code_OX = self.store.offered(offer)
            raw_OW = np.zeros((len(row_O), self.spec.cross_width_raw), dtype=np.float32)
            raw_OW[:, self._tail :] = code_OX
            position_O = self.trie.position_N[row_O]
            order = np.argsort(position_O)
            model_OX = self.spec.transform(raw_OW[order])[:, self._tail :]
            return [self._shown_at(level, position_O[order], model_OX) for level in range(self.trie.levels)]

        return self._shown.get(offer, make)

    def _shown_at(self, level: int, position_O: Int64, model_OX: Floats) -> tuple[Int64, Floats]:
        node_O = self.trie.node_of(level, position_O)
        first = run_starts(node_O)
        shown = np.append(node_O[first], np.iinfo(np.int64).max)
        mean_OX = np.zeros((len(shown), model_OX.shape[1]), dtype=np.float32)
        if len(first):
            size = self.trie.start[level][shown[:-1] + 1] - self.trie.start[level][shown[:-1]]
            mean_OX[:-1] = np.add.reduceat(model_OX, first, axis=0) / size[:, None]
        return shown, mean_OX
