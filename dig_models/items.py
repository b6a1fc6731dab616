"""The item table: the catalogue a model is trained, evaluated or published on, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dig_models.arrays import Strings
from dig_models.features import FeatureSpec, FieldSpec

UNKNOWN = "(unknown)"


@dataclass(frozen=True, kw_only=True)
class ItemTable:
    """Static side of all items; row 0 is the unknown item (all buckets 0), rows ``1..N-1`` are sorted by hash.

    Attributes:
        hash_N: int64 item hashes; ``hash_N[0]`` is the smallest int64 and never a real item's.
        id_N: item ids, ``""`` in row 0; ``name_N`` display names. Object arrays, or ``Strings``, which may be memory-mapped.
        fields: per categorical field integers ``(N,)``; per multi-valued or text field ``(N, width)`` padded with 0.
        numbers: per numeric field float32 ``(N,)``, 0 where missing.
        key_KN: int64 hashes of the u2i key values ``(K, N)``, in ``spec.u2i_keys`` order; 0 = missing.
    """

    hash_N: NDArray[np.int64]
    id_N: NDArray[np.object_] | Strings
    name_N: NDArray[np.object_] | Strings
    fields: dict[str, NDArray[Any]]
    numbers: dict[str, NDArray[np.float32]]
    key_KN: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.hash_N)

    @classmethod
    def from_arrow(cls, table: pa.Table, spec: FeatureSpec) -> ItemTable:
        """From rows of ``item_features`` (any order, distinct ``item_hash``).

        Raises:
            ValueError: two rows share an item hash.
        """
        order, hash_N = sorted_hashes(table.column("item_hash"))
        table = table.take(pa.array(order))
        columns = {field.name: field_column(table.column(field.column), field) for field in spec.item_fields}
        numeric = {field.name for field in spec.item_fields if field.is_number}
        return cls(
            hash_N=hash_N,
            id_N=Strings.from_arrow(table.column("item_id"), first=""),
            name_N=Strings.from_arrow(table.column("name"), first=UNKNOWN),
            fields={name: column for name, column in columns.items() if name not in numeric},
            numbers={name: column for name, column in columns.items() if name in numeric},
            key_KN=np.stack([key_column(table.column(f"k_{k}")) for k in spec.u2i_keys]),
        )

    def rows(self, hash_P: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of item hashes ``(P,) -> (P,)``; 0 for items that are not in the table."""
        at = np.searchsorted(self.hash_N, hash_P)
        at[at == len(self.hash_N)] = 0
        return np.where(self.hash_N[at] == hash_P, at, 0)


def sorted_hashes(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Order of the rows of ``item_features`` by item hash, and ``hash_N``.

    Raises:
        ValueError: two rows share an item hash.
    """
    hash_M = column.to_numpy().astype(np.int64)
    order = np.argsort(hash_M, kind="stable")
    hash_N = np.concatenate([[np.iinfo(np.int64).min], hash_M[order]])
    same = np.flatnonzero(hash_N[2:] == hash_N[1:-1])
    if len(same):
        raise ValueError(f"item_features: item_hash {hash_N[1 + same[0]]} stands for two items; item ids must be distinct")
    return order, hash_N


def field_column(column: pa.ChunkedArray, field: FieldSpec) -> NDArray[Any]:
    """A column of ``item_features`` (rows in order) as the array of a field, row 0 included."""
    whole = column.combine_chunks()
    if field.is_number:
        raw = whole.to_numpy(zero_copy_only=False).astype(np.float32)
        return np.concatenate([[np.float32(0)], np.nan_to_num(raw)]).astype(np.float32)
    if field.kind in ("multi", "text"):
        return _padded(whole)
    return np.concatenate([[0], whole.to_numpy(zero_copy_only=False)]).astype(np.int64)


def key_column(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """A column of key hashes (rows in order), row 0 included."""
    return np.concatenate([[0], column.to_numpy()]).astype(np.int64)


def _padded(column: pa.Array) -> NDArray[np.int64]:
    """Lists of buckets to ``(rows + 1, longest)``, row 0 and the tails 0."""
    offsets = column.offsets.to_numpy()
    values = column.values.to_numpy(zero_copy_only=False)
    lengths = np.diff(offsets)
    out = np.zeros((len(lengths) + 1, max(int(lengths.max(initial=0)), 1)), dtype=np.int64)
    mask = np.arange(out.shape[1])[None, :] < lengths[:, None]
    out[1:][mask] = values[offsets[0] : offsets[-1]]
    return out
