"""One range, cut, killed and resumed, and late rows, in real Spark: the same partitions whichever way they came to be.

Windows of 1 and 2 days, a catalogue of 4 and a history of 2, so that a few days have some before and after what a change reaches.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyspark.sql import SparkSession
from tiny_shop import tiny_dataset, tiny_rows, write_events

from jobs import backfill, cli, examples, ingest, item_features, u2i_crosses
from jobs.config import Config, load
from jobs.entry import run
from jobs.lake import MARKER, Lake
from jobs.provenance import RAW_TABLES, TABLES
from jobs.stale import survey
from tests.jobs.marker_world import march

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
FIRST, LAST = march(10)[0], march(17)[0]
Markers = dict[tuple[str, str], str]
#: Days that late rows of March 11 reach.
REACHED = {
    **dict.fromkeys((*RAW_TABLES, "item_daily", "u2i_daily"), march(11)),
    "item_features": march(11, 14),  # a catalogue of 4 days
    "u2i_crosses": march(11, 13),  # requests of the day, then windows of 2 closed days
    "cross_arrays": march(17),  # run window of the 17th: examples from the 10th on
    "examples": march(11, 15),  # catalogue of the day before until the 15th
}
DEADLINE_SECONDS = 900


@dataclass(frozen=True)
class Place:
    """A settings file with raw data and a lake of its own."""

    conf: Path

    @classmethod
    def make(cls, folder: Path, tiny_data: Path, rows: Sequence[tuple[Any, ...]] = ()) -> Place:
        """Raw events in a file a day; ``rows`` come on top of the usual ones."""
        raw = folder / "raw"
        shutil.copytree(tiny_data, raw)
        (raw / "events").mkdir()
        by_day: dict[str, list[Any]] = {}
        for row in [*tiny_rows(), *rows]:
            by_day.setdefault(row[3].date().isoformat(), []).append(row)
        for ds, some in by_day.items():
            write_events(raw / "events" / f"{ds}.csv", some)
        dataset: dict[str, Any] = tiny_dataset(raw)
        dataset["source"]["interactions"]["path"] = str(raw / "events" / "{ds}.csv")
        dataset["catalogue"]["window_days"] = 4
        dataset["u2i"]["windows"] = [1, 2]
        dataset["history"]["days"] = 2
        (folder / "conf" / "datasets").mkdir(parents=True)
        (folder / "conf" / "datasets" / "tiny.yaml").write_text(yaml.safe_dump(dataset, sort_keys=False))
        place = {
            "dataset": {"name": "tiny"},
            "paths": {"home": str(folder / "home")},
            "spark": {"master": "local[2]", "driver_memory": "1g", "shuffle_partitions": 2},
            "window": {"eval_days": 2, "train_days": 6, "validation_days": 1},
            "checks": {"enabled": False},
            "backfill": {"chunk_days": 3},
        }
        (folder / "conf" / "local.yaml").write_text(yaml.safe_dump(place, sort_keys=False))
        return cls(folder / "conf" / "local.yaml")

    @property
    def config(self) -> Config:
        return load(self.conf)

    @property
    def lake(self) -> Lake:
        return Lake(self.config.paths.at("lake"))

    def raw(self, day: Any) -> Path:
        return self.conf.parent.parent / "raw" / "events" / f"{day}.csv"

    def markers(self) -> Markers:
        root = self.lake.root
        return {(path.parts[-3], path.parts[-2]): path.read_text() for path in sorted(root.rglob(MARKER))}

    def job(self, module: Any, *options: str) -> None:
        name = module.__name__.removeprefix("jobs.")
        more = getattr(module, "options", getattr(module, "_options", None))
        assert run(name, module.main, ["--config", str(self.conf), *options], ranges=True, options=more) == 0

    def by_commands(self, first: Any, last: Any, *, arrays: bool = True) -> None:
        """The four jobs for a range, with the days that its features reach where they are missing."""
        reached = self.config.feature_days(first, last)
        events, to = ("--from", str(reached.events), "--to", str(last)), ("--to", str(last), "--missing")
        self.job(ingest, *events, "--offers-from", str(reached.examples), "--missing")
        self.job(item_features, "--from", str(reached.catalogue), *to, "--events-from", str(reached.events))
        more = [] if arrays else ["--no-arrays"]
        self.job(u2i_crosses, "--from", str(reached.examples), *to, "--events-from", str(reached.events), *more)
        self.job(examples, "--from", str(reached.examples), *to)

    def day(self, day: Any, *, arrays: bool) -> None:
        """One day as the schedule builds it: alone and anew."""
        for module in (ingest, item_features, u2i_crosses, examples):
            self.job(module, "--date", str(day), *(["--no-arrays"] if module is u2i_crosses and not arrays else []))


def late_rows() -> list[tuple[Any, ...]]:
    """Visits of March 11 that were not delivered in time: a new item, and a known one."""
    when = datetime(2024, 3, 11, 21, 30)
    return [("late-1", "u1", "i-new", when, 1, 1, 3.0), ("late-2", "u2", "i3", when, 1, 2, 4.0), ("late-2", "u2", "i5", when, 0, 1, 2.0)]


def changed(before: Markers, after: Markers) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for table, ds in sorted(key for key in {*before, *after} if before.get(key) != after.get(key)):
        found.setdefault(table, []).append(ds.removeprefix("ds="))
    return {table: found[table] for table in TABLES if table in found}


def texts(days: dict[str, Any]) -> dict[str, list[str]]:
    return {table: [day.isoformat() for day in days[table]] for table in TABLES if table in days}


@pytest.fixture(scope="module")
def ranged(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Place:
    """One range run: each job once, for all days."""
    place = Place.make(tmp_path_factory.mktemp("ranged"), tiny_data)
    place.by_commands(FIRST, LAST)
    return place


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, spark: SparkSession) -> Place:
    """A backfill in chunks that was killed in its second one, and started again."""
    place = Place.make(tmp_path_factory.mktemp("resumed"), tiny_data)
    kill_in_the_second_chunk(place)
    there = place.lake.days("examples")
    assert there == march(10, 12), "the first chunk is committed, the second one is not"
    stamps = {path: path.stat().st_mtime_ns for path in place.lake.root.rglob(MARKER)}
    place.job(backfill, "--from", str(FIRST), "--to", str(LAST))
    kept = [path for path, stamp in stamps.items() if path.stat().st_mtime_ns == stamp]
    assert sorted(kept) == sorted(stamps), "what was committed before the kill is left alone"
    return place


def kill_in_the_second_chunk(place: Place) -> None:
    progress = place.conf.parent / "progress"
    command = [sys.executable, "-m", "jobs.backfill", "--config", str(place.conf), "--from", str(FIRST), "--to", str(LAST)]
    with (place.conf.parent / "log").open("w") as log:
        one = subprocess.Popen(command, env=os.environ | {"DIG_PROGRESS": str(progress)}, stderr=log, start_new_session=True)
    try:
        for _ in polls():
            assert one.poll() is None, (place.conf.parent / "log").read_text()
            if progress.is_file() and '"table": "item_daily"' in progress.read_text().partition('"day": "2024-03-12"')[2]:
                return
        pytest.fail("the second chunk was not reached in time")
    finally:
        os.killpg(one.pid, signal.SIGKILL)
        one.wait()


def polls() -> Iterator[None]:
    until = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < until:
        yield
        time.sleep(0.05)


def test_a_backfill_in_chunks_killed_and_resumed_gives_the_partitions_of_one_range_run(ranged: Place, resumed: Place) -> None:
    assert set(TABLES) == {table for table, _ in ranged.markers()}
    assert resumed.markers() == ranged.markers()


def test_day_by_day_gives_the_partitions_of_one_range_run(ranged: Place, tmp_path: Path, tiny_data: Path) -> None:
    place = Place.make(tmp_path, tiny_data)
    place.by_commands(FIRST, FIRST, arrays=False)
    for day in march(11, 17):
        place.day(day, arrays=day == LAST)
    markers = place.markers()
    # A daily run has the user state of its own day; a range has that of its last one.
    assert set(markers) - set(ranged.markers()) == {("user_state", f"ds={day}") for day in march(10, 16)}
    assert {key: markers[key] for key in ranged.markers()} == ranged.markers()


def test_a_finished_backfill_starts_no_session_and_anew_writes_the_same_markers(
    resumed: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before, sessions = resumed.markers(), []
    real = backfill.spark_session
    monkeypatch.setattr(backfill, "spark_session", lambda config, name: (sessions.append(name), real(config, name))[1])
    caplog.set_level("INFO")
    resumed.job(backfill, "--from", str(FIRST), "--to", str(LAST))
    assert sessions == []
    assert "2024-03-10: up to date (1 of 8)" in caplog.text and "everything was up to date" in caplog.text
    resumed.job(backfill, "--from", "2024-03-17", "--to", str(LAST), "--anew")
    assert sessions == ["dig-backfill"]
    assert "2024-03-17: done (1 of 1)" in caplog.text
    assert resumed.markers() == before


def test_late_rows_rebuild_the_days_their_windows_reach_and_no_others(
    resumed: Place, tmp_path: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = resumed.markers()
    usual = [row for row in tiny_rows() if row[3].date() == march(11)[0]]
    write_events(resumed.raw(march(11)[0]), [*usual, *late_rows()])
    assert texts(survey(resumed.config).days()) == texts(REACHED)
    assert cli.main(["lake", "refresh", "--config", str(resumed.conf)]) == 0
    after = resumed.markers()
    assert changed(before, after) == texts(REACHED)
    assert survey(resumed.config).stale == {}
    scratch = Place.make(tmp_path, tiny_data, late_rows())
    scratch.job(backfill, "--from", str(FIRST), "--to", str(LAST))
    assert after == scratch.markers()
    capsys.readouterr()
    assert cli.main(["lake", "refresh", "--config", str(resumed.conf)]) == 0
    assert capsys.readouterr().out.strip() == "nothing is out of date"
    assert resumed.markers() == after


def test_rows_that_turn_out_the_same_stop_the_refresh_at_the_raw_tables(resumed: Place) -> None:
    before = resumed.markers()
    file = resumed.raw(march(13)[0])
    head, *rows = file.read_text().splitlines()
    file.write_text("\n".join([head, *reversed(rows)]) + "\n")
    stale = survey(resumed.config).days()
    assert stale["u2i_crosses"] == march(13, 15)
    assert cli.main(["lake", "refresh", "--config", str(resumed.conf)]) == 0
    assert changed(before, resumed.markers()) == {table: ["2024-03-13"] for table in RAW_TABLES}
