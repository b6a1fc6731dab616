"""Ingest as its user starts it: options to partitions, all or nothing."""

from __future__ import annotations

import shutil
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyspark.sql import SparkSession
from tiny_shop import TINY_DAYS, tiny_rows, write_events

from jobs import ingest as ingest_module
from jobs.config import Config, load
from jobs.dates import days_between
from jobs.entry import JobError, run
from jobs.ingest import _options, main, plan
from jobs.lake import MARKER, Lake

FIRST, LATER, LAST = date(2024, 3, 1), date(2024, 3, 3), date(2024, 3, 4)
TABLES = ("interactions", "requests", "offers", "items", "users")


@pytest.fixture
def conf(tiny_conf: Path, tiny_data: Path, tmp_path: Path) -> Path:
    """The small data set with raw files of its own, to be changed at will."""
    shutil.copytree(tiny_data, tmp_path / "raw")
    path = tiny_conf.parent / "datasets" / "tiny.yaml"
    path.write_text(path.read_text().replace(str(tiny_data), str(tmp_path / "raw")))
    return tiny_conf


def started(conf: Path, *options: str, to: date = LAST) -> int:
    return run("ingest", main, ["--config", str(conf), "--from", str(FIRST), "--to", str(to), *options], ranges=True, options=_options)


def markers(conf: Path) -> dict[str, str]:
    root = Path(load(conf).paths.at("lake"))
    return {str(p.relative_to(root)): p.read_text() for p in sorted(root.rglob(MARKER))}


def lake_of(conf: Path) -> Lake:
    return Lake(load(conf).paths.at("lake"))


@pytest.mark.slow
def test_a_range_becomes_partitions_and_a_rerun_writes_the_same_marker_bytes(spark: SparkSession, conf: Path) -> None:
    assert started(conf, "--offers-from", str(LATER)) == 0
    lake, first = lake_of(conf), markers(conf)
    assert [lake.days(t) for t in TABLES] == [days_between(FIRST, LAST)] * 2 + [days_between(LATER, LAST)] * 3
    marker = lake.require("offers", [LATER])[0]
    assert set(marker.inputs) == {"raw.interactions"} and marker.job == "ingest"
    assert started(conf, "--offers-from", str(LATER)) == 0
    assert markers(conf) == first
    read = lake.read(spark, "requests", days_between(FIRST, LAST))
    assert read.count() == sum(m.rows for m in lake.require("requests", days_between(FIRST, LAST))) == 4 * 8


@pytest.mark.slow
def test_missing_builds_only_what_is_not_up_to_date(spark: SparkSession, conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[dict[str, list[date]]] = []
    real = ingest_module.ingest
    monkeypatch.setattr(ingest_module, "ingest", lambda s, c, src, lk, wanted: (built.append(wanted), real(s, c, src, lk, wanted)))
    assert started(conf, to=LATER) == 0
    assert started(conf, "--missing", to=LATER) == 0
    assert len(built) == 1, "a second run has nothing to do and starts no session"
    shutil.rmtree(lake_of(conf).day_dir("requests", FIRST))
    assert started(conf, "--missing", to=LATER) == 0
    assert {t: d for t, d in built[1].items() if d} == {"requests": [FIRST]}
    dataset = conf.parent / "datasets" / "tiny.yaml"
    dataset.write_text(dataset.read_text().replace("hour(time)", "minute(time)"))
    assert started(conf, "--missing", to=LATER) == 0
    assert built[2]["requests"] == days_between(FIRST, LATER)


@pytest.mark.slow
def test_a_day_that_lost_its_raw_rows_loses_its_lake_rows(spark: SparkSession, conf: Path, tmp_path: Path) -> None:
    assert started(conf, "--set", "checks.enabled=false") == 0
    write_events(tmp_path / "raw" / "events.csv", [r for r in tiny_rows() if r[3].date() != LAST])
    assert started(conf, "--set", "checks.enabled=false") == 0
    assert [m.rows for m in lake_of(conf).require("interactions", [LATER, LAST])][1] == 0
    assert lake_of(conf).read(spark, "offers", [LAST]).count() == 0


def spoil(events: Path, bad: tuple[str, str, str, datetime, int, int, float]) -> None:
    write_events(events, [*tiny_rows(), bad])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bad", "column"),
    [
        (("s1-x", "", "i1", datetime(2024, 3, 4, 9), 1, 1, 1.0), "user_id"),
        (("s1-x", "u1", "", datetime(2024, 3, 4, 9), 1, 1, 1.0), "item_id"),
        (("s1-x", "u1", "i1", datetime(2024, 3, 4, 9), 1, 1, float("nan")), "value"),
    ],
)
def test_a_row_that_fails_the_gate_stops_every_table_before_the_commit(
    spark: SparkSession, conf: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: Any, column: str
) -> None:
    assert started(conf) == 0
    before = markers(conf)
    spoil(tmp_path / "raw" / "events.csv", bad)
    assert started(conf) == 2
    assert markers(conf) == before
    assert "interactions" in caplog.text and column in caplog.text and "2024-03-04" in caplog.text
    assert list((tmp_path / "home" / "quarantine").rglob("*interactions*"))
    assert not list((tmp_path / "home" / "lake" / "_staging").glob("ingest*"))


@pytest.mark.slow
def test_a_truncated_raw_file_stops_the_run_by_name(
    spark: SparkSession, conf: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "raw" / "products.parquet"
    file.write_bytes(file.read_bytes()[:200])
    assert started(conf) == 2
    assert f"raw table items: {file} is no whole Parquet file" in caplog.text
    assert markers(conf) == {}


@pytest.mark.slow
def test_progress_reaches_its_total(spark: SparkSession, conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIG_PROGRESS", str(tmp_path / "progress"))
    assert started(conf, to=FIRST) == 0
    lines = [yaml.safe_load(line) for line in (tmp_path / "progress").read_text().splitlines()]
    assert [line["done"] for line in lines] == list(range(len(lines)))
    assert lines[-1]["done"] == lines[-1]["total"] and {line["stage"] for line in lines} == {"ingest"}


def test_offers_items_and_users_start_later_than_events(tiny_config: Config) -> None:
    days = days_between(FIRST, LAST)
    wanted = plan(tiny_config, days, LATER)
    assert {t: len(d) for t, d in wanted.items()} == {"interactions": 4, "requests": 4, "offers": 2, "items": 2, "users": 2}
    assert plan(tiny_config, days, None)["offers"] == days


def test_days_outside_the_data_set_are_refused(tiny_config: Config) -> None:
    with pytest.raises(JobError, match="2024-02-29 outside data set tiny, whose days run from 2024-03-01 to 2024-03-30"):
        plan(tiny_config, [date(2024, 2, 29)], None)
    assert TINY_DAYS == 30


def test_only_settings_that_decide_the_rows_are_part_of_the_digest(tiny_conf: Path) -> None:
    def digest(*sets: str) -> str:
        return load(tiny_conf, sets).dataset.rows_digest(raw=True)

    assert digest() == digest("dataset.sampling.exposed_negative_rate=0.5", "dataset.catalogue.min_events=9", "dataset.history.length=9")
    assert len({digest(), digest("dataset.sample_users=0.5"), digest("dataset.sample_seed=1"), digest("dataset.item_name=[title]")}) == 4
