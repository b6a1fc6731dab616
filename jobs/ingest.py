"""Raw tables to the lake: interactions and requests of every day asked for, offers, items and users from a later day on.

``python -m jobs.ingest --date D | --from A --to B [--missing] [--offers-from X]``. All tables of a range are staged and pass
their gates before the first one is committed, so a bad day leaves the lake as it was.
"""

from __future__ import annotations

import argparse
import logging
import sys
from contextlib import ExitStack
from datetime import date
from functools import partial

from pyspark.sql import SparkSession

from dig_models.faults import reached
from jobs.checks import check
from jobs.config import Config
from jobs.entry import Invocation, JobError, Request, run
from jobs.lake import Lake, Staging, code_digest, shown
from jobs.progress import emit
from jobs.provenance import INGEST as SOURCES
from jobs.sources import open_source
from jobs.sources.base import EVENT_TABLES, SNAPSHOT_TABLES, Source, reading
from jobs.spark import spark_session

log = logging.getLogger(__name__)
NAME = "ingest"
SORT = {
    "interactions": ("request_id", "item_id"),
    "requests": ("request_id",),
    "offers": (),  # the largest tables; nothing reads them in order
    "items": (),
    "users": ("user_id",),
}


def plan(config: Config, days: list[date], offers_from: date | None) -> dict[str, list[date]]:
    """Days to build of each table.

    Raises:
        JobError: a day lies outside the data set.
    """
    dataset = config.dataset
    outside = [day for day in days if not dataset.first_date <= day <= dataset.last_date]
    if outside:
        raise JobError(
            f"ingest: {shown(outside)} outside data set {dataset.name}, whose days run from {dataset.first_date} to {dataset.last_date}"
        )
    late = [day for day in days if offers_from is None or day >= offers_from]
    return dict.fromkeys(EVENT_TABLES, days) | dict.fromkeys(SNAPSHOT_TABLES, late)


def to_do(config: Config, request: Request, source: Source, lake: Lake) -> dict[str, list[date]]:
    """The days of each table to build anew, or whose partition is missing, damaged, or made from other raw files, settings or sources."""
    settings, code = config.dataset.rows_digest(raw=True), code_digest(*SOURCES)

    def is_current(table: str, day: date) -> bool:
        return lake.is_current(table, day, inputs=source.inputs(table, day), config=settings, code=code)

    tables = (*EVENT_TABLES, *SNAPSHOT_TABLES)
    return {table: [day for day in request.wanted(table) if day in request.anew or not is_current(table, day)] for table in tables}


def ingest(spark: SparkSession, config: Config, source: Source, lake: Lake, wanted: dict[str, list[date]]) -> None:
    """Stage, check and commit the days of each table.

    Raises:
        JobError: raw data or a staged table are not as expected; nothing was committed.
    """
    wanted = {table: days for table, days in wanted.items() if days}
    steps, done = 2 * len(wanted) + 1, 1
    every = sorted({day for days in wanted.values() for day in days})
    emit(NAME, 0, steps)
    with reading("interactions"):
        source.check(spark, every)
    emit(NAME, done, steps)
    code, digest = code_digest(*SOURCES), config.dataset.rows_digest(raw=True)
    run_id = f"{NAME}-{every[0]}-{every[-1]}"
    with ExitStack() as stack:
        staged: dict[str, Staging] = {}
        for table, days in wanted.items():
            staged[table] = stack.enter_context(lake.stage(table, run_id))
            with reading(table):
                staged[table].write(source.frame(table, spark, days), days, sort=SORT[table], clustered=table in source.clustered)
            done += 1
            emit(NAME, done, steps, table=table, days=len(days))
        stats = {}
        for table, days in wanted.items():
            frame = staged[table].frame(spark, days)
            stats[table] = check(table, frame, days, config=config, lake=lake, spark=spark).stats
            done += 1
            emit(NAME, done, steps, table=table)
        reached("ingest.gates_passed")
        for table, days in wanted.items():
            markers = staged[table].commit(
                spark, days, job=NAME, code=code, config=digest, inputs=partial(source.inputs, table), stats=stats[table]
            )
            reached("ingest.table_committed")
            log.info("%s: %d rows on %s", table, sum(m.rows for m in markers), shown(days))


def build(spark: SparkSession, config: Config, request: Request) -> dict[str, list[date]]:
    """Build the raw tables of the days asked for.

    Returns:
        The days that were built, by table.
    """
    source, lake = open_source(config.dataset), Lake(config.paths.at("lake"))
    wanted = to_do(config, request, source, lake)
    if any(wanted.values()):
        ingest(spark, config, source, lake, wanted)
    return wanted


def main(call: Invocation) -> None:
    """Build what is asked for in one Spark application; no session is started if everything is there."""
    config, lake = call.config, Lake(call.config.paths.at("lake"))
    source = open_source(config.dataset)
    request = Request.of(plan(config, call.days, call.options.offers_from), missing=call.options.missing)
    wanted = to_do(config, request, source, lake)
    if not any(wanted.values()):
        log.info("ingest: %s up to date", shown(call.days))
        emit(NAME, 1, 1)
        return
    with spark_session(config, f"dig-{NAME}") as spark:
        ingest(spark, config, source, lake, wanted)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--offers-from",
        type=date.fromisoformat,
        default=None,
        metavar="X",
        help="offers, items and users only from this day on; events are needed much further back than exposures",
    )


if __name__ == "__main__":
    sys.exit(run(NAME, main, ranges=True, options=_options))
