"""The item table: the catalogue a model is trained, evaluated or published on, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dig_models.features import FeatureSpec


@dataclass(frozen=True, kw_only=True)
class ItemTable:
    """Static side of all items; row 0 is the unknown item (all buckets 0), rows ``1..N-1`` are sorted by hash.

    Attributes:
        hash_N: int64 item hashes; ``hash_N[0]`` is the smallest int64 and never a real item's.
        id_N: item ids (object), ``""`` in row 0.
        name_N: display names (object).
        fields: per categorical field int64 ``(N,)``; per multi-valued or text field int64 ``(N, width)`` padded with 0.
        numbers: per numeric field float32 ``(N,)``, 0 where missing.
        key_KN: int64 hashes of the u2i key values ``(K, N)``, in ``spec.u2i_keys`` order; 0 = missing.
    """

    hash_N: NDArray[np.int64]
    id_N: NDArray[np.object_]
    name_N: NDArray[np.object_]
    fields: dict[str, NDArray[np.int64]]
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
        hash_M = table.column("item_hash").to_numpy().astype(np.int64)
        order = np.argsort(hash_M, kind="stable")
        table, hash_M = table.take(pa.array(order)), hash_M[order]
        same = np.flatnonzero(hash_M[1:] == hash_M[:-1])
        if len(same):
            raise ValueError(f"item_features: item_hash {hash_M[same[0]]} stands for two items; item ids must be distinct")
        fields: dict[str, NDArray[np.int64]] = {}
        numbers: dict[str, NDArray[np.float32]] = {}
        for field in spec.item_fields:
            column = table.column(field.column).combine_chunks()
            if field.kind == "numeric":
                raw = column.to_numpy(zero_copy_only=False).astype(np.float32)
                numbers[field.name] = np.concatenate([[np.float32(0)], np.nan_to_num(raw)]).astype(np.float32)
            elif field.kind in ("multi", "text"):
                fields[field.name] = _padded(column)
            else:
                fields[field.name] = np.concatenate([[0], column.to_numpy(zero_copy_only=False)]).astype(np.int64)
        keys = [np.concatenate([[0], table.column(f"k_{k}").to_numpy()]).astype(np.int64) for k in spec.u2i_keys]
        return cls(
            hash_N=np.concatenate([[np.iinfo(np.int64).min], hash_M]),
            id_N=np.array(["", *table.column("item_id").to_pylist()], dtype=object),
            name_N=np.array(["(unknown)", *table.column("name").to_pylist()], dtype=object),
            fields=fields,
            numbers=numbers,
            key_KN=np.stack(keys),
        )

    def rows(self, hash_P: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of item hashes ``(P,) -> (P,)``; 0 for items that are not in the table."""
        at = np.searchsorted(self.hash_N, hash_P)
        at[at == len(self.hash_N)] = 0
        return np.where(self.hash_N[at] == hash_P, at, 0)


def _padded(column: pa.Array) -> NDArray[np.int64]:
    """Lists of buckets to ``(rows + 1, longest)``, row 0 and the tails 0."""
    offsets = column.offsets.to_numpy()
    values = column.values.to_numpy(zero_copy_only=False)
    lengths = np.diff(offsets)
    out = np.zeros((len(lengths) + 1, max(int(lengths.max(initial=0)), 1)), dtype=np.int64)
    mask = np.arange(out.shape[1])[None, :] < lengths[:, None]
    out[1:][mask] = values[offsets[0] : offsets[-1]]
    return out
