"""What a source is: raw tables turned into the lake tables interactions, requests, offers, items and users.

A source cleans only what its data set documents. Duplicates, null keys and rows outside their day stay in the frames,
so that the data gate sees them and can name them.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.config import DatasetConfig
from jobs.entry import JobError

log = logging.getLogger(__name__)
EVENT_TABLES = ("interactions", "requests")
SNAPSHOT_TABLES = ("offers", "items", "users")
SAMPLE_MODULUS = 1_000_000
WHOLE_FILE = 64 << 20
EDGE = 1 << 20


class RawDataError(JobError):
    """A raw table is missing, damaged, or not what the data set's YAML says; the message names table, column and file."""


class Source(ABC):
    """Raw data of one data set.

    Args:
        dataset: the data set's settings.

    Attributes:
        clustered: tables whose frames hold every day in one Spark partition.
    """

    clustered: frozenset[str] = frozenset()

    def __init__(self, dataset: DatasetConfig) -> None:
        self.dataset = dataset

    @abstractmethod
    def inputs(self, table: str, day: date) -> dict[str, dict[str, str]]:
        """Fingerprints of the raw files that a day of a lake table is made from: ``{raw table: {day or "all": digest}}``."""

    @abstractmethod
    def check(self, spark: SparkSession, days: Sequence[date]) -> None:
        """Look at the raw tables before anything is built.

        Raises:
            RawDataError: a table, a column or a file is not as expected.
        """

    @abstractmethod
    def interactions(self, spark: SparkSession, days: Sequence[date]) -> DataFrame:
        """request_id, user_id, item_id, ts, quantity, value, ds: one row per request and item with a positive event."""

    @abstractmethod
    def requests(self, spark: SparkSession, days: Sequence[date]) -> DataFrame:
        """request_id, user_id, ts, offer_key, context columns, ds: one row per request."""

    @abstractmethod
    def offers(self, spark: SparkSession, days: Sequence[date]) -> DataFrame:
        """offer_key, item_id, offer columns, ds: one row per offer key of the day's requests and exposed item."""

    @abstractmethod
    def items(self, spark: SparkSession, days: Sequence[date]) -> DataFrame:
        """item_id, item columns, name, ds: the items known on each day."""

    @abstractmethod
    def users(self, spark: SparkSession, days: Sequence[date]) -> DataFrame:
        """user_id, user columns, ds: the sampled users known on each day."""

    def frame(self, table: str, spark: SparkSession, days: Sequence[date]) -> DataFrame:
        """One lake table by name."""
        made: DataFrame = getattr(self, table)(spark, days)
        return made

    def sampled(self, user_id: Column) -> Column:
        """Whether a user belongs to the sample: ``pmod(xxhash64(user_id, seed), 1e6) < share * 1e6``; nulls stay, for the gate."""
        if self.dataset.sample_users >= 1.0:
            return F.lit(True)
        place = F.pmod(F.xxhash64(user_id, F.lit(self.dataset.sample_seed)), F.lit(SAMPLE_MODULUS))
        return user_id.isNull() | (place < round(self.dataset.sample_users * SAMPLE_MODULUS))

    def display_name(self) -> Column:
        """Text shown for an item: its ``item_name`` columns without the nulls, or its id."""
        text = F.concat_ws(", ", *(F.col(c).cast("string") for c in self.dataset.item_name))
        return F.when(F.length(text) > 0, text).otherwise(F.col("item_id"))


@contextmanager
def reading(table: str) -> Iterator[None]:
    """Turn Spark's word on bad raw data into ours.

    Raises:
        RawDataError: Spark could not read a file or a record; other errors pass as they are.
    """
    try:
        yield
    except (PySparkException, Py4JJavaError) as error:  # Spark wraps what a task met, by its class, in one or the other
        said = _said(str(error), "MALFORMED|CANNOT_PARSE|USER_RAISED_EXCEPTION") or _said(str(error), "FAILED_READ_FILE")
        if said is None:
            raise
        file = re.search(r"reading file file:/*(/\S+?)\.?\s", str(error))
        where = f"raw data for table {table}{f', {file.group(1)}' if file else ''}"
        raise RawDataError(
            f"{where}: {said.group(1)[:500]}; mend the file, or tell Spark's reader what to do by options of the table"
        ) from error


def _said(text: str, conditions: str) -> re.Match[str] | None:
    """The sentence of the first of some error conditions."""
    return re.search(rf"\[(?:{conditions})[\w.]*\] ([^\n]*)", text)


def day_frame(spark: SparkSession, days: Iterable[date]) -> DataFrame:
    """One row per day with the string column ``ds``, small enough to broadcast."""
    return F.broadcast(spark.createDataFrame([(day.isoformat(),) for day in days], "ds string"))


def after(day: date) -> date:
    """The next day."""
    return day + timedelta(days=1)


def local_files(table: str, path: str) -> list[Path]:
    """Files of a raw table that lies in a folder, a file or a glob.

    Raises:
        RawDataError: there are none.
    """
    found = sorted(Path(p) for p in glob.glob(path, recursive=True))  # noqa: PTH207 - the pattern may be absolute
    files = [f for p in found for f in (sorted(p.rglob("*")) if p.is_dir() else [p])]
    files = [f for f in files if f.is_file() and not f.name.startswith((".", "_"))]
    if not files:
        raise RawDataError(f"raw table {table}: no file at {path}; check the path in the data set's YAML and that the day was delivered")
    return files


def parquet_schema(table: str, files: Sequence[Path]) -> pa.Schema:
    """Arrow schema that all Parquet files of a raw table share.

    Raises:
        RawDataError: a file is truncated, or has other columns than the first.
    """
    schemas = []
    for file in files:
        try:
            schemas.append(pq.read_schema(file).remove_metadata())
        except (pa.ArrowInvalid, OSError) as error:
            raise RawDataError(f"raw table {table}: {file} is no whole Parquet file ({str(error).splitlines()[0]})") from None
        if not schemas[-1].equals(schemas[0]):
            expected = {f.name: str(f.type) for f in schemas[0]}
            compare_columns(f"{table} ({file})", {f.name: str(f.type) for f in schemas[-1]}, expected, origin=f"as in {files[0]}")
    return schemas[0]


def compare_columns(table: str, found: Mapping[str, str], expected: Mapping[str, str], *, origin: str = "as documented") -> None:
    """Hold a raw table against the columns it should have; columns beyond those are logged and ignored.

    Raises:
        RawDataError: a column is missing (perhaps renamed) or has another type.
    """
    extra = [name for name in found if name not in expected]
    for name, kind in expected.items():
        if name not in found:
            hint = f"; unknown columns that may be its new name: {', '.join(extra)}" if extra else ""
            raise RawDataError(
                f"raw table {table}: column {name} is missing; expected type {kind} {origin}; found columns {', '.join(found)}{hint}"
            )
        if found[name] != kind:
            raise RawDataError(f"raw table {table}: column {name} has type {found[name]}, expected {kind} {origin}")
    if extra:
        log.info("raw table %s: ignoring columns that nothing asks for: %s", table, ", ".join(extra))


def fingerprint(files: Sequence[Path]) -> str:
    """Digest (16 hex digits) of names, sizes and bytes of files; of files above 64 MiB the first and last MiB stand for all."""
    total = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        total.update(f"{file.name}:{size}\n".encode())
        with file.open("rb") as raw:
            if size <= WHOLE_FILE:
                total.update(hashlib.file_digest(raw, "sha256").digest())
            else:
                total.update(raw.read(EDGE))
                raw.seek(-EDGE, 2)
                total.update(raw.read(EDGE))
    return total.hexdigest()[:16]
