"""The lake: commits are whole, readers get clear errors, reruns change nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from jobs import lake as lake_module
from jobs.entry import JobError
from jobs.lake import CorruptPartition, Inputs, Lake, Marker, MissingPartition, SchemaMismatch, code_digest, contents

DAYS = [date(2024, 3, d) for d in (1, 2, 3)]
SCHEMA = "k string, v double, ds string"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def test_a_lake_is_of_the_data_set_that_was_built_there_first(lake: Lake) -> None:
    assert not lake.belongs_to("shop"), "nobody's yet"
    lake.claim("shop")
    lake.claim("shop")
    assert lake.belongs_to("shop")
    for ask in (lake.claim, lake.belongs_to):
        with pytest.raises(JobError, match=r"holds the data set shop, and the settings choose grocer: .*paths\.home"):
            ask("grocer")
    assert lake.belongs_to("shop")


def put(lake: Lake, day: date, values: Sequence[int], content: str = "c", table: str = "t", column: str = "v", **changed: Any) -> Marker:
    """Commit a day without Spark."""
    columns = {column: "bigint"}
    marker = Marker(
        table=table,
        ds=day.isoformat(),
        data=f"data-{content}",
        rows=len(values),
        content=content,
        schema=lake_module.digest_of(columns),
        columns=columns,
        **{"code": "code", "config": "config", "inputs": {}, "stats": {}, "job": "test", **changed},
    )
    with lake.stage(table, "put") as stage:
        folder = stage.path / "day"
        folder.mkdir()
        pq.write_table(pa.table({column: pa.array(values, pa.int64())}), folder / "part-0.parquet")
        lake.publish(marker, folder)
    return marker


def test_a_committed_day_is_read_back(lake: Lake) -> None:
    marker = put(lake, DAYS[0], [1, 2])
    assert lake.marker("t", DAYS[0]) == marker
    assert lake.read_arrow("t", DAYS[:1]).column("v").to_pylist() == [1, 2]
    assert lake.days("t") == DAYS[:1]
    assert lake.inputs({"t": DAYS[:1]}) == {"t": {"2024-03-01": "c"}}


def test_data_are_durable_before_the_marker_moves_and_old_data_go_last(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    put(lake, DAYS[0], [1])
    old = lake.folder("t", DAYS[0])
    steps: list[str] = []
    synced = os.fsync

    def watched(handle: int) -> None:
        named = Path(f"/proc/self/fd/{handle}").readlink().name
        steps.append(f"{named}{'' if old.is_dir() else ' after the old data went'}")
        synced(handle)

    monkeypatch.setattr(os, "fsync", watched)
    put(lake, DAYS[0], [2], content="d")
    data, names = steps.index("part-0.parquet"), [i for i, step in enumerate(steps) if step == "ds=2024-03-01"]
    marker = next(i for i, step in enumerate(steps) if step.startswith("._MARKER.json"))
    assert data < steps.index("day") < names[0] < marker < names[1]
    assert not [step for step in steps if "went" in step] and not old.exists()


def test_missing_days_are_named_with_the_job_that_builds_them(lake: Lake) -> None:
    put(lake, DAYS[0], [1], table="item_daily")
    with pytest.raises(MissingPartition, match=r"table item_daily: 2 of 3 days.*2024-03-02, 2024-03-03.*python -m jobs.item_features"):
        lake.require("item_daily", DAYS)


def test_a_new_commit_replaces_the_day_and_removes_the_old_files_after(lake: Lake) -> None:
    put(lake, DAYS[0], [1, 2], "old")
    put(lake, DAYS[0], [3], "new")
    assert lake.read_arrow("t", DAYS[:1]).column("v").to_pylist() == [3]
    assert [p.name for p in lake.day_dir("t", DAYS[0]).iterdir() if p.is_dir()] == ["data-new"]


def test_a_commit_cut_short_before_its_marker_leaves_the_old_day(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    put(lake, DAYS[0], [1, 2], "old")

    def cut(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(lake_module, "replace_text", cut)
        with pytest.raises(OSError, match="disk full"):
            put(lake, DAYS[0], [3], "new")
    assert lake.read_arrow("t", DAYS[:1]).column("v").to_pylist() == [1, 2]
    put(lake, DAYS[0], [3], "new")  # a retry over the left-over folder
    assert lake.read_arrow("t", DAYS[:1]).column("v").to_pylist() == [3]


def test_a_rerun_with_the_same_rows_touches_neither_marker_nor_files(lake: Lake) -> None:
    put(lake, DAYS[0], [1])
    before = {p: p.stat().st_mtime_ns for p in lake.day_dir("t", DAYS[0]).rglob("*")}
    put(lake, DAYS[0], [1])
    assert {p: p.stat().st_mtime_ns for p in lake.day_dir("t", DAYS[0]).rglob("*")} == before


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_truncated_file_is_named_with_table_and_day_and_a_rerun_mends_it(lake: Lake) -> None:
    put(lake, DAYS[0], [1, 2])
    file = next(lake.day_dir("t", DAYS[0]).rglob("*.parquet"))
    truncate(file)
    with pytest.raises(CorruptPartition, match=f"table t, day 2024-03-01: {file}"):
        lake.read_arrow("t", DAYS[:1])
    assert not lake.is_current("t", DAYS[0], inputs={}, config="config", code="code")
    put(lake, DAYS[0], [1, 2])
    assert lake.read_arrow("t", DAYS[:1]).column("v").to_pylist() == [1, 2]


def test_a_lost_file_is_noticed_by_the_row_count(lake: Lake) -> None:
    put(lake, DAYS[0], [1, 2])
    next(lake.day_dir("t", DAYS[0]).rglob("*.parquet")).unlink()
    with pytest.raises(CorruptPartition, match="holds 0 rows in 0 files, its marker says 2"):
        lake.read_arrow("t", DAYS[:1])


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"table": "t"}'])
def test_a_damaged_marker_is_named(lake: Lake, text: str) -> None:
    put(lake, DAYS[0], [1])
    path = lake.day_dir("t", DAYS[0]) / lake_module.MARKER
    path.write_text(text)
    with pytest.raises(CorruptPartition, match=str(path)):
        lake.require("t", DAYS[:1])


def test_days_with_other_columns_are_refused_with_the_difference(lake: Lake) -> None:
    put(lake, DAYS[0], [1])
    put(lake, DAYS[1], [1], column="w")
    with pytest.raises(SchemaMismatch, match=r"day 2024-03-02 .* 2024-03-01: v is missing, was bigint, w is bigint, was missing"):
        lake.read_arrow("t", DAYS[:2])


def test_a_day_is_current_only_for_its_own_inputs_settings_and_sources(lake: Lake) -> None:
    inputs: Inputs = {"raw": {"all": "x"}}
    put(lake, DAYS[0], [1], inputs=inputs)
    assert lake.is_current("t", DAYS[0], inputs=inputs, config="config", code="code")
    assert not lake.is_current("t", DAYS[0], inputs={}, config="config", code="code")
    assert not lake.is_current("t", DAYS[0], inputs=inputs, config="other", code="code")
    assert not lake.is_current("t", DAYS[0], inputs=inputs, config="config", code="other")
    assert not lake.is_current("t", DAYS[1], inputs=inputs, config="config", code="code")


def test_markers_hold_no_clock_and_parse_back(lake: Lake) -> None:
    marker = put(lake, DAYS[0], [1])
    assert Marker.parse(marker.text(), "here") == marker
    assert set(json.loads(marker.text())) == {
        *("table", "ds", "data", "rows", "content", "schema", "columns", "code", "config", "inputs", "stats", "job")
    }


def test_staging_is_removed_on_error_and_held_by_one_run(lake: Lake) -> None:
    with pytest.raises(RuntimeError, match="spoilt"), lake.stage("t", "run"):
        raise RuntimeError("spoilt")
    assert not (lake.root / "_staging" / "run").exists()
    with lake.stage("t", "run"), pytest.raises(JobError, match="held by another run"), lake.stage("t", "run"):
        pass


def test_files_are_committed_like_rows_and_a_rerun_gives_the_same_marker(lake: Lake) -> None:
    markers = []
    for _ in range(2):
        with lake.stage_files("cross_arrays", DAYS[0]) as stage:
            (stage.path / "sub").mkdir()
            (stage.path / "sub" / "a.npy").write_bytes(b"1234")
            markers.append(stage.commit(rows=4, job="u2i_crosses", code="c", config="c", inputs={}))
    assert markers[0] == markers[1]
    assert (lake.folder("cross_arrays", DAYS[0]) / "sub" / "a.npy").read_bytes() == b"1234"
    assert lake.is_current("cross_arrays", DAYS[0], inputs={}, config="c", code="c")
    (lake.folder("cross_arrays", DAYS[0]) / "sub" / "a.npy").write_bytes(b"12")
    assert not lake.is_current("cross_arrays", DAYS[0], inputs={}, config="c", code="c")
    with lake.stage_files("cross_arrays", DAYS[0]) as stage:
        (stage.path / "sub").mkdir()
        (stage.path / "sub" / "a.npy").write_bytes(b"1234")
        stage.commit(rows=4, job="u2i_crosses", code="c", config="c", inputs={})
    assert (lake.folder("cross_arrays", DAYS[0]) / "sub" / "a.npy").read_bytes() == b"1234"


def test_a_lake_needs_a_folder() -> None:
    with pytest.raises(ValueError, match="s3://bucket/lake"):
        Lake("s3://bucket/lake")


def test_the_code_digest_is_of_the_named_sources() -> None:
    assert code_digest("jobs.lake") == code_digest("jobs.lake") != code_digest("jobs.files")
    assert code_digest("jobs.sources") != code_digest("jobs.sources.base")
    with pytest.raises(ValueError, match=r"jobs\.nothing"):
        code_digest("jobs.nothing")


def build(
    lake: Lake, spark: SparkSession, rows: list[tuple[str | None, float | None, str]], days: list[date] = DAYS, **options: Any
) -> list[str]:
    """Stage and commit rows; the marker files' bytes."""
    with lake.stage("t", "run") as stage:
        stage.write(spark.createDataFrame(rows, SCHEMA), days, **options)
        stage.commit(spark, days, job="test", code="code", config="config", inputs=lambda day: {}, stats={days[0]: {"rate": 0.5}})
    return [(lake.day_dir("t", day) / lake_module.MARKER).read_text() for day in days]


