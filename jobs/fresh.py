"""Brings new items into the index that serves, and takes withdrawn ones out, without a training: ``python -m jobs.fresh --date D``.

What is new is in the items snapshot of D (``jobs.arrivals``) and not in the oldest one of the last ``index.fresh_days`` days; what was
withdrawn was in the snapshot that the index was made from and is not in D's. New items get SIDs from the champion's encoder, all others
keep theirs. If more is withdrawn than ``index.max_withdrawn`` allows, the snapshot is taken for half a one, and the refresh is refused.
The delta generation is published like any other: champion and generation move together, under the promotion lock.
"""

from __future__ import annotations

import argparse
import getpass
import logging
import sys
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dig_models.features import hash_id
from dig_models.index import generation as g
from dig_models.index.diff import Sids
from dig_models.index.refresh import Fresh, refresh
from dig_models.index.writer import locked
from dig_models.items import ItemTable
from jobs import runs
from jobs.config import Config
from jobs.entry import Invocation, JobError, run
from jobs.fresh_items import item_rows
from jobs.index import index_root
from jobs.lake import Lake
from jobs.progress import emit
from jobs.promotion import in_force, mend, move
from jobs.promotion_log import Pair, Request, moves

log = logging.getLogger("jobs.fresh")
STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Refreshed:
    """What a refresh found and did; what ``fresh.json`` holds.

    Attributes:
        generation: what serves now; ``base`` the whole generation that it was made from.
        arrived: new items that it holds; ``withdrawn`` items of the whole generation that it does not.
        since: day of the snapshot that decides what is new; None if there is none, so that nothing is.
        outcome: ``refreshed``, ``nothing new``, or ``held``: what would be published was stepped back from.
    """

    generation: str
    base: str
    arrived: int
    withdrawn: int
    since: str | None
    outcome: str


def snapshots(config: Config, day: date, base: date) -> tuple[date | None, date]:
    """Day of the snapshot that decides what is new on ``day``, and of the one that an index of ``base`` was made from.

    Raises:
        JobError: there is no items snapshot of ``day``.
    """
    days = [one for one in Lake(config.paths.at("lake")).days("items") if one <= day]
    if day not in days:
        raise JobError(f"refresh of {day}: there is no items snapshot of that day; build it first: python -m jobs.arrivals --date {day}")
    before = [one for one in days if day - timedelta(days=config.index.fresh_days) <= one < day]
    return (before[0] if before else None), next(one for one in days if one >= base)


def find_fresh(config: Config, day: date, base: date) -> tuple[Fresh, date | None]:
    """What is different on ``day`` from an index of the date ``base``, and the day since when an item counts as new.

    Raises:
        JobError: no items snapshot of ``day``, or a column that the settings name is not in it.
    """
    lake, spec = Lake(config.paths.at("lake")), config.dataset.spec()
    since, made_from = snapshots(config, day, base)

    def ids(of: date) -> pa.Array:
        return lake.read_arrow("items", [of], ["item_id"]).column("item_id").combine_chunks()

    known = ids(day)
    gone = ids(made_from).filter(pc.invert(pc.is_in(ids(made_from), value_set=known)))
    new = known.slice(0, 0) if since is None else known.filter(pc.invert(pc.is_in(known, value_set=ids(since))))
    rows = lake.read_arrow("items", [day])
    arrived = ItemTable.from_arrow(item_rows(rows.filter(pc.is_in(rows.column("item_id"), value_set=new)), config.dataset), spec)
    withdrawn = np.array([hash_id(str(item)) for item in gone.to_pylist()], dtype=np.int64)
    return Fresh(arrived=arrived, withdrawn=withdrawn), since


