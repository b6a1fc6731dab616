"""The user state of a generation as arrays, memory-mapped: one request a user, by user id.

Shape suffixes: ``U`` users, ``F`` user and context fields, ``H`` history entries of all users.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dig_models.arrays import Strings, open_npy, save_npy
from dig_models.features import FeatureSpec
from dig_models.items import ItemTable
from dig_models.train.data import RequestTable

USERS = "user"
HASHES, TIMES, OFFERS, FIELDS = "user_hash.npy", "ts.npy", "offer.npy", "fields.npy"
START, HISTORY_HASH, HISTORY_ITEM, HISTORY_TS = "history.start.npy", "history.hash.npy", "history.item.npy", "history.ts.npy"


def save_state(folder: Path, state: pa.Table, spec: FeatureSpec, items: ItemTable) -> int:
    """Write rows of ``user_state`` into an existing folder; returns the number of users.

    Raises:
        ValueError: a column is missing, or two rows are about one user.
    """
    table = state.sort_by("user_id")
    ids = Strings.from_arrow(table.column("user_id"))
    requests = RequestTable.from_arrow(table, spec, items)
    hashes = history_hashes(table)
    ids.save(folder, USERS)
    arrays = {
        HASHES: requests.user_B,
        TIMES: requests.ts_B,
        OFFERS: requests.offer_B,
        FIELDS: requests.user_BF,
        START: requests.history_start,
        HISTORY_HASH: hashes,
        HISTORY_TS: requests.history_ts,
    }
    for name, array in arrays.items():
        save_npy(folder / name, array.astype(np.int64))
    save_history_items(folder, hashes, items)
    return len(ids)


def history_hashes(table: pa.Table) -> NDArray[np.int64]:
    """Item hashes of all histories, one after the other, int64 ``(H,)``."""
    parts = [np.asarray(chunk.flatten().to_numpy(zero_copy_only=False), dtype=np.int64) for chunk in table.column("hist_item").chunks]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def save_history_items(folder: Path, hash_H: NDArray[np.int64], items: ItemTable) -> None:
    """Rows of the item table of all histories: the one array of the state that follows the catalogue."""
    save_npy(folder / HISTORY_ITEM, items.rows(hash_H).astype(np.int64))


def open_state(folder: Path, spec: FeatureSpec, users: int) -> tuple[RequestTable, Strings]:
    """Map what ``save_state`` wrote; user ids ascend by their UTF-8.

    Raises:
        ArrayError: an array is missing, truncated or foreign.
    """
    ids = Strings.open(folder, USERS, users)
    history_item = open_npy(folder / HISTORY_ITEM, np.int64, (None,))
    fields = len(spec.user_fields) + len(spec.context_fields)
    request = RequestTable(
        user_B=open_npy(folder / HASHES, np.int64, (users,)),
        ts_B=open_npy(folder / TIMES, np.int64, (users,)),
        offer_B=open_npy(folder / OFFERS, np.int64, (users,)),
        user_BF=open_npy(folder / FIELDS, np.int64, (users, fields)),
        history_start=open_npy(folder / START, np.int64, (users + 1,)),
        history_item=history_item,
        history_ts=open_npy(folder / HISTORY_TS, np.int64, (len(history_item),)),
        row_start=np.zeros(users + 1, dtype=np.int64),
        item_R=np.zeros(0, dtype=np.int64),
        label_R=np.zeros(0, dtype=np.int8),
        source_R=np.zeros(0, dtype=np.int8),
        weight_R=np.zeros(0, dtype=np.float32),
        cross_RW=np.zeros((0, spec.cross_width_raw), dtype=np.float32),
    )
    return request, ids


def state_table(folder: Path, spec: FeatureSpec, users: int) -> pa.Table:
    """The state as rows of ``user_state``, as far as a model reads them: what ``save_state`` takes.

    Raises:
        ArrayError: an array is missing, truncated or foreign.
    """
    request, ids = open_state(folder, spec, users)
    hashes = open_npy(folder / HISTORY_HASH, np.int64, (len(request.history_ts),))
    start = pa.array(request.history_start.astype(np.int32))
    fields = [*(f"u_{f.name}" for f in spec.user_fields), *(f"c_{f.name}" for f in spec.context_fields)]
    columns = {"user_id": ids.to_arrow().cast(pa.string())}
    columns |= {"user_hash": pa.array(request.user_B), "ts": pa.array(request.ts_B), "offer_hash": pa.array(request.offer_B)}
    columns |= {name: pa.array(np.ascontiguousarray(request.user_BF[:, at])) for at, name in enumerate(fields)}
    columns |= {"hist_item": pa.ListArray.from_arrays(start, pa.array(hashes))}
    columns |= {"hist_ts": pa.ListArray.from_arrays(start, pa.array(request.history_ts))}
    return pa.table(columns)
