"""Rebuilds the days that are out of date, and no others, in one Spark application.

Raw tables come first, all of them: a day of features may read the items snapshot of a later day. Then the features, oldest days first,
chunk by chunk. A day is rebuilt only if what it is made from is another when its turn comes: where a rebuilt input has the same rows as
before, the days after it stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import date

from jobs.backfill import Built, Chunk, run_chunks
from jobs.config import Config
from jobs.entry import Request
from jobs.provenance import RAW_TABLES
from jobs.reach import spans
from jobs.stale import Report, survey

log = logging.getLogger(__name__)


def chunks_of(days: Mapping[str, Sequence[date]], length: int) -> list[Chunk]:
    """The days of each table in chunks of at most ``length`` consecutive days, raw tables before features."""
    raw = {table: some for table, some in days.items() if table in RAW_TABLES}
    features = {table: some for table, some in days.items() if table not in RAW_TABLES}
    return [
        Chunk(days=group, request=Request(days={table: [day for day in some if day in group] for table, some in tables.items()}))
        for tables in (raw, features)
        for group in spans(sorted({day for some in tables.values() for day in some}), length)
    ]


def refresh(config: Config, first: date | None = None, last: date | None = None) -> tuple[Report, Built]:
    """Rebuild the days between two dates that are out of date, and those of their inputs that are.

    Returns:
        What was out of date, and the days that were built, by table.

    Raises:
        JobError: another backfill holds the lake, or a job cannot go on; chunks before that one are committed.
    """
    whole = survey(config)
    report = whole.with_inputs(whole.between(first, last))
    if not report.stale:
        return report, {}
    return report, run_chunks(config, chunks_of(report.days(), config.backfill.chunk_days))
