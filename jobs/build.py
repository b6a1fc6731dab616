"""What the feature jobs share: stage the days of a table, let its gate look, commit; which days are still to do."""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import TYPE_CHECKING

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from dig_models.faults import reached
from jobs.config import Config, ConfigError
from jobs.dates import days_between
from jobs.lake import Inputs, Lake, code_digest
from jobs.progress import emit

if TYPE_CHECKING:
    from argparse import ArgumentParser

log = logging.getLogger(__name__)
BROADCAST_ROWS = 1_000_000
SHARED_CODE = ("dig_models.features", "jobs.build", "jobs.dates", "jobs.hashing")
"""Modules that decide the rows of every feature job."""
InputDays = Callable[[date], Mapping[str, Sequence[date]]]
"""Which days of which tables a day is made from."""


@dataclass
class Build:
    """One run of a feature job.

    Args:
        config: settings in force.
        job: name of the job, as progress and markers show it.
        modules: modules whose sources decide what the job writes, beside ``SHARED_CODE``.
        steps: how many tables it writes, for the progress.
        missing: leave days alone that are up to date.
    """

    config: Config
    spark: SparkSession
    job: str
    modules: Sequence[str]
    steps: int
    missing: bool = False
    lake: Lake = field(init=False)
    seconds: dict[str, float] = field(init=False, default_factory=dict)
    _done: int = field(init=False, default=0)
    _content: dict[tuple[str, date], str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.lake = Lake(self.config.paths.at("lake"))
        self.code = code_digest(*self.modules, *SHARED_CODE)
        self.settings = self.config.dataset.rows_digest()
        emit(self.job, 0, self.steps)

    @property
    def spec_input(self) -> Inputs:
        """Entry of a marker's inputs that carries the digest of the feature spec."""
        return {"feature_spec": {"digest": self.config.dataset.spec().digest}}

    def inputs(self, days: Mapping[str, Sequence[date]]) -> Inputs:
        """Content digests of committed days; each marker is read once a run."""
        found: Inputs = dict(self.spec_input)
        for table, wanted in days.items():
            unread = [day for day in wanted if (table, day) not in self._content]
            for day, marker in zip(unread, self.lake.require(table, unread), strict=True):
                self._content[table, day] = marker.content
            found[table] = {day.isoformat(): self._content[table, day] for day in wanted}
        return found

    def snapshots(self, table: str, days: Sequence[date]) -> dict[date, date]:
        """For each day the day of the snapshot (items, users) that stands for it: its own, else the next later one in the lake.

        Snapshots need not reach as far back as events; a day with none on or after it stands for itself, and reading it says so.
        """
        there = self.lake.days(table)
        at = {day: bisect_left(there, day) for day in days}
        return {day: there[i] if i < len(there) else day for day, i in at.items()}

    def read_snapshots(self, table: str, days: Sequence[date]) -> DataFrame:
        """Rows of the snapshots that stand for the days, ``ds`` being the snapshot's day; see ``with_snapshot``."""
        return self.lake.read(self.spark, table, sorted(set(self.snapshots(table, days).values())))

    def with_snapshot(self, frame: DataFrame, table: str, days: Sequence[date]) -> DataFrame:
        """The frame with a column ``<table>_ds``: the snapshot that stands for each row's ``ds``."""
        pairs = [(day.isoformat(), snapshot.isoformat()) for day, snapshot in self.snapshots(table, days).items()]
        return frame.join(F.broadcast(self.spark.createDataFrame(pairs, f"ds string, {table}_ds string")), "ds")

    def few(self, frame: DataFrame, table: str, days: Sequence[date]) -> DataFrame:
        """A frame that has at most the rows of some days of a table, marked for broadcast if those are few.

        Spark's own estimate of a joined or grouped frame is too far off to decide that.
        """
        rows = sum(marker.rows for marker in self.lake.require(table, days))
        return F.broadcast(frame) if rows <= BROADCAST_ROWS else frame

    def to_do(self, table: str, days: Sequence[date], made_from: InputDays) -> list[date]:
        """The days to build: all, or with ``missing`` those that are not up to date."""
        if not self.missing:
            return list(days)
        return [
            day
            for day in days
            if not self.lake.is_current(table, day, inputs=self.inputs(made_from(day)), config=self.settings, code=self.code)
        ]

    def publish(
        self,
        table: str,
        days: Sequence[date],
        rows: Callable[[], DataFrame],
        made_from: InputDays,
        *,
        sort: Sequence[str],
        gate: bool = False,
    ) -> None:
        """Write, check and commit the days of a table that are to do; does nothing if there are none.

        Args:
            table: name of the table.
            days: the days asked for.
            rows: makes the frame of just the days it is given.
            made_from: which input days a day is made from.
            sort: columns (or Spark columns) that rows of a day are sorted by.
            gate: whether the table has a data gate.

        Raises:
            GateFailed: nothing was committed.
        """
        started = time.perf_counter()
        if days:
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
                    inputs=lambda day: self.inputs(made_from(day)),
                    stats=stats,
                )
            for day in days:
                self._content.pop((table, day), None)
        self.step(table, len(days), time.perf_counter() - started)

    def step(self, table: str, days: int, seconds: float) -> None:
        """One table is done: log it and tell the progress."""
        self._done += 1
        self.seconds[table] = seconds
        log.info("%s: %d days in %.1f s", table, days, seconds)
        emit(self.job, self._done, self.steps, table=table, days=days)

    def _check(self, table: str, staged: DataFrame, days: list[date]) -> dict[date, dict[str, float]]:
        from jobs.checks import check  # Great Expectations takes seconds to import

        return check(table, staged, days, config=self.config, lake=self.lake, spark=self.spark).stats


def window_before(last: date, days: int, first_date: date) -> list[date]:
    """The ``days`` days that end with ``last``, cut at the first day with data."""
    return days_between(max(last - timedelta(days=days - 1), first_date), last)


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
