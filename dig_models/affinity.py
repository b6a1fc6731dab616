"""Affinity of a user with an item he may never have met: what his history says of it, by an item-to-item matrix.

The matrix is EASE's (Steck, *Embarrassingly Shallow Autoencoders for Sparse Data*, 2019, arXiv 1905.03375, equation 8): with ``X`` the
binary users x items matrix and ``P = (X'X + ridge I)^-1``, item ``h`` speaks for item ``v`` with ``W[v, h] = -P[h, v] / P[v, v]``, and no
item for itself. Of each item only the strongest positive entries are kept. The affinity of a request with an item is
``sqrt(max(0, sum_h W[v, h]))`` over the slots of its history, a repeated item as often as it is there; the root draws in the long tail
of the sums as ``log1p`` does that of counts. Whoever fits the matrix decides which days it sees: none that an example is of.

Shape suffixes: ``E`` (user, item) events, ``N`` items of the matrix, or rows of an item table, ``X`` kept entries, ``B`` requests,
``H`` history, ``P`` pairs, ``R`` rows, ``M`` items in the order of a trie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.linalg import lapack
from scipy.sparse import csr_matrix

from dig_models.cross_files import find
from dig_models.items import ItemTable

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
BLOCK = 512
"""Items of the matrix, or requests, that are dense at a time."""
FULL = 8
"""Sums with at least one entry in so many places are looked up in a dense matrix, others among the entries: both in time and memory
of the order of the entries, however large the catalogue."""
_PARTS = {"hash_N": np.int64, "start": np.int64, "item_X": np.int32, "weight_X": np.float32}


class NeighboursError(ValueError):
    """A file of neighbours cannot be used; the message names the file, what was found and what was expected."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Which items speak for which, whatever catalogue is in force; entries of item ``i`` are ``start[i]:start[i + 1]``.

    Attributes:
        hash_N: item hashes, ascending.
        start: int64 ``(N + 1,)``.
        item_X: int32 positions in ``hash_N`` of the items that speak for it, ascending.
        weight_X: float32, positive.
    """

    hash_N: Ints
    start: Ints
    item_X: NDArray[np.int32]
    weight_X: Floats

    @classmethod
    def fit(cls, hash_N: Ints, user_E: Ints, item_E: Ints, *, ridge: float, keep: int) -> Neighbours:
        """Closed form of EASE; ``8 N^2`` bytes, some rows of ``BLOCK`` items beside them, and ``N^3`` operations.

        Args:
            hash_N: hashes of the items that the matrix is about, distinct.
            user_E: user hashes of the events, in any order and as often as they happened.
            item_E: their item hashes; events of other items are left out.
            ridge: lambda, positive.
            keep: entries kept an item.
        """
        hash_N = np.sort(hash_N)
        at_E = find(hash_N, item_E)
        known_E = at_E >= 0
        users, row_E = np.unique(user_E[known_E], return_inverse=True)
        events = csr_matrix((np.ones(len(row_E)), (row_E, at_E[known_E])), shape=(len(users), len(hash_N)))
        events.data[:] = 1.0  # the constructor adds up what happened twice
        if not events.nnz:
            none = np.zeros(0, dtype=np.int32)
            return cls(hash_N, np.zeros(len(hash_N) + 1, dtype=np.int64), none, none.astype(np.float32))
        return cls(hash_N, *_strongest(_inverse(_gram(events), ridge), keep))

    def __len__(self) -> int:
        return len(self.hash_N)

    def over(self, hash_N: Ints) -> Affinity:
        """For the rows of an item table; a row that the matrix does not know has affinity 0 and speaks for none."""
        row_of = np.full(len(self), -1, dtype=np.int64)
        order = np.argsort(hash_N, kind="stable")
        at = find(hash_N[order], self.hash_N)
        row_of[at >= 0] = order[at[at >= 0]]
        to_X, from_X = np.repeat(row_of, np.diff(self.start)), row_of[self.item_X]
        kept_X = (to_X > 0) & (from_X > 0)  # row 0 is the unknown item
        rows = len(hash_N)
        return Affinity(csr_matrix((self.weight_X[kept_X], (from_X[kept_X], to_X[kept_X])), shape=(rows, rows)))

    def save(self, path: Path, **about: str) -> None:
        """Write one file; ``about`` is kept in its head, for ``about``."""
        save_file({name: np.ascontiguousarray(getattr(self, name)) for name in _PARTS}, path, metadata=about)

    @classmethod
    def load(cls, path: Path) -> Neighbours:
        """Read what ``save`` wrote.

        Raises:
            NeighboursError: no such file, or not one of neighbours.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                parts = {name: file.get_tensor(name) for name in _PARTS}
        except (OSError, SafetensorError) as error:
            raise NeighboursError(f"{path}: cannot be read as item neighbours: {str(error).splitlines()[0]}") from None
        wrong = [name for name, kind in _PARTS.items() if parts[name].dtype != kind or parts[name].ndim != 1]
        items, entries = len(parts["hash_N"]), len(parts["item_X"])
        whole = not wrong and len(parts["start"]) == items + 1 and parts["start"][-1] == entries == len(parts["weight_X"])
        if not whole or (entries and (parts["item_X"].min() < 0 or parts["item_X"].max() >= items)):
            raise NeighboursError(f"{path}: {items} items and {entries} entries do not fit together as item neighbours; train again")
        return cls(**parts)

    @staticmethod
    def about(path: Path) -> dict[str, str]:
        """What ``save`` was told; empty if there is no whole file."""
        try:
            with safe_open(path, framework="numpy") as file:
                return dict(file.metadata() or {})
        except (OSError, SafetensorError):
            return {}


