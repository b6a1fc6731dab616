"""Bad input to the real jobs: each case ends in one clear error or a documented fallback, and nothing published is lost."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from pyspark.sql import SparkSession
from tiny_shop import TINY_FIRST, tiny_dataset, tiny_rows, write_events

from dig_models.features import bucket_of
from jobs import entry, examples, ingest, item_features, u2i_crosses
from jobs.lake import Lake

pytestmark = pytest.mark.slow
LAST = TINY_FIRST + timedelta(days=9)
NEXT = LAST + timedelta(days=1)
Event = tuple[str, str, str, datetime, int, int, float]
JOBS: dict[str, tuple[ModuleType, Any]] = {
    "ingest": (ingest, ingest._options),
    "item_features": (item_features, item_features.options),
    "u2i_crosses": (u2i_crosses, u2i_crosses.options),
    "examples": (examples, None),
}


@dataclass
class Place:
    """A data set and a home of its own; the lake holds the days from the first to ``LAST``, features of the last three."""

    root: Path
    log: pytest.LogCaptureFixture

    @property
    def lake(self) -> Lake:
        return Lake(str(self.root / "home" / "lake"))

    @property
    def conf(self) -> Path:
        return self.root / "conf" / "local.yaml"

    def run(self, job: str, first: date, last: date | None = None, *sets: str) -> int:
        """Run a job as the command line does; its exit status."""
        module, options = JOBS[job]
        extra = [part for item in sets for part in ("--set", item)]
        argv = ["--config", str(self.conf), "--from", str(first), "--to", str(last or first), *extra]
        return entry.run(job, module.main, argv, ranges=True, options=options)

    def refused(self, job: str, first: date, last: date | None = None, *sets: str) -> str:
        """The one message of a run that must fail, after a look that nothing published has changed."""
        before = self.published()
        self.log.clear()
        assert self.run(job, first, last, *sets) == 2
        assert self.published() == before
        errors = [r.getMessage() for r in self.log.records if r.levelno == logging.ERROR and r.name == f"jobs.{job}"]
        assert len(errors) == 1
        return errors[0]

    def published(self) -> dict[str, tuple[str, int]]:
        """Every marker's text and the rows that its data folder holds."""
        found = {}
        for path in sorted((self.root / "home" / "lake").glob("*/ds=*/_MARKER.json")):
            folder = path.parent / json.loads(path.read_text())["data"]
            sizes = [f.stat().st_size for f in folder.rglob("*.parquet")]
            found[str(path)] = (path.read_text(), sum(sizes))
        return found

    def events(self, change: Callable[[list[Event]], list[Event]]) -> None:
        """Rewrite the raw impression log."""
        write_events(self.root / "raw" / "events.csv", change(tiny_rows()))

    def settings(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Rewrite the data set's settings."""
        path = self.root / "conf" / "datasets" / "tiny.yaml"
        dataset = yaml.safe_load(path.read_text())
        change(dataset)
        path.write_text(yaml.safe_dump(dataset, sort_keys=False))

    def catalogued(self) -> str:
        """An item of the last catalogue."""
        return str(self.lake.read_arrow("item_features", [LAST]).column("item_id")[0])

    def warnings(self) -> str:
        return "\n".join(r.getMessage() for r in self.log.records if r.levelno == logging.WARNING)


def configure(root: Path) -> None:
    """Settings files for the raw data under ``<root>/raw`` and a home under ``<root>/home``."""
    (root / "conf" / "datasets").mkdir(parents=True, exist_ok=True)
    (root / "conf" / "datasets" / "tiny.yaml").write_text(yaml.safe_dump(tiny_dataset(root / "raw"), sort_keys=False))
    place = {
        "dataset": {"name": "tiny"},
        "paths": {"home": str(root / "home")},
        "window": {"eval_days": 1, "train_days": 3, "validation_days": 1},
    }
    (root / "conf" / "local.yaml").write_text(yaml.safe_dump(place, sort_keys=False))


@pytest.fixture(scope="module")
def built(spark: SparkSession, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place where all jobs have run on good data."""
    root = tmp_path_factory.mktemp("built")
    shutil.copytree(tiny_data, root / "raw")
    configure(root)
    place, late = Place(root, None), LAST - timedelta(days=2)  # type: ignore[arg-type]
    assert place.run("ingest", TINY_FIRST, LAST) == 0
    first = ["--config", str(place.conf), "--from", str(late), "--to", str(LAST), "--events-from", str(TINY_FIRST)]
    for job in ("item_features", "u2i_crosses"):
        module, options = JOBS[job]
        more = ["--no-arrays"] if job == "u2i_crosses" else []
        assert entry.run(job, module.main, [*first, *more], ranges=True, options=options) == 0
    assert place.run("examples", late + timedelta(days=1), LAST) == 0
    return root


@pytest.fixture
def place(built: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Place:
    """A copy of the built place, to be spoilt."""
    caplog.set_level(logging.INFO)
    shutil.copytree(built / "raw", tmp_path / "raw")
    shutil.copytree(built / "home" / "lake", tmp_path / "home" / "lake")
    configure(tmp_path)
    return Place(tmp_path, caplog)


def on(day: date, rows: list[Event]) -> list[int]:
    return [i for i, row in enumerate(rows) if row[3].date() == day]


def replaced(rows: list[Event], at: int, **changed: Any) -> list[Event]:
    names = ("session", "person", "sku", "time", "clicked", "amount", "price")
    row = dict(zip(names, rows[at], strict=True)) | changed
    return [*rows[:at], tuple(row[n] for n in names), *rows[at + 1 :]]  # type: ignore[list-item]


# ---- missing and empty partitions


def test_a_missing_partition_is_named_with_the_command_that_builds_it(place: Place) -> None:
    said = place.refused("item_features", NEXT)
    assert "table interactions: 1 of 1 days are missing" in said and str(NEXT) in said
    assert f"python -m jobs.ingest --from {NEXT} --to {NEXT}" in said


def test_examples_without_the_catalogue_of_the_day_before_say_how_to_build_it(place: Place) -> None:
    shutil.rmtree(place.lake.day_dir("item_features", LAST - timedelta(days=1)))
    said = place.refused("examples", LAST)
    assert "item_features" in said and str(LAST - timedelta(days=1)) in said


def test_missing_raw_files_are_named(place: Place) -> None:
    (place.root / "raw" / "people.csv").unlink()
    assert "people.csv" in place.refused("ingest", LAST)


def test_a_day_that_has_not_arrived_stops_ingest(place: Place) -> None:
    place.events(lambda rows: [row for row in rows if row[3].date() <= LAST])
    said = place.refused("ingest", NEXT)
    assert f"(rows): expected has rows; {NEXT}: 0 rows" in said
    assert place.lake.marker("interactions", NEXT) is None


def test_a_quiet_day_is_published_as_an_empty_partition_and_examples_follow(place: Place) -> None:
    after = NEXT + timedelta(days=1)
    place.events(lambda rows: [row for row in rows if row[3].date() != NEXT])
    assert place.run("ingest", NEXT, after) == 0
    assert f"(rows): expected has rows; {NEXT}: 0 rows" in place.warnings()
    for job in ("item_features", "u2i_crosses", "examples"):
        assert place.run(job, NEXT) == 0
    marker = place.lake.marker("examples", NEXT)
    assert marker is not None and marker.rows == 0
    assert place.lake.read_arrow("examples", [LAST, NEXT]).num_rows > 0


# ---- columns


def test_an_added_raw_column_is_left_out_and_changes_nothing(place: Place) -> None:
    before = place.lake.marker("interactions", LAST)
    lines = (place.root / "raw" / "events.csv").read_text().splitlines()
    wider = [f"{line},{'colour' if i == 0 else 'red'}" for i, line in enumerate(lines)]
    (place.root / "raw" / "events.csv").write_text("\n".join(wider) + "\n")
    assert place.run("ingest", LAST) == 0
    after = place.lake.marker("interactions", LAST)
    assert before and after and (before.columns, before.content) == (after.columns, after.content)


def test_a_renamed_raw_column_is_named_with_those_found(place: Place) -> None:
    path = place.root / "raw" / "events.csv"
    path.write_text(path.read_text().replace("session,person", "session,customer", 1))
    said = place.refused("ingest", LAST)
    assert "user_id" in said and "person" in said and "customer" in said


def test_a_retyped_raw_column_is_named_with_a_value(place: Place) -> None:
    place.events(lambda rows: replaced(rows, on(LAST, rows)[0], amount="many"))
    said = place.refused("ingest", LAST)
    assert "column quantity" in said and "'many'" in said


# ---- rows


def test_null_keys_stop_ingest_and_land_in_the_quarantine(place: Place) -> None:
    place.events(lambda rows: replaced(rows, on(LAST, rows)[0], person="", clicked=1))
    said = place.refused("ingest", LAST)
    assert f"table interactions, {LAST}" in said and f"user_id: expected not null or empty; {LAST}: 1 bad rows" in said
    kept = place.root / "home" / "quarantine" / "interactions" / f"ds={LAST}" / "bad.parquet"
    assert pq.read_table(kept, partitioning=None).column("user_id").to_pylist() == [None]


def test_duplicate_exposures_count_once(place: Place) -> None:
    day = LAST

    def twice(rows: list[Event]) -> list[Event]:
        passed = [i for i in on(day, rows) if rows[i][4] == 0]
        return [*rows, *(rows[i] for i in passed)]

    tables = ("interactions", "requests", "offers")
    before = [place.lake.marker(t, day) for t in tables]
    place.events(twice)
    assert place.run("ingest", day) == 0
    after = [place.lake.marker(t, day) for t in tables]
    assert [m and m.content for m in before] == [m and m.content for m in after]


def test_timestamps_outside_the_day_of_their_file_stop_ingest(place: Place) -> None:
    rows = tiny_rows()
    for day in (LAST - timedelta(days=1), LAST):
        mine = [rows[i] for i in on(day, rows)]
        if day == LAST:
            mine = replaced(mine, 0, time=mine[0][3] - timedelta(days=1), clicked=1)
        write_events(place.root / "raw" / f"events-{day}.csv", mine)

    def by_day(dataset: dict[str, Any]) -> None:
        dataset["source"]["interactions"]["path"] = str(place.root / "raw" / "events-{ds}.csv")

    place.settings(by_day)
    said = place.refused("ingest", LAST)
    assert f"ts: expected within ds; {LAST}: 1 bad rows" in said and f"ts={LAST - timedelta(days=1)}" in said


def test_a_number_that_is_not_finite_stops_ingest(place: Place) -> None:
    place.events(lambda rows: replaced(rows, on(LAST, rows)[0], price="Infinity", clicked=1))
    said = place.refused("ingest", LAST)
    assert f"value: expected finite; {LAST}: 1 bad rows" in said and "value=inf" in said


def test_a_number_of_an_item_that_is_not_finite_is_missing_to_the_model(place: Place) -> None:
    path = place.root / "raw" / "products.parquet"
    table = pq.read_table(path).to_pydict()
    item = place.catalogued()
    table["price"][table["sku"].index(item)] = math.nan
    pq.write_table(_arrow(table), path)
    assert place.run("ingest", LAST) == 0
    assert f"table items, price: expected finite; {LAST}: 1 bad rows" in place.warnings()
    assert place.run("item_features", LAST) == 0
    prices = place.lake.read_arrow("item_features", [LAST]).select(["item_id", "x_price"]).to_pylist()
    assert [p["x_price"] for p in prices if p["item_id"] == item] == [None]
    assert sum(p["x_price"] is None for p in prices) == 1


def test_an_unseen_category_falls_into_its_hashed_bucket(place: Place) -> None:
    path = place.root / "raw" / "products.parquet"
    table = pq.read_table(path).to_pydict()
    item = place.catalogued()
    table["kind"][table["sku"].index(item)] = "never seen before"
    pq.write_table(_arrow(table), path)
    assert place.run("ingest", LAST) == 0
    assert place.run("item_features", LAST) == 0
    rows = place.lake.read_arrow("item_features", [LAST]).select(["item_id", "f_kind"]).to_pylist()
    assert [r["f_kind"] for r in rows if r["item_id"] == item] == [bucket_of("never seen before", 16)]


def test_a_last_day_without_positives_stops_ingest(place: Place) -> None:
    place.events(lambda rows: [(*r[:4], 0 if r[3].date() == NEXT else r[4], *r[5:]) for r in rows])  # type: ignore[misc]
    assert f"table interactions, {NEXT}" in place.refused("ingest", NEXT)


def test_a_day_without_positives_between_others_is_warned_of(place: Place) -> None:
    place.events(lambda rows: [(*r[:4], 0 if r[3].date() == NEXT else r[4], *r[5:]) for r in rows])  # type: ignore[misc]
    assert place.run("ingest", NEXT, NEXT + timedelta(days=1)) == 0
    for job in ("item_features", "u2i_crosses", "examples"):
        assert place.run(job, NEXT) == 0
    assert f"table examples, label: expected at least one positive; {NEXT}: 0 positives" in place.warnings()
    labels = place.lake.read_arrow("examples", [NEXT]).column("label").to_pylist()
    assert labels and not any(x for row in labels for x in row)


# ---- damaged files


def test_a_truncated_file_in_the_lake_is_named_and_rebuilding_its_day_mends_it(place: Place) -> None:
    file = next(place.lake.folder("interactions", LAST).glob("*.parquet"))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    said = place.refused("item_features", LAST)
    assert "table interactions" in said and str(LAST) in said and file.name in said and "rebuild" in said
    assert place.run("ingest", LAST) == 0
    assert place.run("item_features", LAST) == 0


def test_a_truncated_raw_file_is_named(place: Place) -> None:
    path = place.root / "raw" / "products.parquet"
    path.write_bytes(path.read_bytes()[:200])
    assert "products.parquet" in place.refused("ingest", LAST)


def _arrow(columns: dict[str, list[Any]]) -> Any:
    import pyarrow as pa

    return pa.table(columns)
