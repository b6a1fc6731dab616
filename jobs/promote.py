"""Promote a version or roll back: the alias champion and the index move together, or not at all (see ``jobs.promotion``).

``--date D`` promotes what passed D's gate with the generation that ``jobs.index`` built; ``--version N`` promotes a version with its
newest generation, built first if there is none; ``--generation ID`` promotes just that one; ``--rollback`` goes back to the pair
before, without building anything. Every move, and every refusal of one that had its turn, is a line of ``<index>/promotions.jsonl``.
"""

from __future__ import annotations

import argparse
import getpass
import logging
import sys
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

from dig_models.index import generation as g
from jobs import registry, runs
from jobs.config import Config
from jobs.entry import Held, Invocation, JobError, ServiceAway, run
from jobs.index import build_index, index_root
from jobs.progress import emit
from jobs.promotion import Unfinished, in_force, move
from jobs.promotion_log import NOTHING, Entry, Pair, Request

log = logging.getLogger("jobs.promote")


def promote_day(config: Config, day: date, request: Request) -> dict[str, Any]:
    """Promote what was built for ``day``.

    Returns:
        What ``promote.json`` holds.

    Raises:
        JobError: no generation was built for that day, its version did not pass the gate or was compared with another champion than
            there is now, or see ``promotion.move``.
    """
    built = runs.read(config, day, "index")
    target = Pair(version=built["model"]["version"], generation=built["index"]["generation"])
    verdict = runs.find(config, day, "gate")
    if verdict and verdict["version"] == target.version and in_force(config).version != target.version:
        request = replace(request, compared_with=verdict["champion"] or NOTHING)
    record: dict[str, Any] = {"date": day.isoformat(), "name": built["model"]["name"], "version": target.version}
    try:
        entry = move(config, target, request)
    except (ServiceAway, Held, Unfinished):
        raise  # not refused: another attempt may find it done
    except JobError as error:
        if not (runs.find(config, day, "promote") or {}).get("promoted"):
            runs.save(config, day, "promote", record | {"outcome": "refused", "promoted": False, "message": str(error)})
        raise
    record |= {"generation": target.generation, "outcome": "promoted", "promoted": True, "message": said(target)}
    runs.save(config, day, "promote", record)
    tell(entry)
    return record


def said(target: Pair) -> str:
    """What is true after a move, whether it was made now or before: the same words, so that a rerun leaves the same record."""
    return f"version {target.version} is champion and serves generation {target.generation}"


def of_version(config: Config, version: str) -> Pair:
    """A version with its newest generation; if there is none, one is built for the day that is current (or the version's own).

    Raises:
        JobError: there is no such version, or it cannot be indexed.
    """
    ref, root = registry.get(config, version), index_root(config)
    there = [generation for generation in g.generations(root) if g.id_version(generation) == version]
    if there:
        return Pair(version=version, generation=there[-1])
    now = g.current(root)
    day = max(ref.date, g.id_date(now)) if now else ref.date
    log.info("version %s has no generation yet; building that of %s", version, day)
    return Pair(version=version, generation=build_index(config, day, ref, allow_older=True).generation)


def of_generation(config: Config, generation: str) -> Pair:
    """A generation with the version that it was made with.

    Raises:
        JobError: there is no such generation, or its manifest is damaged.
    """
    try:
        return Pair(version=g.read_manifest(index_root(config), generation).model_version, generation=generation)
    except (g.IndexMissing, g.IndexCorrupt) as error:
        raise JobError(str(error)) from error


def _named(config: Config, options: argparse.Namespace) -> Pair | None:
    if options.rollback:
        return None
    return of_version(config, options.version) if options.version else of_generation(config, options.generation)


def tell(entry: Entry) -> None:
    """Log what a move did."""
    if entry.message:
        log.info("%s", entry.message)
    else:
        log.info("%s: %s; before: %s", entry.action, said(entry.after), entry.before)


def main(call: Invocation) -> None:
    """The job."""
    options, config = call.options, call.config
    ways = [bool(call.days), options.version is not None, options.generation is not None, options.rollback]
    if sum(ways) != 1:
        raise JobError("promote: give just one of --date D, --version N, --generation ID, --rollback")
    emit("promote", 0, 1)
    now = datetime.now(UTC).isoformat(timespec="seconds")  # a log of who did what when: the clock belongs into it
    request = Request(
        action="rollback" if options.rollback else "promote",
        who=options.who or getpass.getuser(),
        reason=options.reason or ("passed the gate" if call.days else ""),
        at=options.at or now,
        begun=now,
        expected=options.expect,
        past_gate=options.past_gate or options.rollback,
        by_hand=not call.days,
    )
    if not request.reason:
        raise JobError("promote: --reason is required, for the log: why is this moved by hand?")
    if call.days:
        promote_day(config, call.date, request)
    else:
        tell(move(config, _named(config, options), request))
    emit("promote", 1, 1)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", metavar="N", help="promote this registered version with its newest generation")
    parser.add_argument("--generation", metavar="ID", help="promote this generation and the version it was made with")
    parser.add_argument("--rollback", action="store_true", help="go back to the version and generation that were in force before")
    parser.add_argument("--reason", default="", help="why; required unless --date is given")
    parser.add_argument("--who", default="", help="who asks; default: the user that runs this")
    parser.add_argument("--at", default="", metavar="TIME", help="when it was asked for, ISO 8601; default: now")
    parser.add_argument("--expect", metavar="ID", help="refuse if another generation is current by now ('none': before the first)")
    parser.add_argument("--past-gate", action="store_true", help="promote a version that did not pass the gate")


if __name__ == "__main__":
    sys.exit(run("promote", main, dated=False, options=_options))
