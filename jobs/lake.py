"""The lake: daily partitions that are committed whole, by replacing one small marker.

``<lake>/<table>/ds=YYYY-MM-DD/data-<id>/…`` holds the rows and ``<lake>/<table>/ds=…/_MARKER.json`` names the data folder.
Replacing the marker is the commit: a reader sees the old day or the new one, never a mixture. A job writes to
``<lake>/_staging/<run id>/<table>``, its gate looks at what was staged, then ``Staging.commit`` publishes all days.
Nothing in a marker depends on the clock, so the same rows from the same code and settings give the same marker.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from dig_models.files import replace_text, sync_dir, sync_tree
from jobs.entry import JobError
from jobs.files import exclusive

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

MARKER = "_MARKER.json"
STAGING = "_staging"
HELPER = "_ds"  # partition column of a staged write; `ds` itself stays a real column of the files
Inputs = dict[str, dict[str, str]]


class MissingPartition(JobError):
    """A table lacks days that a job needs."""


class CorruptPartition(JobError):
    """A committed day cannot be read: its marker or one of its files is damaged."""


class SchemaMismatch(JobError):
    """Days of one table have different schemas."""


@dataclass(frozen=True, kw_only=True)
class Marker:
    """What is known of a committed day.

    Attributes:
        data: name of the data folder beside the marker.
        content: order-free digest of the rows.
        schema: digest of ``columns``, which maps names to types.
        code: digest of the sources that made it; ``config``: digest of the settings that they read.
        inputs: content digests of what it was made from, by table and day.
    """

    table: str
    ds: str
    data: str
    rows: int
    content: str
    schema: str
    columns: dict[str, str]
    code: str
    config: str
    inputs: Inputs
    stats: dict[str, float]
    job: str

    def text(self) -> str:
        """Canonical JSON of the marker file."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def parse(cls, text: str, where: str) -> Marker:
        """Read a marker file.

        Raises:
            CorruptPartition: it is not the JSON of a marker.
        """
        expected = {f.name for f in fields(cls)}
        try:
            loaded: dict[str, Any] = json.loads(text)
            found = set(loaded)
        except (ValueError, TypeError) as error:
            raise CorruptPartition(f"{where}: not a marker ({error}); rebuild the day") from None
        if found != expected:
            raise CorruptPartition(f"{where}: keys {sorted(found ^ expected)} are missing or unknown; rebuild the day")
        return cls(**loaded)


