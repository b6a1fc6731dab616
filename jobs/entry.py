"""How every job starts: the same options, the same log format, one clear line for an error the user can mend."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from dig_models.features import FeatureSpecMismatch
from dig_models.files import DiskFull
from jobs.config import Config, ConfigError, load
from jobs.dates import days_between


class JobError(RuntimeError):
    """A job cannot go on for a reason its user can act on; the message says what was found and what to do."""


class ServiceAway(JobError):
    """A server that a job needs does not answer; a retry may find it again."""


class Held(JobError):
    """Another run holds what a job needs; a retry may find it free."""


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """What a job was asked to do.

    Attributes:
        days: the days to build, ascending; a single one for ``--date``; none if a job that needs no date was given none.
        options: the other options of the job.
    """

    config: Config
    days: list[date]
    options: argparse.Namespace

    @property
    def date(self) -> date:
        """The logical date: the last day asked for."""
        return self.days[-1]


@dataclass(frozen=True, kw_only=True)
class Request:
    """Days of each table that a feature job is to look after.

    Attributes:
        days: ascending days by table; a table that is not named is left alone.
        anew: days to build even if their partition is up to date; the others are built if it is not.
    """

    days: Mapping[str, Sequence[date]]
    anew: frozenset[date] = frozenset()

    @classmethod
    def of(cls, days: Mapping[str, Sequence[date]], *, missing: bool) -> Request:
        """Days that are all built anew, or with ``missing`` only where they are not up to date."""
        return cls(days=days, anew=frozenset() if missing else frozenset(day for some in days.values() for day in some))

    def wanted(self, table: str) -> list[date]:
        """The days of one table."""
        return list(self.days.get(table, ()))


def run(
    name: str,
    main: Callable[[Invocation], None],
    argv: Sequence[str] | None = None,
    *,
    ranges: bool = False,
    dated: bool = True,
    options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> int:
    """Parse the options, load the settings, run ``main``.

    Args:
        name: the job's name; ``python -m jobs.<name>``.
        main: does the work.
        argv: options; those of the command line by default.
        ranges: whether ``--from/--to`` is understood beside ``--date``.
        dated: whether a date must be given.
        options: adds the job's own options to the parser.

    Returns:
        Exit status: 0, or for an error that its message explains (no traceback is printed for those) 2, or 1 if a retry may find
        it mended: a server that did not answer, a lock that another run held, a disk that was full.
    """
    parser = argparse.ArgumentParser(prog=f"python -m jobs.{name}", description=(sys.modules[main.__module__].__doc__ or "").split("\n")[0])
    parser.add_argument("--config", type=Path, default=None, help="settings file; default $DIG_CONFIG, then conf/local.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting; may be repeated")
    parser.add_argument("--date", type=date.fromisoformat, help="logical date, YYYY-MM-DD")
    if ranges:
        parser.add_argument("--from", dest="first", type=date.fromisoformat, help="first day of a range")
        parser.add_argument("--to", dest="last", type=date.fromisoformat, help="last day of a range")
        parser.add_argument("--missing", action="store_true", help="skip days whose partition is up to date")
    if options:
        options(parser)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    first, last = getattr(args, "first", None), getattr(args, "last", None)
    if dated and (args.date is None) == (first is None or last is None):
        parser.error("give either --date D or --from A --to B" if ranges else "--date is required")
    try:
        days = [day for day in [args.date] if day] if first is None or last is None else days_between(first, last)
        if dated and not days:
            raise ConfigError(f"--from {first} --to {last}: the range is empty; --from must not be after --to")
        main(Invocation(config=load(args.config, args.set), days=days, options=args))
    except (ServiceAway, Held, DiskFull) as error:
        logging.getLogger(f"jobs.{name}").error("%s", error)
        return 1
    except (ConfigError, JobError, FeatureSpecMismatch) as error:
        logging.getLogger(f"jobs.{name}").error("%s", error)
        return 2
    return 0
