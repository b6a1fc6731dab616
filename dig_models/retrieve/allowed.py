"""Which items a request may be answered with: masks over the catalogue, and what a single user must not get.

Nothing of the trie is rebuilt. A mask is counted once into the items that it leaves under every prefix and may then serve any
number of requests; a user's exclusions are a short list, and only the prefixes that they empty are looked at.

Shape suffixes: ``N`` catalogue rows, ``P`` nodes of a level, ``R`` rows, ``X`` excluded items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dig_models.retrieve.trie import Int64, Trie

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class AllowedItems:
    """Items that may be returned: in stock, of a region or category, fresh; combine conditions with ``&`` before ``of``.

    Attributes:
        allowed_N: by item row; row 0 is ignored.
        count: per level int64 ``(P,)``: allowed items under each node.
    """

    allowed_N: Mask
    count: tuple[Int64, ...]

    @classmethod
    def of(cls, trie: Trie, allowed_N: Mask) -> AllowedItems:
        """Count a mask into a trie, one pass over the catalogue.

        Raises:
            ValueError: not a bool for each row of the catalogue.
        """
        allowed_N = np.asarray(allowed_N)
        if allowed_N.shape != (trie.items + 1,) or allowed_N.dtype != np.bool_:
            raise ValueError(
                f"allowed items: {allowed_N.dtype} {allowed_N.shape} found; expected bool ({trie.items + 1},), "
                "one for each row of the item table (row 0 is the unknown item)"
            )
        before = np.concatenate([[0], np.cumsum(allowed_N[trie.order_M])])
        return cls(allowed_N=allowed_N, count=tuple(before[start[1:]] - before[start[:-1]] for start in trie.start))


class RequestFilter:
    """What one request may be answered with: an optional mask, less some items.

    Args:
        trie: the catalogue's prefixes.
        allowed: the mask, if there is one.
        excluded_X: item rows that must not be returned; 0 (the unknown item) is ignored.

    Raises:
        ValueError: an excluded row that the catalogue does not have.
    """

    def __init__(self, trie: Trie, allowed: AllowedItems | None, excluded_X: Int64) -> None:
        self._trie, self._allowed = trie, allowed
        excluded_X = np.unique(np.asarray(excluded_X, dtype=np.int64))
        if len(excluded_X) and (excluded_X[0] < 0 or excluded_X[-1] > trie.items):
            wrong = excluded_X[0] if excluded_X[0] < 0 else excluded_X[-1]
            raise ValueError(f"excluded items: row {wrong} found; rows of the item table are 1..{trie.items}")
        excluded_X = excluded_X[excluded_X > 0]
        self._excluded_X = excluded_X if allowed is None else excluded_X[allowed.allowed_N[excluded_X]]

    def alive(self, level: int, node_R: Int64) -> Mask:
        """Whether an item that may be returned lies under each node, ``(R,)``."""
        trie, count = self._trie, None if self._allowed is None else self._allowed.count[level]
        alive_R = np.ones(len(node_R), dtype=bool) if count is None else count[node_R] > 0
        if len(self._excluded_X):
            node, number = np.unique(trie.node_of(level, trie.position_N[self._excluded_X]), return_counts=True)
            whole = trie.start[level][node + 1] - trie.start[level][node] if count is None else count[node]
            emptied = node[number == whole]
            if len(emptied):
                at = np.searchsorted(emptied, node_R)
                at[at == len(emptied)] = 0
                alive_R &= emptied[at] != node_R
        return alive_R

    def items(self, item_R: Int64) -> Mask:
        """Whether each item may be returned, ``(R,)``."""
        allowed_R = np.ones(len(item_R), dtype=bool) if self._allowed is None else self._allowed.allowed_N[item_R]
        return allowed_R & ~np.isin(item_R, self._excluded_X)
