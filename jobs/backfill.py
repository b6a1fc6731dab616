"""The four feature jobs for a range of days in one Spark application: ingest, item_features, u2i_crosses, examples.

``python -m jobs.backfill --from A --to B [--anew]``. The range is built in chunks of ``backfill.chunk_days`` days, oldest first, each
through all four jobs, and with the first one the earlier days that its features reach. Days that are up to date stay, so a run that was
cut short goes on at the first day that is missing; ``--anew`` builds the days of the range all the same. What belongs to the last day
alone, its cross arrays and user state, is built with the last chunk: a range gives the same partitions however it is cut.
"""

from __future__ import annotations

import logging
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import examples, ingest, item_features, u2i_crosses
from jobs.config import Config, ConfigError
from jobs.dates import days_between
from jobs.entry import Invocation, Request, run
from jobs.files import exclusive
from jobs.lake import STAGING, Lake, MissingPartition
from jobs.progress import emit, part_of
from jobs.provenance import RAW_TABLES, code_of
from jobs.reach import Reach, spans
from jobs.sources import open_source
from jobs.spark import spark_session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)
NAME = "backfill"
STEPS = (ingest.build, item_features.build, u2i_crosses.build, examples.build)
Built = dict[str, list[date]]


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Days that go through the jobs together.

    Attributes:
        days: the days asked for, which progress is counted in.
        request: the days of each table.
    """

    days: Sequence[date]
    request: Request


def plan(config: Config, first: date, last: date, *, anew: bool = False) -> list[Chunk]:
    """Chunks of a range, in the order to build them.

    Args:
        config: settings in force.
        first: first day of examples.
        last: last day, which user state and cross arrays are made for.
        anew: build the days of the range even if they are up to date; earlier days that they reach only if they are not.

    Raises:
        ConfigError: the range is empty or reaches outside the data set.
    """
    reached = config.feature_days(first, last)
    every = days_between(reached.examples, last)
    rebuilt = frozenset(every) if anew else frozenset()
    chunks = []
    for days in spans(every, config.backfill.chunk_days):
        begins = days[0] == reached.examples
        events = days_between(reached.events if begins else days[0], days[-1])
        tables: dict[str, Sequence[date]] = dict.fromkeys(("interactions", "requests", "item_daily", "u2i_daily"), events)
        tables |= dict.fromkeys(("offers", "items", "users", "u2i_crosses", "examples"), days)
        tables["item_features"] = days_between(reached.catalogue if begins else days[0], days[-1])
        if days[-1] == last:
            tables |= {"user_state": [last], "cross_arrays": [last] if _can_hold_arrays(config, reached.examples, last) else []}
        chunks.append(Chunk(days=days, request=Request(days=tables, anew=rebuilt)))
    return chunks


def _can_hold_arrays(config: Config, first: date, last: date) -> bool:
    """Whether cross arrays of the last day can be made: a run is possible, and the lake or the range has its whole window."""
    lake = Lake(config.paths.at("lake"))
    try:
        days = Reach(config, lake).of("cross_arrays", last)
    except ConfigError as error:
        log.warning("no cross arrays for %s, a run for that day is not possible: %s", last, error)
        return False
    reached = config.feature_days(first, last)
    built = {"u2i_daily": reached.events, "item_daily": reached.events, "offers": reached.examples, "requests": reached.events}
    there = {table: set(lake.days(table)) for table in days}
    missing = {table: [d for d in some if d < built[table] and d not in there[table]] for table, some in days.items()}
    short = {table: some for table, some in missing.items() if some}
    if short:
        said = ", ".join(f"{table} lacks {len(some)} days from {some[0]} on" for table, some in short.items())
        log.warning(
            "no cross arrays for %s: a run for that day sees days before this range, and %s; fill its window from %s on to have them",
            last,
            said,
            config.run_window(last).train_first,
        )
    return not short


def is_done(config: Config, lake: Lake, request: Request) -> bool:
    """Whether every day that a request names is up to date already; reads markers alone."""
    if any(day in request.anew for days in request.days.values() for day in days):
        return False
    if any(ingest.to_do(config, request, open_source(config.dataset), lake).values()):
        return False
    reach, settings = Reach(config, lake), config.dataset.rows_digest()
    try:
        return all(
            lake.is_current(table, day, inputs=reach.inputs(table, day), config=settings, code=code_of(table))
            for table, days in request.days.items()
            for day in days
            if table not in RAW_TABLES
        )
    except MissingPartition:
        return False


def run_chunks(config: Config, chunks: Sequence[Chunk]) -> Built:
    """Take chunks through the jobs, in one Spark session that is started if there is anything to do.

    Returns:
        The days that were built, by table.

    Raises:
        JobError: another backfill holds the lake, or a job cannot go on; chunks before that one are committed.
    """
    lake, total = Lake(config.paths.at("lake")), sum(len(chunk.days) for chunk in chunks)
    built: Built = {}
    done = 0
    with alone(lake), ExitStack() as stack:
        session: SparkSession | None = None
        emit(NAME, 0, total)
        for chunk in chunks:
            made: Mapping[str, Sequence[date]] = {}
            if not is_done(config, lake, chunk.request):
                session = session or stack.enter_context(spark_session(config, f"dig-{NAME}"))
                made = _run_chunk(session, config, chunk, done, total)
            for table, days in made.items():
                built.setdefault(table, []).extend(days)
            touched = {day for days in made.values() for day in days}
            for day in chunk.days:
                done += 1
                log.info("%s: %s (%d of %d)", day, "done" if day in touched else "up to date", done, total)
                emit(NAME, done, total, day=day.isoformat())
    return {table: days for table, days in built.items() if days}


def _run_chunk(spark: SparkSession, config: Config, chunk: Chunk, done: int, total: int) -> Built:
    share, made = len(chunk.days) / len(STEPS), Built()
    for number, build in enumerate(STEPS):
        with part_of(NAME, before=done + number * share, share=share, total=total):
            made |= build(spark, config, chunk.request)
    return made


@contextmanager
def alone(lake: Lake) -> Iterator[None]:
    """Hold the lake against other backfills.

    Raises:
        JobError: another one runs.
    """
    with exclusive(Path(lake.root) / STAGING / f".{NAME}.lock", wait=False):
        yield


def main(call: Invocation) -> None:
    """Build the range."""
    if call.options.anew and call.options.missing:
        raise ConfigError("--anew and --missing: give one of them; days that are up to date stay by default")
    chunks = plan(call.config, call.days[0], call.days[-1], anew=call.options.anew)
    built = run_chunks(call.config, chunks)
    log.info("%s", said(built) or "everything was up to date")


def said(built: Mapping[str, Sequence[date]]) -> str:
    """How many days of each table were built, for people; empty if none were."""
    counts = ", ".join(f"{table} {len(days)}" for table, days in built.items() if days)
    return f"days built: {counts}" if counts else ""


def options(parser: ArgumentParser) -> None:
    """Options of the job."""
    parser.add_argument("--anew", action="store_true", help="build the days of the range even if their partition is up to date")


if __name__ == "__main__":
    sys.exit(run(NAME, main, ranges=True, options=options))
