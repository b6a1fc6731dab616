"""Publishes the champion as a SID index generation: build, verify, switch ``CURRENT``.

``python -m jobs.publish --date D`` computes the SIDs of D's catalogue with the promoted model and packs them with D's user
state and cross arrays. Publishing the same again changes nothing. A date older than what is current is refused, so that a
backfill never takes the index back in time; ``--allow-older`` lifts that. ``--generation ID`` builds nothing: it verifies a
generation of D that is there and makes it current (rollback).
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from dig_models.bundle import BundleError, load_bundle
from dig_models.cross_files import CrossArraysError
from dig_models.index import generation as g
from dig_models.index.verify import Verified, verify
from dig_models.index.writer import Release, build, locked, retain, switch
from dig_models.items import ItemTable
from jobs import registry, runs
from jobs.config import Config
from jobs.entry import Invocation, JobError, run
from jobs.lake import Lake
from jobs.progress import emit

log = logging.getLogger("jobs.publish")
STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a publish did; ``switched`` is False if the generation was current already."""

    generation: str
    verified: Verified
    switched: bool
    removed: tuple[str, ...]


def index_root(config: Config) -> Path:
    """Folder of the index.

    Raises:
        JobError: it is not on a file system, where renames are atomic.
    """
    place = config.paths.at("index")
    if "://" in place:
        raise JobError(
            f"paths.index {place}: the index needs a file system with atomic renames (a local or shared folder), not an object store"
        )
    return Path(place)


def guard(root: Path, day: date, champion: registry.ModelRef, *, allow_older: bool) -> None:
    """Refuse to take the index back in time.

    Raises:
        JobError: ``day`` lies before the date of the current generation, or before the date the champion was trained for.
    """
    now = g.current(root)
    if allow_older:
        return
    if now is not None and g.id_date(now) > day:
        raise JobError(
            f"publish of {day}: the current index generation {now} serves {g.id_date(now)}, a later day; a backfill leaves it alone "
            "(--allow-older publishes all the same)"
        )
    if champion.date > day:
        raise JobError(
            f"publish of {day}: {champion.name} version {champion.version} was trained for {champion.date}, a later day; "
            f"publish that date (--allow-older publishes all the same)"
        )


def release_of(config: Config, day: date, champion: registry.ModelRef) -> Release:
    """The champion with the catalogue, user state and cross arrays of a day.

    Raises:
        MissingPartition: some table of that day was not built.
        FeatureSpecMismatch: the model was trained with other features than the settings in force give.
    """
    lake, spec = Lake(config.paths.at("lake")), config.dataset.spec()
    lake.require("cross_arrays", [day])
    bundle = load_bundle(registry.fetch(config, champion))
    spec.require(bundle.spec.digest, f"{champion.name} version {champion.version}")
    return Release(
        day=day,
        model_name=champion.name,
        model_version=champion.version,
        bundle=bundle,
        items=ItemTable.from_arrow(lake.read_arrow("item_features", [day]), spec),
        user_state=lake.read_arrow("user_state", [day]),
        cross_arrays=lake.folder("cross_arrays", day),
    )


def publish(config: Config, day: date, *, allow_older: bool = False) -> Published:
    """Build the generation of a day, verify it, make it current and remove what is too old.

    Raises:
        JobError: no champion yet, a missing partition, or an older date than what is current.
        NotIndexable: the catalogue is empty, or the champion has no codebooks.
        BundleError: the champion's files are damaged.
        IndexCorrupt: the new generation fails its check; what was current stays current.
    """
    root = index_root(config)
    with locked(root):
        champion = registry.find(config, registry.CHAMPION)  # under the lock: one that waited must not publish what has been replaced
        if champion is None:
            raise JobError(
                f"publish of {day}: model {config.mlflow.model_name!r} has no champion at {config.tracking_uri()}; "
                "train, register and promote one first (make retrain)"
            )
        guard(root, day, champion, allow_older=allow_older)
        emit("publish", 0, STEPS)
        release = release_of(config, day, champion)
        emit("publish", 1, STEPS)
        generation = build(root, release)
        emit("publish", 2, STEPS, generation=generation)
        verified = verify(root, generation)
        emit("publish", 3, STEPS, generation=generation)
        switched = g.current(root) != generation
        if switched:
            switch(root, generation)
        removed = retain(root, config.index.keep)
    emit("publish", STEPS, STEPS, generation=generation)
    return Published(generation=generation, verified=verified, switched=switched, removed=tuple(removed))


def switch_to(config: Config, generation: str) -> Published:
    """Verify a generation that is there and make it current: rollback, or forward again.

    Raises:
        JobError: the index is not on a file system.
        IndexMissing: there is no such generation.
        IndexCorrupt: it fails its check; what was current stays current.
    """
    root = index_root(config)
    with locked(root):
        verified = verify(root, generation)
        switched = g.current(root) != generation
        if switched:
            switch(root, generation)
    return Published(generation=generation, verified=verified, switched=switched, removed=())


def report(root: Path, done: Published) -> dict[str, Any]:
    """What ``publish.json`` keeps of a publish."""
    manifest = g.read_manifest(root, done.generation)
    levels = [{key: level[key] for key in ("codes", "used", "perplexity")} for level in manifest.quality["levels"]]
    return {
        "index": {
            "generation": manifest.id,
            "items": manifest.items,
            "users": manifest.users,
            "path": str(root / g.GENERATIONS / manifest.id),
        },
        "model": {"name": manifest.model_name, "version": manifest.model_version, "alias": registry.CHAMPION},
        "sid": {
            "collision_rate": manifest.quality["collision_rate"],
            "largest_bucket": manifest.quality["largest_bucket"],
            "levels": levels,
            "churn": manifest.churn,
        },
        "delta": manifest.delta,
        "previous": manifest.previous,
        "verified": [list(check) for check in done.verified.checks],
        "bytes": sum(entry.size for entry in manifest.files.values()),
    }


def _asked(config: Config, day: date, options: argparse.Namespace) -> Published:
    if options.generation is None:
        return publish(config, day, allow_older=options.allow_older)
    if g.id_date(options.generation) != day:
        raise JobError(
            f"--generation {options.generation} serves {g.id_date(options.generation)}, not --date {day}; give the date it serves"
        )
    return switch_to(config, options.generation)


def main(invocation: Invocation) -> None:
    """The job."""
    config, day = invocation.config, invocation.date
    try:
        done = _asked(config, day, invocation.options)
    except (g.IndexMissing, g.IndexCorrupt, g.NotIndexable, BundleError, CrossArraysError) as error:
        raise JobError(str(error)) from error
    log.info("index generation %s is %s", done.generation, "now current" if done.switched else "current already")
    for check, seen in done.verified.checks:
        log.info("verified %s: %s", check, seen)
    if invocation.options.generation is None:  # a switch is no part of the day's run
        runs.save(config, day, "publish", report(index_root(config), done))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--generation", metavar="ID", help="build nothing; verify this generation and make it current")
    parser.add_argument("--allow-older", action="store_true", help="publish although a later day is current")


if __name__ == "__main__":
    sys.exit(run("publish", main, options=_options))
