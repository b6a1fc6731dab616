"""What sources share: columns and files of raw tables, fingerprints."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.config import DatasetConfig
from jobs.sources import open_source
from jobs.sources.base import RawDataError, compare_columns, fingerprint, local_files, parquet_schema
from jobs.sources.tables import _day_pattern

EXPECTED = {"user": "int64", "week": "int64"}


def test_an_added_column_is_ignored_with_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        compare_columns("sales", {**EXPECTED, "colour": "string"}, EXPECTED)
    assert "raw table sales: ignoring columns that nothing asks for: colour" in caplog.text


def test_a_renamed_column_is_an_error_that_shows_what_is_there() -> None:
    with pytest.raises(
        RawDataError, match=r"raw table sales: column user is missing; expected type int64 .*found columns client, week.*new name: client"
    ):
        compare_columns("sales", {"client": "int64", "week": "int64"}, EXPECTED)


def test_a_retyped_column_is_an_error_with_both_types() -> None:
    with pytest.raises(RawDataError, match="raw table sales: column week has type string, expected int64"):
        compare_columns("sales", {"user": "int64", "week": "string"}, EXPECTED)


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": [1, 2, 3]}), file)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(RawDataError, match=f"raw table sales: {file} is no whole Parquet file"):
        parquet_schema("sales", [file])


def test_files_of_one_table_must_have_the_same_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": ["1"]}), tmp_path / "2.parquet")
    with pytest.raises(RawDataError, match=r"2\.parquet\): column a has type string, expected int64 as in .*1\.parquet"):
        parquet_schema("sales", local_files("sales", str(tmp_path)))


def test_a_missing_raw_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RawDataError, match=r"raw table sales: no file at .*2024-01-01"):
        local_files("sales", str(tmp_path / "2024-01-01" / "*.csv"))


def test_hidden_and_bookkeeping_files_are_no_data(tmp_path: Path) -> None:
    for name in ("_SUCCESS", ".a.crc", "a.csv"):
        (tmp_path / name).write_text("x")
    assert local_files("sales", str(tmp_path)) == [tmp_path / "a.csv"]


def test_a_fingerprint_follows_the_bytes_and_not_the_clock(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("1")
    first = fingerprint([file])
    file.write_text("1")
    assert fingerprint([file]) == first
    file.write_text("2")
    assert fingerprint([file]) != first


@pytest.mark.parametrize("path", ["/raw/ds={ds}/*.parquet", "/raw/events-{ds}.csv", "/raw/{ds}"])
def test_the_day_is_found_in_the_path(path: str) -> None:
    import re

    file = path.replace("{ds}", "2024-03-05").replace("*", "part-1")
    found = re.search(_day_pattern(path), f"file://{file}/x.csv")
    assert found is not None and found.group(1) == "2024-03-05"


def test_the_data_set_of_the_how_to_is_valid() -> None:
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "own-data.md").read_text()
    loaded = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert open_source(DatasetConfig.model_validate(loaded)).dataset.name == "shop"
