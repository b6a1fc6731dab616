"""Where days of a table are built before they are committed: one folder a run and table, held by one process at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from dig_models.faults import reached
from dig_models.files import naming_full_disk
from jobs.entry import JobError
from jobs.files import exclusive
from jobs.partition import Inputs, Marker, contents, digest_of, folder_digest, shown

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from jobs.lake import Lake

STAGING = "_staging"
HELPER = "_ds"  # partition column of a staged write; `ds` itself stays a real column of the files


class _Stage:
    """Staging folder of one table and run, held by one process at a time."""

    def __init__(self, lake: Lake, table: str, run_id: str) -> None:
        self.lake, self.table = lake, table
        self._home = lake.root / STAGING / run_id
        self.path = self._home / table
        self._lock = lake.root / STAGING / f".{run_id}.{table}.lock"
        self._held = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            opening.enter_context(naming_full_disk(self.path))
            opening.enter_context(exclusive(self._lock, wait=False))
            opening.callback(self._clear)
            shutil.rmtree(self.path, ignore_errors=True)  # left by a run that was killed
            self.path.mkdir(parents=True)
            reached("partition.staging_cleared")
            self._held = opening.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._held.__exit__(kind, error, trace)

    def _clear(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._home.is_dir() and not any(self._home.iterdir()):
            self._home.rmdir()
        reached("partition.staging_removed")

    def _publish(self, staged: Path, *, ds: date, rows: int, content: str, columns: dict[str, str], **rest: Any) -> Marker:
        draft: dict[str, Any] = {"table": self.table, "ds": ds.isoformat(), "rows": rows, "content": content, "columns": columns}
        draft |= {"schema": digest_of(columns), **rest}
        marker = Marker(data=f"data-{digest_of(draft)[:12]}", **draft)
        reached("partition.staged")
        self.lake.publish(marker, staged)
        reached("partition.day_committed")
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
        reached("partition.rows_written")
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
