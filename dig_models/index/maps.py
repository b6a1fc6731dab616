"""The two SID maps of a generation as Parquet, for SQL, Spark and people: rows of a chunk of items, and row groups written in a stream.

Shape suffixes: ``N`` rows of the item table, ``L`` levels, ``P`` leaves.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dig_models.arrays import Strings
from dig_models.items import ItemTable
from dig_models.retrieve.trie import Trie

ROW_GROUP = 65_536
Codes = NDArray[np.signedinteger[Any]]
_SETTINGS: dict[str, Any] = {"version": "2.6", "compression": "zstd", "use_dictionary": True, "write_statistics": True}


def sid_column(code_ML: Codes) -> pa.Array:
    """SIDs as text, codes joined by ``-``."""
    if not len(code_ML):
        return pa.array([], pa.string())
    return pc.binary_join_element_wise(*(pc.cast(pa.array(np.ascontiguousarray(c)), pa.string()) for c in code_ML.T), "-")


def forward_rows(items: ItemTable, sid_NL: Codes, first: int, last: int) -> pa.Table:
    """Rows of ``item_to_sid``: ``item_id, item_hash, s_1 … s_L`` of items ``first .. last - 1``, counted without the unknown item."""
    rows = slice(first + 1, last + 1)
    columns = {"item_id": texts(items.id_N, rows), "item_hash": pa.array(np.ascontiguousarray(items.hash_N[rows]))}
    columns |= {f"s_{i + 1}": pa.array(np.ascontiguousarray(sid_NL[rows, i].astype(np.int32))) for i in range(sid_NL.shape[1])}
    return pa.table(columns)


def posting_rows(items: ItemTable, trie: Trie, leaf_PL: Codes, first: int, last: int) -> pa.Table:
    """Rows of ``sid_to_items``: ``sid, items`` of leaves ``first .. last - 1`` in trie order."""
    bounds = trie.start[-1][first : last + 1]
    rows = trie.order_M[int(bounds[0]) : int(bounds[-1])]
    postings = pa.ListArray.from_arrays(pa.array((bounds - bounds[0]).astype(np.int32)), texts(items.id_N, rows))
    return pa.table({"sid": sid_column(leaf_PL[first:last]), "items": postings})


def texts(values: NDArray[np.object_] | Strings, rows: slice | NDArray[np.int64]) -> pa.StringArray:
    """Some strings as an Arrow column."""
    if not isinstance(values, Strings):
        return pa.array(values[rows].tolist(), pa.string())
    part = values.to_arrow(rows.start, rows.stop) if isinstance(rows, slice) else values.take(rows).to_arrow()
    return part.cast(pa.string())


def write_groups(path: Path, groups: Iterable[pa.Table]) -> None:
    """Parquet, a row group a table; fixed settings and no foreign metadata, so that equal rows give equal bytes.

    Raises:
        ValueError: there is no table.
    """
    writer = None
    for group in groups:
        writer = writer or pq.ParquetWriter(path, group.schema, **_SETTINGS)
        writer.write_table(group, row_group_size=ROW_GROUP)
    if writer is None:
        raise ValueError(f"{path}: no rows to write")
    writer.close()
