"""Semantic IDs by item, whatever catalogue is in force: what a model remembers of items that it does not show just now.

Shape suffixes: ``X`` items known, ``N`` items asked for, ``L`` levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class KnownSids:
    """SIDs of items.

    Attributes:
        hash_X: distinct item hashes, ascending.
        code_XL: their codes, all of them known.
    """

    hash_X: Ints
    code_XL: NDArray[np.signedinteger[Any]]

    @classmethod
    def none(cls, levels: int) -> KnownSids:
        """Of no item."""
        return cls(np.zeros(0, np.int64), np.zeros((0, levels), np.int64))

    @classmethod
    def of(cls, hash_M: Ints, code_ML: NDArray[np.signedinteger[Any]]) -> KnownSids:
        """Of items in any order, each at most once; one whose codes are -1 is not known.

        Raises:
            ValueError: an item is there twice.
        """
        known_M = (code_ML >= 0).all(axis=1)
        hash_X, code_XL = hash_M[known_M].astype(np.int64), code_ML[known_M].astype(np.int64)
        order = np.argsort(hash_X, kind="stable")
        hash_X, code_XL = hash_X[order], code_XL[order]
        twice = np.flatnonzero(hash_X[1:] == hash_X[:-1])
        if len(twice):
            raise ValueError(f"item hash {hash_X[twice[0]]} has two semantic IDs, expected one")
        return cls(hash_X, code_XL)

    def __len__(self) -> int:
        return len(self.hash_X)

    @property
    def levels(self) -> int:
        """SID length L."""
        return int(self.code_XL.shape[1])

    def find(self, hash_N: Ints) -> Ints:
        """Codes of items, ``(N,) -> (N, L)``; -1 for those not known."""
        code_NL = np.full((len(hash_N), self.levels), -1, dtype=np.int64)
        if len(self):
            at_N = np.minimum(np.searchsorted(self.hash_X, hash_N), len(self) - 1)
            there_N = self.hash_X[at_N] == hash_N
            code_NL[there_N] = self.code_XL[at_N[there_N]]
        return code_NL

    def without(self, hash_N: Ints) -> KnownSids:
        """All but some items."""
        stays_X = ~np.isin(self.hash_X, hash_N)
        return KnownSids(self.hash_X[stays_X], self.code_XL[stays_X])

    def over(self, other: KnownSids) -> KnownSids:
        """These, and of the other those items that are not among these."""
        rest = other.without(self.hash_X)
        return KnownSids.of(np.concatenate([self.hash_X, rest.hash_X]), np.concatenate([self.code_XL, rest.code_XL]))
