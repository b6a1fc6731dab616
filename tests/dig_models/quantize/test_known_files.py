"""Files of SIDs made beforehand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dig_models.features import hash_id
from dig_models.quantize.known import SidsError, read_sids, write_sids

IDS = ["a", "b", "c"]
CODES = np.array([[0, 1], [3, 2], [0, 1]])


def test_what_is_written_is_read_by_item_id(tmp_path: Path) -> None:
    write_sids(tmp_path / "sids.parquet", IDS, CODES)
    found = read_sids(tmp_path / "sids.parquet", levels=2, codes=4)
    assert found.find(np.array([hash_id("c"), hash_id("x"), hash_id("b")])).tolist() == [[0, 1], [-1, -1], [3, 2]]


def table(**columns: object) -> pa.Table:
    return pa.table({"item_id": IDS, "s_1": [0, 3, 0], "s_2": [1, 2, 1]} | columns)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (table().drop(["s_2"]), r"columns item_id and s_1 .. s_2 expected, found item_id, s_1; for SIDs of 1 codes set model.levels=1"),
        (table(s_3=[0, 0, 0]), "for SIDs of 3 codes set model.levels=3"),
        (table().drop(["item_id"]), "columns item_id and s_1 .. s_2 expected"),
        (table(s_1=[0.0, 1.0, 2.0]), "column s_1 is of type double"),
        (table(item_id=[1, 2, 3]), "column item_id is of type int64"),
        (table(s_2=[1, None, 1]), "empty cells"),
        (table().slice(0, 0), "0 rows"),
        (table(s_1=[0, 4, 0]), r"codes from 0 to 4, the model's codebooks have codes 0..3; set model.codes=5"),
        (table(s_1=[0, -1, 0]), "codes from -1 to 2"),
        (table(item_id=["a", "b", "a"]), "has two semantic IDs"),
    ],
)
def test_what_cannot_be_used_is_named_with_what_was_expected(tmp_path: Path, rows: pa.Table, message: str) -> None:
    path = tmp_path / "sids.parquet"
    pq.write_table(rows, path)
    with pytest.raises(SidsError, match=message) as error:
        read_sids(path, levels=2, codes=4)
    assert str(path) in str(error.value)


def test_a_file_that_is_missing_or_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("item_id,s_1\n")
    for name in ("nothing", "text"):
        with pytest.raises(SidsError, match=f"{name}: no Parquet file of SIDs"):
            read_sids(tmp_path / name, levels=1, codes=4)
