"""The items of a generation as arrays, memory-mapped: ids, names, SIDs, embeddings, static fields and keys.

Row 0 is the unknown item, rows ``1..N-1`` ascend by item hash. ``docs/reference/index-format.md`` says what each file holds.

Shape suffixes: ``N`` rows, ``M = N - 1`` items, ``K`` u2i keys, ``L`` levels, ``D`` width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dig_models.arrays import Strings, create_npy, open_npy, save_npy
from dig_models.features import FeatureSpec
from dig_models.items import UNKNOWN, ItemTable, field_column, key_column, sorted_hashes

HASH, BY_ID, SID, EMBEDDING, KEYS = "hash.npy", "by_id.npy", "sid.npy", "embedding.npy", "keys.npy"
IDS, NAMES = "id", "name"
ReadColumn = Callable[[str], pa.ChunkedArray]


def field_file(index: int) -> str:
    """File of item field number ``index`` of the feature spec; a field's name may be anything, so it names no file."""
    return f"field{index}.npy"


def spill_items(read: ReadColumn, spec: FeatureSpec, folder: Path) -> ItemTable:
    """Rows of ``item_features`` to arrays in a folder, a column at a time, and the table that is mapped from there.

    Memory holds one column, so a catalogue may be larger than that.

    Args:
        read: gives a column of ``item_features`` by name; rows in any order, the same each time.
        spec: what the fields are.
        folder: an existing folder.

    Raises:
        ValueError: two rows share an item hash.
    """
    order, hash_N = sorted_hashes(read("item_hash"))
    save_npy(folder / HASH, hash_N)
    rows = pa.array(order)
    for name, column, first in ((IDS, "item_id", ""), (NAMES, "name", UNKNOWN)):
        Strings.from_arrow(read(column).take(rows), first=first).save(folder, name)
    for index, field in enumerate(spec.item_fields):
        save_npy(folder / field_file(index), _narrow(field_column(read(field.column).take(rows), field)))
    key_KN = create_npy(folder / KEYS, np.int64, (len(spec.u2i_keys), len(hash_N)))
    for index, key in enumerate(spec.u2i_keys):
        key_KN[index] = key_column(read(f"k_{key}").take(rows))
    del key_KN
    return open_items(folder, spec)


def save_items(folder: Path, items: ItemTable, spec: FeatureSpec) -> None:
    """Write a table array by array, with the order of its ids."""
    save_npy(folder / HASH, items.hash_N)
    ids = items.id_N if isinstance(items.id_N, Strings) else Strings.of(items.id_N.tolist())
    names = items.name_N if isinstance(items.name_N, Strings) else Strings.of(items.name_N.tolist())
    ids.save(folder, IDS)
    names.save(folder, NAMES)
    save_npy(folder / BY_ID, by_id(ids))
    for index, field in enumerate(spec.item_fields):
        save_npy(folder / field_file(index), _narrow((items.numbers if field.is_number else items.fields)[field.name]))
    save_npy(folder / KEYS, items.key_KN)


def by_id(ids: Strings) -> NDArray[np.int64]:
    """Rows ``1..N-1`` in the order of the UTF-8 of their ids, so that an id is found by bisection, without a hash function."""
    order: NDArray[np.int64] = pc.sort_indices(ids.to_arrow(1)).to_numpy().astype(np.int64)
    return order + 1


def _narrow(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int32)


def open_items(folder: Path, spec: FeatureSpec, count: int | None = None) -> ItemTable:
    """The table that ``save_items`` or ``spill_items`` wrote, mapped.

    Args:
        folder: where the arrays lie.
        spec: what the fields are.
        count: rows ``N`` that there must be, if that is known.

    Raises:
        ArrayError: an array is missing, truncated or foreign.
    """
    hash_N = open_npy(folder / HASH, np.int64, (count,))
    count = len(hash_N)
    fields: dict[str, NDArray[Any]] = {}
    numbers: dict[str, NDArray[np.float32]] = {}
    for index, field in enumerate(spec.item_fields):
        path = folder / field_file(index)
        if field.is_number:
            numbers[field.name] = open_npy(path, np.float32, (count,))
        else:
            fields[field.name] = open_npy(path, np.int32, (count,) if field.kind == "categorical" else (count, None))
    return ItemTable(
        hash_N=hash_N,
        id_N=Strings.open(folder, IDS, count),
        name_N=Strings.open(folder, NAMES, count),
        fields=fields,
        numbers=numbers,
        key_KN=open_npy(folder / KEYS, np.int64, (len(spec.u2i_keys), count)),
    )


@dataclass(frozen=True, kw_only=True)
class Published:
    """The items of a generation.

    Attributes:
        items: the table.
        sid_NL: int32 SIDs, row 0 is -1.
        embedding_ND: float32 ``e_v``; a private map, as torch asks for.
        by_id_M: rows by id.
    """

    items: ItemTable
    sid_NL: NDArray[np.int32]
    embedding_ND: NDArray[np.float32]
    by_id_M: NDArray[np.int64]

    @classmethod
    def open(cls, folder: Path, spec: FeatureSpec, *, items: int, levels: int, dim: int) -> Published:
        """Map the arrays of a generation's item folder; nothing is read but headers.

        Raises:
            ArrayError: an array is missing, truncated or foreign.
        """
        return cls(
            items=open_items(folder, spec, items + 1),
            sid_NL=open_npy(folder / SID, np.int32, (items + 1, levels)),
            embedding_ND=open_npy(folder / EMBEDDING, np.float32, (items + 1, dim), private=True),
            by_id_M=open_npy(folder / BY_ID, np.int64, (items,)),
        )