def publish(config: Config, day: date, request: Request, *, past_limit: bool = False) -> Refreshed:
    """Build the delta generation of ``day`` on what serves, and make it current.

    Args:
        config: settings in force.
        day: of the items snapshot.
        request: who asks, when and why.
        past_limit: also if more items are withdrawn than ``index.max_withdrawn`` allows.

    Raises:
        JobError: nothing serves, ``day`` is older than what serves, a snapshot is missing, too many items are withdrawn, champion and
            index do not belong together, a generation is damaged, or the move was refused; nothing has changed then.
        Held: another move is under way.
        FeatureSpecMismatch: what serves was made with other features than the settings in force give.
    """
    root = index_root(config)
    emit("fresh", 0, STEPS)
    mend(config)
    try:
        with locked(root):
            before = in_force(config)
            now = g.read_manifest(root, g.require_current(root))
            _refuse(day, before, now)
            config.dataset.spec().require(now.spec, f"index generation {now.id}")
            fresh, since = find_fresh(config, day, now.date)
            if not past_limit:
                _within_limit(config, root, now, fresh, day)
            emit("fresh", 1, STEPS)
            generation = refresh(root, fresh, config.dataset.spec(), resolve_collisions=config.index.resolve_collisions)
        emit("fresh", 2, STEPS, generation=generation)
        made = g.read_manifest(root, generation)
        base = g.read_manifest(root, made.base or generation)
    except (g.IndexMissing, g.IndexCorrupt, g.NotIndexable) as error:
        raise JobError(str(error)) from error
    outcome = "nothing new" if generation == now.id else "held" if stepped_back(root, now.id, generation) else "refreshed"
    if outcome == "refreshed":
        move(config, Pair(version=before.version, generation=generation), replace(request, expected=now.id))
    emit("fresh", STEPS, STEPS)
    arrived, withdrawn = changed(root, base.id, generation)
    return Refreshed(
        generation=generation if outcome != "held" else now.id,
        base=base.id,
        arrived=arrived,
        withdrawn=withdrawn,
        since=None if since is None else since.isoformat(),
        outcome=outcome,
    )


def _refuse(day: date, before: Pair, now: g.Manifest) -> None:
    if before.version != now.model_version:
        raise JobError(
            f"refresh of {day}: the champion is version {before.version or 'none'}, generation {now.id} was made with version "
            f"{now.model_version}: someone moved one of them alone; promote a version, which moves both: dig promote --version N"
        )
    if day < now.date:
        raise JobError(f"refresh of {day}: generation {now.id} serves {now.date}, a later day; give that day or a later one")


def _within_limit(config: Config, root: Path, now: g.Manifest, fresh: Fresh, day: date) -> None:
    """Refuse to take out more than ``index.max_withdrawn`` of the whole generation; what was let past that does not count again.

    Raises:
        JobError: more is withdrawn; says how much, and what to do.
    """
    base_M, limit = _hashes(root, now.base or now.id), config.index.max_withdrawn
    gone = np.intersect1d(base_M, fresh.withdrawn)
    out = np.setdiff1d(base_M, _hashes(root, now.id))
    counted = np.setdiff1d(gone, out) if len(out) / len(base_M) > limit else gone
    if len(counted) / len(base_M) > limit:
        raise JobError(
            f"refresh of {day}: {len(counted)} of the {len(base_M)} items of generation {now.base or now.id} are not in the items snapshot "
            f"of that day ({len(counted) / len(base_M):.1%}), expected at most {limit:.1%} (index.max_withdrawn); "
            "nothing was changed: look whether the snapshot is whole and ingest the day again; if they were withdrawn on purpose, say so: "
            f"dig index refresh --date {day} --past-limit"
        )


def _hashes(root: Path, generation: str) -> NDArray[np.int64]:
    return Sids.read(g.generation_dir(root, generation), generation).hash_M


def stepped_back(root: Path, current: str, generation: str) -> bool:
    """Whether the last move led from a generation to what is current: whoever asked for it does not want it back an hour later."""
    last = moves(root)[-1:]
    return bool(last) and last[0].action != "refresh" and (last[0].before.generation, last[0].after.generation) == (generation, current)


def changed(root: Path, base: str, generation: str) -> tuple[int, int]:
    """Items that a generation has and another has not, and the other way round."""
    old, new = _hashes(root, base), _hashes(root, generation)
    both = len(np.intersect1d(old, new, assume_unique=True))
    return len(new) - both, len(old) - both


def main(call: Invocation) -> None:
    """The job."""
    options, day = call.options, call.date
    now = datetime.now(UTC).isoformat(timespec="seconds")  # a log of who did what when: the clock belongs into it
    request = Request(
        action="refresh",
        who=options.who or getpass.getuser(),
        reason=f"items of {day}",
        at=options.at or now,
        begun=now,
        past_gate=True,
    )
    done = publish(call.config, day, request, past_limit=options.past_limit)
    runs.save(call.config, day, "fresh", asdict(done))
    log.info(
        "%s: %s serves, %d new items and %d withdrawn since %s", done.outcome, done.generation, done.arrived, done.withdrawn, done.base
    )


def options(parser: argparse.ArgumentParser) -> None:
    """Options of the job."""
    parser.add_argument("--who", default="", help="who asks; default: the user that runs this")
    parser.add_argument("--at", default="", metavar="TIME", help="when it was asked for, ISO 8601; default: now")
    parser.add_argument("--past-limit", action="store_true", help="also if more items are withdrawn than index.max_withdrawn allows")


if __name__ == "__main__":
    sys.exit(run("fresh", main, options=options))