@pytest.mark.slow
def test_a_range_is_written_with_an_empty_day_between(lake: Lake, spark: SparkSession) -> None:
    build(lake, spark, [("a", 1.0, "2024-03-01"), ("b", 2.0, "2024-03-03")])
    assert [m.rows for m in lake.require("t", DAYS)] == [1, 0, 1]
    assert sorted(tuple(r) for r in lake.read(spark, "t", DAYS).collect()) == [("a", 1.0, "2024-03-01"), ("b", 2.0, "2024-03-03")]
    assert lake.read(spark, "t", [DAYS[1]]).columns == ["k", "v", "ds"]
    assert lake.read_arrow("t", [DAYS[1]], ["k"]).num_rows == 0
    assert lake.marker("t", DAYS[0]).stats == {"rate": 0.5}  # type: ignore[union-attr]
    assert not list((lake.root / "_staging").glob("run"))


@pytest.mark.slow
def test_a_rerun_in_another_row_order_gives_the_same_marker_bytes(lake: Lake, spark: SparkSession) -> None:
    rows: list[tuple[str | None, float | None, str]] = [(f"k{i % 7}", float(i), f"2024-03-0{i % 3 + 1}") for i in range(60)]
    first = build(lake, spark, rows)
    assert build(lake, spark, rows[::-1], sort=["v"], files_per_day=2) == first
    assert build(lake, spark, rows[:-1]) != first


