"""Is what serves fresh enough? ``python -m jobs.watch --at TIME`` fails when ``CURRENT`` serves a day that is too old at that time."""

from __future__ import annotations

import argparse
import logging
import sys
from datetime import UTC, date, datetime, timedelta

from dig_models.index import generation as g
from jobs.config import Config, ConfigError
from jobs.entry import Invocation, JobError, run
from jobs.index import index_root

log = logging.getLogger("jobs.watch")


def due(config: Config, at: datetime) -> date:
    """The oldest day that may still be current at a moment: the last that had closed ``airflow.max_index_age_hours`` before.

    Days close at midnight of the data set's own clock; a data set that has ended is not asked for days after its last.
    """
    clock = at.astimezone(UTC) + timedelta(hours=config.dataset.source.utc_offset_hours - config.airflow.max_index_age_hours)
    return min(clock.date() - timedelta(days=1), config.dataset.last_date)


def watch(config: Config, at: datetime) -> str:
    """The generation that is current, if it is fresh enough.

    Raises:
        JobError: it is not, or nothing was published yet.
    """
    root, oldest = index_root(config), due(config, at)
    try:
        now = g.require_current(root)
    except (g.IndexMissing, g.IndexCorrupt) as error:
        raise JobError(str(error)) from error
    if g.id_date(now) < oldest:
        moment, limit = at.isoformat(timespec="minutes"), config.airflow.max_index_age_hours
        raise JobError(
            f"{root}: {now} is current and serves {g.id_date(now)}; at {moment} a generation of {oldest} or later is due "
            f"(airflow.max_index_age_hours is {limit}): look for the run of dig_features, dig_retrain or dig_publish that failed"
        )
    return now


def main(call: Invocation) -> None:
    """The job."""
    try:
        at = datetime.fromisoformat(call.options.at)
    except ValueError:
        raise ConfigError(f"--at {call.options.at}: expected a time, ISO 8601") from None
    log.info("%s is fresh enough", watch(call.config, at if at.tzinfo else at.replace(tzinfo=UTC)))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--at", required=True, metavar="TIME", help="the moment to judge at, ISO 8601")


if __name__ == "__main__":
    sys.exit(run("watch", main, dated=False, options=_options))