def _gram(events: csr_matrix) -> NDArray[np.float64]:
    """``X'X`` of a users x items matrix, dense; never whole as a sparse one, which would hold 12 bytes for each entry beside it."""
    items, by_item = events.shape[1], events.T.tocsr()
    gram_NN = np.empty((items, items))
    for a in range(0, items, BLOCK):
        (by_item[a : a + BLOCK] @ events).toarray(out=gram_NN[a : a + BLOCK])
    return gram_NN


def _inverse(gram_NN: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    """``(X'X + ridge I)^-1``; only where column <= row, above it lies what the factorisation left. Works in place."""
    gram_NN[np.diag_indices_from(gram_NN)] += ridge
    # A symmetric matrix read by columns is itself, so LAPACK's upper triangle is our lower one.
    factor_NN, failed = lapack.dpotrf(gram_NN.T, lower=0, clean=0, overwrite_a=1)
    inverse_NN, failed_too = lapack.dpotri(factor_NN, lower=0, overwrite_c=1)
    if failed or failed_too:
        raise np.linalg.LinAlgError(f"neighbours: the matrix with ridge {ridge} cannot be inverted; a larger ridge expected")
    out_NN: NDArray[np.float64] = inverse_NN.T
    return out_NN


def _strongest(inverse_NN: NDArray[np.float64], keep: int) -> tuple[Ints, NDArray[np.int32], Floats]:
    """The ``keep`` largest positive entries of each row of ``W``, as ``start, item_X, weight_X``."""
    items = len(inverse_NN)
    size_N, item_X, weight_X = np.zeros(items, dtype=np.int64), [], []
    for a in range(0, items, BLOCK):
        b = min(a + BLOCK, items)
        square = np.tril(inverse_NN[a:b, a:b])
        row_BN = np.hstack([inverse_NN[a:b, :a], square + np.tril(square, -1).T, inverse_NN[b:, a:b].T])
        row_BN = row_BN / -row_BN[np.arange(b - a), np.arange(a, b)][:, None]  # -1 where an item meets itself, so never kept
        if keep < items:
            np.put_along_axis(row_BN, np.argpartition(row_BN, items - keep, axis=1)[:, : items - keep], 0.0, axis=1)
        kept = csr_matrix(np.maximum(row_BN, 0.0).astype(np.float32))
        size_N[a:b] = np.diff(kept.indptr)
        item_X.append(kept.indices.astype(np.int32))
        weight_X.append(kept.data)
    return np.concatenate([[0], np.cumsum(size_N)]).astype(np.int64), np.concatenate(item_X), np.concatenate(weight_X)


@dataclass(frozen=True, eq=False)
class Affinity:
    """Neighbours among the rows of one item table; ``to_NN[h, v]`` is what history item ``h`` says for item ``v``."""

    to_NN: csr_matrix

    def catalogue(self, history_BH: Ints) -> Floats:
        """Affinity of requests with every row of the item table, float32 ``(B, N)``.

        Args:
            history_BH: item rows, 0 where a slot holds nothing or an unknown item.
        """
        found: Floats = np.sqrt(self._sums(history_BH).toarray())
        return found

    def pairs(self, history_BH: Ints, request_P: Ints, item_P: Ints) -> Floats:
        """Affinity of pairs of a row of ``history_BH`` and an item row, float32 ``(P,)``; see ``FULL`` for what it costs."""
        out_P = np.zeros(len(item_P), dtype=np.float32)
        for first in range(0, len(history_BH), BLOCK):
            mine = np.flatnonzero((request_P >= first) & (request_P < first + BLOCK))
            if len(mine):
                sums_BN = self._sums(history_BH[first : first + BLOCK])
                out_P[mine] = np.sqrt(_at(sums_BN, request_P[mine] - first, item_P[mine]))
        return out_P

    def _sums(self, history_BH: Ints) -> csr_matrix:
        """What the slots of each history say of the items that they speak for, ``(B, N)``; weights are positive, and so are their sums."""
        request_X, slot_X = np.nonzero(history_BH)
        ones_X = np.ones(len(request_X), dtype=np.float32)
        held_BN = csr_matrix((ones_X, (request_X, history_BH[request_X, slot_X])), shape=(len(history_BH), self.to_NN.shape[0]))
        return held_BN @ self.to_NN


def _at(matrix_BN: csr_matrix, row_P: Ints, column_P: Ints) -> Floats:
    """Entries of a sparse matrix, 0 where it has none, ``(P,)``."""
    if matrix_BN.nnz * FULL > matrix_BN.shape[0] * matrix_BN.shape[1]:
        full_P: Floats = matrix_BN.toarray()[row_P, column_P]
        return full_P
    matrix_BN.sort_indices()
    width = matrix_BN.shape[1]
    place_X = np.repeat(np.arange(matrix_BN.shape[0], dtype=np.int64), np.diff(matrix_BN.indptr)) * width + matrix_BN.indices
    out_P = np.zeros(len(row_P), dtype=np.float32)
    if len(place_X):
        at_P = find(place_X, row_P * width + column_P)
        out_P = np.where(at_P >= 0, matrix_BN.data[at_P], np.float32(0.0))
    return out_P


class LastAffinity:
    """The affinity over the catalogue that a model has, kept until its neighbours or the catalogue are others."""

    def __init__(self) -> None:
        self._held: tuple[Neighbours, ItemTable, Affinity] | None = None

    def of(self, neighbours: Neighbours | None, items: ItemTable | None) -> Affinity:
        """Made when first asked for.

        Raises:
            RuntimeError: one of them is missing.
        """
        if neighbours is None or items is None:
            raise RuntimeError("model.affinity is on, but the model has no neighbours or no catalogue: set model.neighbours and set_items")
        held = self._held
        if held is None or held[0] is not neighbours or held[1] is not items:
            held = self._held = neighbours, items, neighbours.over(items.hash_N)
        return held[2]


def beside(cross_PC: Floats, affinity_P: Floats) -> Floats:
    """Model crosses with the affinity as their last column, ``(P, C) -> (P, C + 1)``."""
    return np.concatenate([cross_PC, affinity_P[:, None]], axis=1)


def prefix_affinity(affinity_BN: Floats, order_M: Ints, start: Sequence[Ints]) -> Callable[[int, Ints, Ints], Floats]:
    """Mean affinity over the items of prefixes: ``(level, request_R, node_R) -> (R,)``.

    Args:
        affinity_BN: of the requests with every row of the item table.
        order_M: item rows in the order of a trie.
        start: by level, ``order_M[start[p]:start[p + 1]]`` are the items of node ``p``.
    """
    upto_BM = np.cumsum(affinity_BN[:, order_M], axis=1, dtype=np.float64)
    upto_BM = np.concatenate([np.zeros((len(affinity_BN), 1)), upto_BM], axis=1)

    def mean(level: int, request_R: Ints, node_R: Ints) -> Floats:
        first_R, last_R = start[level][node_R], start[level][node_R + 1]
        found: Floats = ((upto_BM[request_R, last_R] - upto_BM[request_R, first_R]) / (last_R - first_R)).astype(np.float32)
        return found

    return mean
