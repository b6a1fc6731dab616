"""Prefix trie of a catalogue's semantic IDs, as flat CSR arrays that can be memory-mapped.

Items are sorted by SID, so every prefix of every level is one contiguous range of the sorted items, and the children of a
node are one contiguous range of the next level. Items that share a whole SID (collisions) share a leaf.

Shape suffixes: ``N`` rows of the item table (row 0 = unknown item, never in the trie), ``M = N - 1`` sorted items, ``L``
levels, ``P`` nodes of a level, ``Q`` selected nodes. Levels are counted from 0 here; level ``i`` holds prefixes of ``i + 1`` codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dig_models.arrays import ArrayError, open_npy

Int64 = NDArray[np.int64]
ScalarT = TypeVar("ScalarT", bound=np.generic)


class CorruptTrie(ValueError):
    """Arrays that do not form a trie; the message names the array, what was found and what was expected."""


def expand_ranges(first_Q: Int64, last_Q: Int64) -> tuple[Int64, Int64]:
    """All members of the half-open ranges ``[first, last)``, one after the other.

    Returns:
        ``(member, owner)``, both ``(sum of lengths,)``: the member and the index ``q`` of its range.
    """
    length_Q = last_Q - first_Q
    owner = np.repeat(np.arange(len(length_Q), dtype=np.int64), length_Q)
    before_Q = np.cumsum(length_Q) - length_Q
    return np.arange(len(owner), dtype=np.int64) - before_Q[owner] + first_Q[owner], owner


@dataclass(frozen=True, kw_only=True)
class Trie:
    """A prefix trie.

    Attributes:
        order_M: int64 rows of the item table, sorted by SID, then row.
        token: per level int32 ``(P,)``: the last code of each prefix; siblings ascend.
        start: per level int64 ``(P + 1,)``: node ``p`` holds the sorted items ``start[p]:start[p + 1]``.
        child: per level but the last int64 ``(P + 1,)``: node ``p`` has the nodes ``child[p]:child[p + 1]`` of the next level.
    """

    order_M: Int64
    token: tuple[NDArray[np.int32], ...]
    start: tuple[Int64, ...]
    child: tuple[Int64, ...]

    @classmethod
    def build(cls, codes_NL: NDArray[np.integer]) -> Trie:
        """Trie of the codes of catalogue rows ``1..N-1``; row 0 is left out.

        Raises:
            ValueError: no items, no levels, or a negative code.
        """
        codes_NL = np.asarray(codes_NL)
        if codes_NL.ndim != 2 or codes_NL.shape[0] < 2 or codes_NL.shape[1] < 1:
            raise ValueError(f"trie: expected codes (N >= 2, L >= 1) with row 0 the unknown item, found shape {codes_NL.shape}")
        code_ML = codes_NL[1:].astype(np.int64)
        if code_ML.min() < 0:
            raise ValueError(f"trie: item row {int(np.argmin(code_ML.min(axis=1))) + 1} has the negative code {code_ML.min()}")
        order_M = np.lexsort(code_ML.T[::-1])  # stable, so rows ascend within a leaf
        code_ML = code_ML[order_M]
        differs = np.ones(len(code_ML), dtype=bool)
        differs[1:] = False
        token: list[NDArray[np.int32]] = []
        start: list[Int64] = []
        for level in range(code_ML.shape[1]):
            differs[1:] |= code_ML[1:, level] != code_ML[:-1, level]
            first_P = np.flatnonzero(differs)
            token.append(code_ML[first_P, level].astype(np.int32))
            start.append(np.append(first_P, len(code_ML)).astype(np.int64))
        child = tuple(np.searchsorted(fine, coarse).astype(np.int64) for coarse, fine in pairwise(start))
        return cls(order_M=order_M.astype(np.int64) + 1, token=tuple(token), start=tuple(start), child=child)

    @property
    def levels(self) -> int:
        """SID length L."""
        return len(self.token)

    @property
    def items(self) -> int:
        """Number of items M."""
        return len(self.order_M)

    def nodes(self, level: int) -> int:
        """Number of prefixes of ``level + 1`` codes."""
        return len(self.token[level])

    @cached_property
    def parent(self) -> tuple[Int64, ...]:
        """Per level int64 ``(P,)``: each node's parent in the level above; all 0 (the root) at level 0."""
        up = [np.repeat(np.arange(len(c) - 1, dtype=np.int64), np.diff(c)) for c in self.child]
        return (np.zeros(self.nodes(0), dtype=np.int64), *up)

    @cached_property
    def position_N(self) -> Int64:
        """Place of each item row in ``order_M``, int64 ``(N,)``; -1 for row 0."""
        out_N = np.full(self.items + 1, -1, dtype=np.int64)
        out_N[self.order_M] = np.arange(self.items)
        return out_N

    def node_of(self, level: int, position_Q: Int64) -> Int64:
        """Nodes of a level that hold the sorted items at some places, ``(Q,)``."""
        return np.searchsorted(self.start[level], position_Q, side="right") - 1

    def codes(self, level: int) -> Int64:
        """Whole prefixes of a level, int64 ``(P, level + 1)``."""
        own_P1 = self.token[level].astype(np.int64)[:, None]
        return own_P1 if level == 0 else np.concatenate([self.codes(level - 1)[self.parent[level]], own_P1], axis=1)

    def item_codes(self) -> Int64:
        """The codes that the trie was built from, int64 ``(N, L)``; row 0 is -1."""
        out_NL = np.full((self.items + 1, self.levels), -1, dtype=np.int64)
        out_NL[self.order_M] = np.repeat(self.codes(self.levels - 1), np.diff(self.start[-1]), axis=0)
        return out_NL

    def children(self, level: int, node_Q: Int64) -> tuple[Int64, Int64]:
        """Children (nodes of ``level + 1``) of nodes of ``level``, and the index ``q`` of each one's parent."""
        return expand_ranges(self.child[level][node_Q], self.child[level][node_Q + 1])

    def postings(self, leaf_Q: Int64) -> tuple[Int64, Int64]:
        """Item rows under leaves (nodes of the last level), and the index ``q`` of each one's leaf."""
        at, owner = expand_ranges(self.start[-1][leaf_Q], self.start[-1][leaf_Q + 1])
        return self.order_M[at], owner

    def alive(self, allowed_N: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
        """Per level bool ``(P,)``: whether any allowed item lies under the prefix."""
        count = np.concatenate([[0], np.cumsum(allowed_N[self.order_M])])
        return [count[s[1:]] > count[s[:-1]] for s in self.start]

    def check(self, items: int | None = None) -> None:
        """Refuse arrays that are not a trie.

        Args:
            items: number of items the catalogue has, if known.

        Raises:
            CorruptTrie: naming the array, what was found and what was expected.
        """
        if items is not None and self.items != items:
            raise CorruptTrie(f"order: {self.items} items, the catalogue has {items}")
        if not np.array_equal(np.sort(self.order_M), np.arange(1, self.items + 1)):
            raise CorruptTrie(f"order: expected every item row 1..{self.items} exactly once")
        for level in range(self.levels):
            _check_ranges(f"start{level}", self.start[level], self.nodes(level), self.items)
            if self.token[level].min(initial=0) < 0:
                raise CorruptTrie(f"token{level}: negative code {self.token[level].min()}")
        for level, child in enumerate(self.child):
            _check_ranges(f"child{level}", child, self.nodes(level), self.nodes(level + 1))
            if not np.array_equal(self.start[level + 1][child], self.start[level]):
                raise CorruptTrie(f"child{level}: children do not cover the items of their parents")
            falls = np.flatnonzero(np.diff(self.token[level + 1].astype(np.int64)) <= 0) + 1
            if not np.isin(falls, child).all():
                raise CorruptTrie(f"token{level + 1}: siblings are not in ascending order")
        if np.any(np.diff(self.token[0].astype(np.int64)) <= 0):
            raise CorruptTrie("token0: siblings are not in ascending order")

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All arrays by file stem."""
        named: dict[str, NDArray[np.generic]] = {"order": self.order_M}
        named |= {f"token{level}": array for level, array in enumerate(self.token)}
        named |= {f"start{level}": array for level, array in enumerate(self.start)}
        named |= {f"child{level}": array for level, array in enumerate(self.child)}
        return named

    def save(self, folder: Path) -> None:
        """Write ``order.npy``, ``token<i>.npy``, ``start<i>.npy`` and ``child<i>.npy`` into an existing folder."""
        for name, array in self.arrays().items():
            np.save(folder / f"{name}.npy", array)

    @classmethod
    def load(cls, folder: Path, levels: int, *, mmap: bool = True) -> Trie:
        """Read what ``save`` wrote, memory-mapped by default.

        Only the arrays' lengths are compared, which reads none of them; ``check`` looks at every value, once, when an index is verified.

        Raises:
            CorruptTrie: a missing, unreadable or truncated array, or one whose length does not fit the others.
        """

        def family(kind: str, dtype: type[ScalarT], count: int) -> tuple[NDArray[ScalarT], ...]:
            return tuple(read_array(folder / f"{kind}{level}.npy", dtype, mmap=mmap) for level in range(count))

        trie = cls(
            order_M=read_array(folder / "order.npy", np.int64, mmap=mmap),
            token=family("token", np.int32, levels),
            start=family("start", np.int64, levels),
            child=family("child", np.int64, levels - 1),
        )
        for level in range(levels):
            _check_ends(f"{folder / f'start{level}.npy'}", trie.start[level], trie.nodes(level), trie.items)
        for level, child in enumerate(trie.child):
            _check_ends(f"{folder / f'child{level}.npy'}", child, trie.nodes(level), trie.nodes(level + 1))
        return trie


def _check_ends(name: str, bounds: Int64, nodes: int, total: int) -> None:
    if len(bounds) != nodes + 1:
        raise CorruptTrie(f"{name}: {len(bounds)} bounds, expected {nodes + 1} for {nodes} nodes")
    if bounds[0] != 0 or bounds[-1] != total:
        raise CorruptTrie(f"{name}: expected bounds from 0 to {total}, found {bounds[0]} to {bounds[-1]}")


def _check_ranges(name: str, bounds: Int64, nodes: int, total: int) -> None:
    _check_ends(name, bounds, nodes, total)
    if np.any(np.diff(bounds) <= 0):
        raise CorruptTrie(f"{name}: expected ascending bounds from 0 to {total}, found {bounds[0]} to {bounds[-1]}")


def read_array(path: Path, dtype: type[ScalarT], *, ndim: int = 1, mmap: bool = True) -> NDArray[ScalarT]:
    """A ``.npy`` file of the given type and rank.

    Raises:
        CorruptTrie: the file is missing, truncated, or holds something else.
    """
    try:
        array = open_npy(path, dtype, (None,) * ndim)
    except ArrayError as error:
        raise CorruptTrie(str(error)) from None
    return array if mmap else array.copy()
