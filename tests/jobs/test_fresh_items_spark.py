"""New items get just the features that Spark would give them, whatever their values are."""

from __future__ import annotations

from pathlib import Path

import fresh_world as fw
import pyarrow.parquet as pq
import pytest
import release_world as rw
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from jobs.fresh_items import item_rows
from jobs.item_features import item_features
from jobs.lake import Lake

pytestmark = pytest.mark.slow
ODD = [
    "",
    " ",
    "Käse/Quark №5",
    "日本語 テキスト",
    "😀 ice-cream",
    "ŞIŞ İzmir",
    "ΟΔΟΣ Σ",
    "ﬁne  LIGATURE",
    "a_b-c.d|e",
    "x" * 200,
    "٣ ½ Ⅷ",
    "tab\there\u00a0nbsp",
]


def test_features_of_new_items_are_those_of_spark(spark: SparkSession, tmp_path: Path) -> None:
    config = rw.settings(tmp_path)
    fw.snapshot(config, rw.DAY, [*rw.ITEMS, *fw.NEW])
    folder = Lake(config.paths.at("lake")).folder("items", rw.DAY)
    table = pq.read_table(folder, partitioning=None)
    for name in ("product_type", "package_size", "product_category"):
        values = table.column(name).to_pylist()
        table = table.set_column(table.column_names.index(name), name, [[*ODD, *values[len(ODD) :]]])
    pq.write_table(table, tmp_path / "items.parquet")
    frame = spark.read.parquet(str(tmp_path / "items.parquet"))
    windows = {f"n_{w}": F.lit(0) for w in config.dataset.u2i.windows}
    shown = frame.select("item_id", "ds").withColumns({"items_ds": F.col("ds"), **windows})
    wanted = {r["item_id"]: r.asDict() for r in item_features(shown, frame, config.dataset).collect()}
    found = {r["item_id"]: r for r in item_rows(table, config.dataset).to_pylist()}
    assert found == {item: {key: row[key] for key in found[item]} for item, row in wanted.items()}
