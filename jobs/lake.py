"""The lake: daily partitions that are committed whole, by replacing one small marker.

``<lake>/<table>/ds=YYYY-MM-DD/data-<id>/…`` holds the rows and ``<lake>/<table>/ds=…/_MARKER.json`` names the data folder.
Replacing the marker is the commit: a reader sees the old day or the new one, never a mixture. A job writes to
``<lake>/_staging/<run id>/<table>``, its gate looks at what was staged, then ``Staging.commit`` publishes all days.
Nothing in a marker depends on the clock, so the same rows from the same code and settings give the same marker.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from dig_models.faults import reached
from dig_models.files import replace_text, sync_dir, sync_tree
from jobs.entry import JobError
from jobs.files import exclusive
from jobs.partition import (
    MARKER,
    CorruptPartition,
    Inputs,
    Marker,
    MissingPartition,
    SchemaMismatch,
    code_digest,
    contents,
    digest_of,
    folder_digest,
    job_of,
    shown,
)
from jobs.staging import STAGING, FileStaging, Staging

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = [
    "MARKER",
    "STAGING",
    "CorruptPartition",
    "FileStaging",
    "Inputs",
    "Lake",
    "Marker",
    "MissingPartition",
    "SchemaMismatch",
    "Staging",
    "code_digest",
    "contents",
    "digest_of",
    "job_of",
    "shown",
]


DATASET = "DATASET"
"""File under the root that names the data set."""


class Lake:
    """Tables under one root folder (local, or mounted on every machine).

    Args:
        root: folder of the lake; created when first written.
    """

    def __init__(self, root: str) -> None:
        if "://" in root:
            raise ValueError(f"paths.lake: {root}: a lake needs a folder (local or a mounted share), not a URL")
        self.root = Path(root)

    def claim(self, dataset: str) -> None:
        """Keep the lake for one data set: the first that is built there, by name.

        Raises:
            JobError: it belongs to another one.
        """
        if not self.belongs_to(dataset):
            self.root.mkdir(parents=True, exist_ok=True)
            replace_text(self.root / DATASET, f"{dataset}\n")

    def belongs_to(self, dataset: str) -> bool:
        """Whether the lake is this data set's; False if it is nobody's yet.

        Raises:
            JobError: it belongs to another one.
        """
        path = self.root / DATASET
        owner = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        if owner not in ("", dataset):
            raise JobError(
                f"{self.root} holds the data set {owner}, and the settings choose {dataset}: give it a home of its own (paths.home), "
                "where lake, models and index of no other data set are"
            )
        return bool(owner)

    def day_dir(self, table: str, ds: date) -> Path:
        """Folder of one day of a table."""
        return self.root / table / f"ds={ds.isoformat()}"

    def marker(self, table: str, ds: date) -> Marker | None:
        """Marker of a day, ``None`` if the day was never committed.

        Raises:
            CorruptPartition: the marker is damaged or its data folder is gone.
        """
        path = self.day_dir(table, ds) / MARKER
        if not path.is_file():
            return None
        marker = Marker.parse(path.read_text(), str(path))
        if not (path.parent / marker.data).is_dir():
            raise CorruptPartition(f"table {table}, day {ds}: data folder {path.parent / marker.data} is gone; rebuild the day")
        return marker

    def require(self, table: str, days: Iterable[date]) -> list[Marker]:
        """Markers of all days, in the order asked.

        Raises:
            MissingPartition: some day was never committed.
            CorruptPartition: see ``marker``.
        """
        days = list(days)
        markers = [self.marker(table, day) for day in days]
        missing = [day for day, marker in zip(days, markers, strict=True) if marker is None]
        if missing:
            raise MissingPartition(
                f"table {table}: {len(missing)} of {len(days)} days are missing from {self.root}: {shown(missing)}; "
                f"build them first with python -m {job_of(table)} --from {missing[0]} --to {missing[-1]}"
            )
        return [marker for marker in markers if marker is not None]

    def days(self, table: str) -> list[date]:
        """Committed days of a table, ascending."""
        found = (path.parent.name.removeprefix("ds=") for path in (self.root / table).glob(f"ds=*/{MARKER}"))
        return sorted(date.fromisoformat(ds) for ds in found)

    def paths(self, table: str, days: Iterable[date]) -> list[str]:
        """Data folders of committed days."""
        return [str(self.day_dir(table, date.fromisoformat(m.ds)) / m.data) for m in self.require(table, days)]

    def inputs(self, tables: Mapping[str, Iterable[date]]) -> Inputs:
        """Content digests of committed days, as a marker keeps them under ``inputs``."""
        return {table: {m.ds: m.content for m in self.require(table, days)} for table, days in sorted(tables.items())}

    def is_current(self, table: str, ds: date, *, inputs: Inputs, config: str, code: str) -> bool:
        """Whether a day is committed and readable and was made from just these inputs, settings and sources."""
        try:
            marker = self.marker(table, ds)
            return marker is not None and (marker.inputs, marker.config, marker.code) == (inputs, config, code) and self._whole(marker)
        except CorruptPartition:
            return False  # a damaged day is one to rebuild

    def _whole(self, marker: Marker) -> bool:
        """Whether the files of a committed day are as its marker says."""
        if marker.columns:
            self._check_files([marker])
            return True
        return folder_digest(self.day_dir(marker.table, date.fromisoformat(marker.ds)) / marker.data) == marker.content

    def _check_files(self, markers: Sequence[Marker]) -> list[list[Path]]:
        """Parquet files of each day, after a look at every footer."""
        found = []
        for marker in markers:
            folder = self.day_dir(marker.table, date.fromisoformat(marker.ds)) / marker.data
            files = sorted(folder.glob("*.parquet"))
            rows = sum(_footer_rows(file, marker) for file in files)
            if rows != marker.rows or (not files and marker.columns):
                raise CorruptPartition(
                    f"table {marker.table}, day {marker.ds}: {folder} holds {rows} rows in {len(files)} files, "
                    f"its marker says {marker.rows}; rebuild the day"
                )
            found.append(files)
        return found

    def _readable(self, table: str, days: Iterable[date]) -> tuple[list[Marker], list[list[Path]]]:
        markers = self.require(table, days)
        if not markers:
            raise ValueError(f"table {table}: no days asked for")
        for marker in markers:
            if marker.schema != markers[0].schema:
                raise SchemaMismatch(
                    f"table {table}: day {marker.ds} has other columns than day {markers[0].ds}: "
                    f"{_difference(markers[0].columns, marker.columns)}; rebuild the older of the two"
                )
        return markers, self._check_files(markers)

    def read(self, spark: SparkSession, table: str, days: Iterable[date]) -> DataFrame:
        """Committed days as a Spark frame.

        Raises:
            MissingPartition: some day is not there.
            CorruptPartition: a file is truncated or gone; the message names table, day and file.
            SchemaMismatch: the days have different columns.
        """
        _, files = self._readable(table, days)
        return spark.read.parquet(*sorted({str(file.parent) for day in files for file in day}))

    def read_arrow(self, table: str, days: Iterable[date], columns: Sequence[str] | None = None) -> pa.Table:
        """Committed days as one Arrow table, days in the order asked; errors as ``read``."""
        markers, files = self._readable(table, days)
        parts = []
        for marker, day in zip(markers, files, strict=True):
            for file in day:
                try:
                    parts.append(pq.read_table(file, columns=None if columns is None else list(columns), partitioning=None))
                except (pa.ArrowInvalid, OSError) as error:
                    raise CorruptPartition(f"table {marker.table}, day {marker.ds}: cannot read {file}: {error}; rebuild the day") from None
        return pa.concat_tables(parts)

    def folder(self, table: str, ds: date) -> Path:
        """Data folder of one committed day (for tables that are not Parquet)."""
        return Path(self.paths(table, [ds])[0])

    def stage(self, table: str, run_id: str) -> Staging:
        """A place to build days of a Parquet table; a context manager that clears up behind itself."""
        return Staging(self, table, run_id)

    def stage_files(self, table: str, ds: date, run_id: str | None = None) -> FileStaging:
        """A folder to build one day of a table of any files; a context manager that clears up behind itself."""
        return FileStaging(self, table, ds, run_id or f"{table}-{ds}")

    def publish(self, marker: Marker, staged: Path) -> None:
        """Move a staged folder into its day, replace the marker, then remove what the old marker pointed to.

        Each step is durable before the next: after a power cut the marker names whole data, the old or the new.
        """
        home = self.root / marker.table / f"ds={marker.ds}"
        home.mkdir(parents=True, exist_ok=True)
        with exclusive(self.root / marker.table / ".lock"):
            if self._holds(marker):
                reached("partition.same_found")
                shutil.rmtree(staged)  # a rerun gave the same rows; readers of the old files are left in peace
            else:
                self._place(marker, staged, home)
            for old in home.iterdir():  # also what a commit that was cut short did not come to remove
                if old.is_dir() and old.name != marker.data:
                    shutil.rmtree(old)
            reached("partition.old_removed")

    def _place(self, marker: Marker, staged: Path, home: Path) -> None:
        """Make a staged folder the data of its day."""
        target = home / marker.data
        if target.exists():  # left by a commit that was cut short, or damaged since
            aside = home / f".damaged-{marker.data}"
            shutil.rmtree(aside, ignore_errors=True)
            target.rename(aside)
            reached("partition.damaged_moved_aside")
        sync_tree(staged)
        reached("partition.synced")
        staged.rename(target)
        reached("partition.moved")
        for folder in (home, home.parent, self.root, self.root.parent):
            sync_dir(folder)
        reached("partition.named")
        replace_text(home / MARKER, marker.text())  # durable when it returns, with its name
        reached("partition.marker_replaced")

    def _holds(self, marker: Marker) -> bool:
        """Whether just this marker is committed and its files are whole."""
        try:
            return self.marker(marker.table, date.fromisoformat(marker.ds)) == marker and self._whole(marker)
        except CorruptPartition:
            return False


def _footer_rows(file: Path, marker: Marker) -> int:
    try:
        return int(pq.read_metadata(file).num_rows)
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptPartition(
            f"table {marker.table}, day {marker.ds}: {file} is no whole Parquet file ({str(error).splitlines()[0]}); rebuild the day"
        ) from None


def _difference(first: Mapping[str, str], second: Mapping[str, str]) -> str:
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    return ", ".join(f"{name} is {second.get(name, 'missing')}, was {first.get(name, 'missing')}" for name in names)
