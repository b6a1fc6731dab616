"""Exact u2t: the mean of a user's model crosses over all items of a prefix, for every prefix of a trie.

In training ``u2t_l`` of a row is estimated from a catalogue item inside its prefix (DIG, taxonomy type III). At serving the
mean is known: look up the crosses of the user with the whole catalogue once and average them over each node's items.

Shape suffixes: ``N`` catalogue rows, ``C`` model crosses, ``P`` nodes of a level.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from dig_models.retrieve.trie import Trie


class PrefixMeans:
    """Averages crosses over every prefix of one trie: ``u2t(p) = 1/|I(p)| sum_{v in I(p)} c_uv``.

    ``I(p)`` are the items whose SID starts with prefix ``p``. Leaves average their items and every other node its
    children weighted by their items, as sparse products, so a user costs one pass over the catalogue.
    The weights are made when first asked for: opening an index does not read its trie.
    """

    def __init__(self, trie: Trie) -> None:
        self._trie, self._rows = trie, trie.items + 1

    @cached_property
    def _leaf(self) -> csr_matrix:
        trie, count_P = self._trie, np.diff(self._trie.start[-1])
        weight_M = (1.0 / np.repeat(count_P, count_P)).astype(np.float32)
        return csr_matrix((weight_M, trie.order_M, trie.start[-1]), shape=(len(count_P), self._rows))

    @cached_property
    def _up(self) -> list[csr_matrix]:
        count = [np.diff(s) for s in self._trie.start]
        return [
            csr_matrix(
                ((fine / np.repeat(coarse, np.diff(child))).astype(np.float32), np.arange(len(fine)), child),
                shape=(len(coarse), len(fine)),
            )
            for child, coarse, fine in zip(self._trie.child, count, count[1:], strict=False)
        ]

    def __call__(self, cross_NC: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Mean model crosses per level, float32 ``(P, C)``.

        Args:
            cross_NC: model crosses of one user, time and offer with every catalogue row; row 0 is not used.

        Raises:
            ValueError: the rows do not fit the trie.
        """
        if cross_NC.shape[0] != self._rows:
            raise ValueError(f"prefix means: crosses of {cross_NC.shape[0]} catalogue rows, the trie was built on {self._rows}")
        means: list[NDArray[np.float32]] = [self._leaf @ cross_NC]
        for up in reversed(self._up):
            means.append(up @ means[-1])
        return means[::-1]