@pytest.mark.slow
def test_a_day_that_is_now_empty_loses_its_old_rows(lake: Lake, spark: SparkSession) -> None:
    build(lake, spark, [("a", 1.0, "2024-03-01"), ("b", 2.0, "2024-03-02")])
    build(lake, spark, [("a", 1.0, "2024-03-01")])
    assert [m.rows for m in lake.require("t", DAYS)] == [1, 0, 0]
    assert lake.read(spark, "t", DAYS).count() == 1


@pytest.mark.slow
def test_a_failed_write_leaves_the_old_partition(lake: Lake, spark: SparkSession) -> None:
    before = build(lake, spark, [("a", 1.0, "2024-03-01")], DAYS[:1])
    broken = spark.createDataFrame([("a", 1.0, "2024-03-01")], SCHEMA).selectExpr("k", "v / (v - 1) AS v", "ds")
    with pytest.raises(Exception, match="DIVIDE_BY_ZERO"), lake.stage("t", "run") as stage:
        stage.write(broken, DAYS[:1])
    assert [(lake.day_dir("t", DAYS[0]) / lake_module.MARKER).read_text()] == before
    assert lake.read(spark, "t", DAYS[:1]).count() == 1


@pytest.mark.slow
@pytest.mark.parametrize("ds", ["2024-03-09", None, "soon"])
def test_rows_of_days_that_were_not_asked_for_are_an_error(lake: Lake, spark: SparkSession, ds: str | None) -> None:
    frame = spark.createDataFrame([("a", 1.0, ds)], SCHEMA)
    with pytest.raises(JobError, match="table t: rows of days"), lake.stage("t", "run") as stage:
        stage.write(frame, DAYS)


@pytest.mark.slow
def test_the_content_digest_sees_where_a_null_stands_and_how_often_a_row_does(spark: SparkSession) -> None:
    def digest(*rows: tuple[str | None, str | None, str]) -> tuple[int, str]:
        return contents(spark.createDataFrame(list(rows), "a string, b string, ds string"))["x"]

    assert digest(("1", None, "x")) != digest((None, "1", "x"))
    assert digest(("1", "2", "x"), ("1", "2", "x")) != digest(("1", "2", "x"))
    assert digest(("1", "2", "x"), ("3", "4", "x")) == digest(("3", "4", "x"), ("1", "2", "x"))


@pytest.mark.slow
def test_spark_readers_get_the_same_clear_errors(lake: Lake, spark: SparkSession) -> None:
    build(lake, spark, [("a", 1.0, "2024-03-01")], DAYS[:1])
    with pytest.raises(MissingPartition, match="2024-03-02"):
        lake.read(spark, "t", DAYS)
    truncate(next(lake.day_dir("t", DAYS[0]).rglob("*.parquet")))
    with pytest.raises(CorruptPartition, match=r"table t, day 2024-03-01: .*parquet is no whole Parquet file"):
        lake.read(spark, "t", DAYS[:1])
