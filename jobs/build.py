"""What the feature jobs share: stage the days of a table, let its gate look, commit; which days are still to do."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from dig_models.faults import reached
from jobs.config import Config, ConfigError
from jobs.dates import days_between
from jobs.entry import Request
from jobs.lake import Lake, code_digest
from jobs.progress import emit
from jobs.provenance import SHARED_CODE
from jobs.reach import Reach

if TYPE_CHECKING:
    from argparse import ArgumentParser

log = logging.getLogger(__name__)
BROADCAST_ROWS = 1_000_000


@dataclass
class Build:
    """One run of a feature job.

    Args:
        config: settings in force.
        job: name of the job, as progress and markers show it.
        modules: modules whose sources decide what the job writes, beside ``SHARED_CODE``.
        steps: how many tables it writes, for the progress.
        request: the days of each table; none by default.

    Attributes:
        built: days written so far, by table.
    """

    config: Config
    spark: SparkSession
    job: str
    modules: Sequence[str]
    steps: int
    request: Request = field(default_factory=lambda: Request(days={}))
    lake: Lake = field(init=False)
    reach: Reach = field(init=False)
    built: dict[str, list[date]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.lake = Lake(self.config.paths.at("lake"))
        self.lake.claim(self.config.dataset.name)
        self.reach = Reach(self.config, self.lake)
        self.code = code_digest(*self.modules, *SHARED_CODE)
        self.settings = self.config.dataset.rows_digest()
        emit(self.job, 0, self.steps)

    def read_snapshots(self, days: Sequence[date]) -> DataFrame:
        """Rows of the items snapshots that stand for the days, ``ds`` being the snapshot's day; see ``with_snapshot``."""
        return self.lake.read(self.spark, "items", sorted({self.reach.snapshot(day) for day in days}))

    def with_snapshot(self, frame: DataFrame, days: Sequence[date]) -> DataFrame:
        """The frame with a column ``items_ds``: the snapshot that stands for each row's ``ds``; rows of other days are dropped."""
        pairs = [(day.isoformat(), self.reach.snapshot(day).isoformat()) for day in days]
        return frame.join(F.broadcast(self.spark.createDataFrame(pairs, "ds string, items_ds string")), "ds")

    def few(self, frame: DataFrame, table: str, days: Sequence[date]) -> DataFrame:
        """A frame that has at most the rows of some days of a table, marked for broadcast if those are few.

        Spark's own estimate of a joined or grouped frame is too far off to decide that.
        """
        rows = sum(marker.rows for marker in self.lake.require(table, days))
        return F.broadcast(frame) if rows <= BROADCAST_ROWS else frame

    def to_do(self, table: str) -> list[date]:
        """The days of a table that were asked for and are to be built anew or are not up to date."""
        return [day for day in self.request.wanted(table) if day in self.request.anew or not self.is_current(table, day)]

    def is_current(self, table: str, day: date) -> bool:
        """Whether a day is in the lake as it would be if it were built now."""
        return self.lake.is_current(table, day, inputs=self.reach.inputs(table, day), config=self.settings, code=self.code)

    def publish(self, table: str, days: Sequence[date], rows: Callable[[], DataFrame], *, sort: Sequence[str], gate: bool = False) -> None:
        """``commit`` the days of a table as one step of the job."""
        started = time.perf_counter()
        self.commit(table, days, rows, sort=sort, gate=gate)
        self.step(table, days, time.perf_counter() - started)

    def commit(self, table: str, days: Sequence[date], rows: Callable[[], DataFrame], *, sort: Sequence[str], gate: bool = False) -> None:
        """Write, check and commit days of a table; does nothing if there are none.

        Args:
            table: name of the table.
            days: the days to build.
            rows: makes the frame of just these days.
            sort: columns (or Spark columns) that rows of a day are sorted by.
            gate: whether the table has a data gate.

        Raises:
            GateFailed: nothing was committed.
        """
        if not days:
            return
        with self.lake.stage(table, f"{self.job}-{days[0]}-{days[-1]}") as stage:
            stage.write(rows(), days, sort=sort)
            stats = self._check(table, stage.frame(self.spark, days), list(days)) if gate else None
            reached("partition.gate_passed")
            stage.commit(
                self.spark,
                days,
                job=self.job,
                code=self.code,
                config=self.settings,
                inputs=lambda day: self.reach.inputs(table, day),
                stats=stats,
            )
        self.reach.forget(table, days)

    def step(self, table: str, days: Sequence[date], seconds: float) -> None:
        """One table is done: log it and tell the progress."""
        self.built[table] = list(days)
        log.info("%s: %d days in %.1f s", table, len(days), seconds)
        emit(self.job, len(self.built), self.steps, table=table, days=len(days))

    def _check(self, table: str, staged: DataFrame, days: list[date]) -> dict[date, dict[str, float]]:
        from jobs.checks import check  # Great Expectations takes seconds to import

        return check(table, staged, days, config=self.config, lake=self.lake, spark=self.spark).stats


def events_option(parser: ArgumentParser) -> None:
    """Option ``--events-from`` of the jobs that keep daily aggregates."""
    parser.add_argument(
        "--events-from",
        type=date.fromisoformat,
        default=None,
        metavar="DAY",
        help="also build the daily aggregates since this day; default: only of the days asked for",
    )


def event_days(first: date | None, days: Sequence[date]) -> list[date]:
    """Days of daily aggregates to build.

    Raises:
        ConfigError: ``--events-from`` lies after the first day asked for.
    """
    if first is not None and first > days[0]:
        raise ConfigError(f"--events-from {first}: lies after the first day asked for, {days[0]}")
    return days_between(first or days[0], days[-1])
