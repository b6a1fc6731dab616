"""Semantic IDs by item, whatever catalogue is in force: what a model remembers of items that it does not show just now.

Shape suffixes: ``X`` items known, ``N`` items asked for, ``L`` levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dig_models.features import hash_id

Ints = NDArray[np.int64]


class SidsError(ValueError):
    """A file of SIDs cannot be used; the message names the file, what was found and what was expected."""


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


def read_sids(path: Path, *, levels: int, codes: int) -> KnownSids:
    """SIDs made beforehand, by whatever tool: a Parquet file with ``item_id`` (text) and ``s_1 .. s_L`` (integers from 0).

    Args:
        path: the file; further columns are left alone.
        levels: SID length that the model has.
        codes: size K of its codebooks.

    Raises:
        SidsError: no such file, columns that are missing or of another type, SIDs of another length, codes out of range, an item twice.
    """
    try:
        schema = pq.read_schema(path)
        found = sum(name.startswith("s_") and name[2:].isdigit() for name in schema.names)
        names = [f"s_{level + 1}" for level in range(levels)]
        if "item_id" not in schema.names or found != levels or not set(names) <= set(schema.names):
            raise SidsError(
                f"{path}: columns item_id and s_1 .. s_{levels} expected, found {', '.join(schema.names)}; "
                f"for SIDs of {found} codes set model.levels={found}"
            )
        wrong = [n for n in names if not pa.types.is_integer(schema.field(n).type)]
        if wrong or not (pa.types.is_string(schema.field("item_id").type) or pa.types.is_large_string(schema.field("item_id").type)):
            name = wrong[0] if wrong else "item_id"
            raise SidsError(f"{path}: column {name} is of type {schema.field(name).type}; item_id must be text and codes whole numbers")
        table = pq.read_table(path, columns=["item_id", *names])
    except (OSError, pa.ArrowException) as error:
        raise SidsError(f"{path}: no Parquet file of SIDs ({str(error).splitlines()[0]})") from None
    if any(table.column(name).null_count for name in table.column_names) or not len(table):
        raise SidsError(f"{path}: {len(table)} rows, with empty cells or none at all; every row must name an item and all its codes")
    code_ML = np.stack([table.column(name).to_numpy().astype(np.int64) for name in names], axis=1)
    if code_ML.min() < 0 or code_ML.max() >= codes:
        raise SidsError(
            f"{path}: codes from {code_ML.min()} to {code_ML.max()}, the model's codebooks have codes 0..{codes - 1}; "
            f"set model.codes={int(code_ML.max()) + 1} or make shorter codebooks"
        )
    try:
        return KnownSids.of(np.array([hash_id(item) for item in table.column("item_id").to_pylist()], dtype=np.int64), code_ML)
    except ValueError as error:
        raise SidsError(f"{path}: {error}") from None


def write_sids(path: Path, item_ids: Sequence[str], code_ML: NDArray[np.signedinteger[Any]]) -> None:
    """Write SIDs as ``read_sids`` reads them."""
    codes = {f"s_{level + 1}": pa.array(code_ML[:, level].astype(np.int32)) for level in range(code_ML.shape[1])}
    pq.write_table(pa.table({"item_id": pa.array(item_ids, pa.string()), **codes}), path)