def digest_of(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON of a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def code_digest(*modules: str) -> str:
    """Digest of the sources of modules (``jobs.ingest``) or packages (``jobs.sources``), found without importing them.

    Raises:
        ValueError: there is no such module.
    """
    total = hashlib.sha256()
    for name in sorted(modules):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ValueError(f"code_digest: no module {name!r}")
        origin = Path(spec.origin)
        for path in sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else [origin]:
            total.update(f"{name}:{path.name}\n".encode() + path.read_bytes())
    return total.hexdigest()[:16]


class Lake:
    """Tables under one root folder (local, or mounted on every machine).

    Args:
        root: folder of the lake; created when first written.
    """

    def __init__(self, root: str) -> None:
        if "://" in root:
            raise ValueError(f"paths.lake: {root}: a lake needs a folder (local or a mounted share), not a URL")
        self.root = Path(root)

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
        target = home / marker.data
        with exclusive(self.root / marker.table / ".lock"):
            if self._holds(marker):
                shutil.rmtree(staged)  # a rerun gave the same rows; readers of the old files are left in peace
                return
            if target.exists():  # left by a commit that was cut short, or damaged since
                aside = home / f".damaged-{marker.data}"
                shutil.rmtree(aside, ignore_errors=True)
                target.rename(aside)
            sync_tree(staged)
            staged.rename(target)
            for folder in (home, home.parent, self.root):
                sync_dir(folder)
            replace_text(home / MARKER, marker.text())  # durable when it returns, with its name
            for old in home.iterdir():
                if old.is_dir() and old.name != marker.data:
                    shutil.rmtree(old)

    def _holds(self, marker: Marker) -> bool:
        """Whether just this marker is committed and its files are whole."""
        try:
            return self.marker(marker.table, date.fromisoformat(marker.ds)) == marker and self._whole(marker)
        except CorruptPartition:
            return False


class _Stage:
    """Staging folder of one table and run, held by one process at a time."""

    def __init__(self, lake: Lake, table: str, run_id: str) -> None:
        self.lake, self.table = lake, table
        self._home = lake.root / STAGING / run_id
        self.path = self._home / table
        self._lock = exclusive(lake.root / STAGING / f".{run_id}.{table}.lock", wait=False)

    def __enter__(self) -> Self:
        self._lock.__enter__()
        shutil.rmtree(self.path, ignore_errors=True)  # left by a run that was killed
        self.path.mkdir(parents=True)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            shutil.rmtree(self.path, ignore_errors=True)
            if self._home.is_dir() and not any(self._home.iterdir()):
                self._home.rmdir()
        finally:
            self._lock.__exit__(None, None, None)

    def _publish(self, staged: Path, *, ds: date, rows: int, content: str, columns: dict[str, str], **rest: Any) -> Marker:
        draft: dict[str, Any] = {"table": self.table, "ds": ds.isoformat(), "rows": rows, "content": content, "columns": columns}
        draft |= {"schema": digest_of(columns), **rest}
        marker = Marker(data=f"data-{digest_of(draft)[:12]}", **draft)
        self.lake.publish(marker, staged)
        return marker


class Staging(_Stage):
    """Days of a Parquet table that are written but not yet committed.

    Use: ``with lake.stage(table, run_id) as stage: stage.write(df, days); check(stage.frame(spark, days)); stage.commit(…)``.
    """

    def write(
        self, df: DataFrame, days: Sequence[date], *, sort: Sequence[str] = (), files_per_day: int = 1, clustered: bool = False
    ) -> None:
        """Write all days in one Spark job, ``files_per_day`` files each; days without rows get one empty file.

        Args:
            df: rows with a string column ``ds`` that is one of ``days``.
            days: the days to stage.
            sort: columns that rows of a day are sorted by.
            files_per_day: pieces of a day, by hash of the ``sort`` columns.
            clustered: rows of a day are in one partition of ``df`` already, so that no shuffle is needed.

        Raises:
            JobError: rows belong to days that were not asked for.
        """
        from pyspark.sql import functions as F

        if "ds" not in df.columns:
            raise ValueError(f"table {self.table}: a lake table needs a string column ds, found {df.columns}")
        self._columns = {f.name: f.dataType.simpleString() for f in df.schema.fields}
        wanted = [day.isoformat() for day in days]
        parts = min(len(wanted) * files_per_day, int(df.sparkSession.conf.get("spark.sql.shuffle.partitions") or 1))
        # Days dealt out in turn: every day goes whole (or in files_per_day pieces) to one task, and tasks get equal shares.
        day = F.coalesce(F.datediff(F.expr("try_cast(ds AS date)"), F.lit(days[0])), F.lit(0))
        piece = F.pmod(F.xxhash64(*(sort or df.columns)), F.lit(files_per_day)).cast("int")
        place = F.pmod(day * files_per_day + piece, F.lit(parts))
        out = df.withColumn(HELPER, F.col("ds"))
        out = (out if clustered else out.repartitionById(parts, place)).sortWithinPartitions(HELPER, *sort)
        out.write.mode("overwrite").partitionBy(HELPER).parquet(str(self.path))
        stray = {p.name.removeprefix(f"{HELPER}=") for p in self.path.glob(f"{HELPER}=*")} - set(wanted)
        if stray:
            raise JobError(f"table {self.table}: rows of days {sorted(stray)[:5]} while building {shown(days)}; their ds is wrong")
        self._fill_empty(df, [day for day in days if not self._day(day).is_dir()])

    def _day(self, ds: date) -> Path:
        return self.path / f"{HELPER}={ds.isoformat()}"

    def _fill_empty(self, df: DataFrame, days: Sequence[date]) -> None:
        if not days:
            return
        empty = self.path / ".empty"
        df.sparkSession.createDataFrame([], df.schema).coalesce(1).write.mode("overwrite").parquet(str(empty))
        for day in days:
            shutil.copytree(empty, self._day(day), ignore=shutil.ignore_patterns("_SUCCESS*", "._SUCCESS*"))
        shutil.rmtree(empty)

    def frame(self, spark: SparkSession, days: Sequence[date]) -> DataFrame:
        """What was staged, read back."""
        return spark.read.parquet(*(str(self._day(day)) for day in days))

    def commit(
        self,
        spark: SparkSession,
        days: Sequence[date],
        *,
        job: str,
        code: str,
        config: str,
        inputs: Callable[[date], Inputs],
        stats: Mapping[date, Mapping[str, float]] | None = None,
    ) -> list[Marker]:
        """Publish all staged days, each by one marker replacement.

        Args:
            spark: session for the one aggregation that counts and digests the rows of each day.
            days: the days that were staged.
            job: name of the job.
            code: see ``code_digest``.
            config: see ``Config.digest``.
            inputs: what a day was made from, see ``Lake.inputs``.
            stats: figures to keep with a day.
        """
        found = contents(self.frame(spark, days))
        markers = []
        for day in days:
            rows, content = found.get(day.isoformat(), (0, f"{0:016x}"))
            figures = {k: float(v) for k, v in ((stats or {}).get(day) or {}).items()}
            rest: dict[str, Any] = {"job": job, "code": code, "config": config, "inputs": inputs(day), "stats": figures}
            markers.append(self._publish(self._day(day), ds=day, rows=rows, content=content, columns=self._columns, **rest))
        return markers


class FileStaging(_Stage):
    """One day of a table of arbitrary files; write them under ``path``."""

    def __init__(self, lake: Lake, table: str, ds: date, run_id: str) -> None:
        super().__init__(lake, table, run_id)
        self.ds = ds

    def commit(
        self, *, rows: int, job: str, code: str, config: str, inputs: Inputs, content: str = "", stats: Mapping[str, float] | None = None
    ) -> Marker:
        """Publish the folder.

        Args:
            rows: how many rows (whatever the job counts) the files hold.
            job: name of the job.
            code: see ``code_digest``.
            config: see ``Config.digest``.
            inputs: what the day was made from, see ``Lake.inputs``.
            content: digest of the content; by default the SHA-256 over names and bytes of all files.
            stats: figures to keep with the day.
        """
        figures = {k: float(v) for k, v in (stats or {}).items()}
        rest: dict[str, Any] = {"job": job, "code": code, "config": config, "inputs": inputs, "stats": figures}
        return self._publish(self.path, ds=self.ds, rows=rows, content=content or folder_digest(self.path), columns={}, **rest)


def contents(df: DataFrame) -> dict[str, tuple[int, str]]:
    """Row count and order-free digest of every day of a frame, ``{ds: (rows, digest)}``, in one aggregation.

    The digest is the sum of the rows' xxhash64 modulo 2^64 in hex; null positions are hashed too, because Spark's hash skips nulls.
    """
    from pyspark.sql import functions as F

    hashed = df.select("ds", F.xxhash64(*(F.col(f"`{c}`") for c in df.columns), *_null_masks(df)).alias("h"))
    # Two sums of 32-bit halves cannot overflow a bigint below 2^31 rows a day.
    low, high = F.sum(F.col("h").bitwiseAND(0xFFFFFFFF)), F.sum(F.shiftrightunsigned("h", 32))
    rows = hashed.groupBy("ds").agg(F.count(F.lit(1)).alias("n"), low.alias("low"), high.alias("high")).collect()
    return {row["ds"]: (int(row["n"]), f"{(int(row['low']) + (int(row['high']) << 32)) % (1 << 64):016x}") for row in rows}


def _null_masks(df: DataFrame) -> list[Column]:
    """Which columns of a row are null, as the bits of one or more numbers."""
    from pyspark.sql import functions as F

    flags = [F.when(F.isnull(F.col(f"`{name}`")), F.lit(1 << i % 30)).otherwise(F.lit(0)) for i, name in enumerate(df.columns)]
    return [reduce(lambda left, right: left.bitwiseOR(right), flags[i : i + 30]) for i in range(0, len(flags), 30)]


def folder_digest(folder: Path) -> str:
    """SHA-256 (16 hex digits) over relative names and bytes of all files of a folder."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(str(path.relative_to(folder)).encode())
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def shown(days: Sequence[date]) -> str:
    """Days for a message: all of a few, else the first, the last and how many."""
    names = [day.isoformat() for day in days]
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]}, … {names[-1]} ({len(names)} days)"


def job_of(table: str) -> str:
    """The job that builds a table."""
    own = {"item_daily": "item_features", "u2i_daily": "u2i_crosses", "cross_arrays": "u2i_crosses", "user_state": "examples"}
    raw = {"interactions", "requests", "offers", "items", "users"}
    return "jobs.ingest" if table in raw else f"jobs.{own.get(table, table)}"


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
