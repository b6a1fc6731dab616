"""What a committed day says of itself: its marker, the digests in it, and the errors of days that cannot be read."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.entry import JobError

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

MARKER = "_MARKER.json"
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
    own = {
        "item_daily": "item_features",
        "u2i_daily": "u2i_crosses",
        "cross_arrays": "u2i_crosses",
        "user_state": "examples",
        "recommendations": "recommend",
    }
    raw = {"interactions", "requests", "offers", "items", "users"}
    return "jobs.ingest" if table in raw else f"jobs.{own.get(table, table)}"
