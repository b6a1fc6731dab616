"""Builds the SID index generation of a date and verifies it; what serves is not touched, that is ``jobs.promote``.

``python -m jobs.index --date D`` computes the SIDs of D's catalogue with the version that passed D's gate (else the champion, or the
one given by ``--version``) and packs them with D's user state and cross arrays. Building the same again changes nothing. A date
older than what is current is refused, so that a backfill never takes the index back in time; ``--allow-older`` lifts that.
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
from dig_models.index.catalogue import spill_items
from dig_models.index.diff import unaligned_churn
from dig_models.index.verify import Verified, verify
from dig_models.index.writer import Release, build, locked, scratch
from jobs import registry, runs
from jobs.config import Config
from jobs.entry import Invocation, JobError, run
from jobs.lake import Lake
from jobs.progress import emit

log = logging.getLogger("jobs.index")
STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Built:
    """A generation that is there and sound."""

    generation: str
    verified: Verified


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


def guard(root: Path, day: date, model: registry.ModelRef, *, allow_older: bool) -> None:
    """Refuse what would take the index back in time.

    Raises:
        JobError: ``day`` lies before the date of the current generation, or before the date the model was trained for.
    """
    now = g.current(root)
    if allow_older:
        return
    if now is not None and g.id_date(now) > day:
        raise JobError(
            f"index of {day}: the current generation {now} serves {g.id_date(now)}, a later day; a backfill leaves it alone "
            "(--allow-older builds all the same)"
        )
    if model.date > day:
        raise JobError(
            f"index of {day}: {model.name} version {model.version} was trained for {model.date}, a later day; "
            "build the index of that date (--allow-older builds all the same)"
        )


def chosen(config: Config, day: date, version: str | None) -> registry.ModelRef:
    """The version to index: the one asked for, else the one that passed the gate of ``day``, else the champion.

    Raises:
        JobError: there is no such version, or neither a verdict nor a champion.
    """
    if version is not None:
        return registry.get(config, version)
    passed = runs.find(config, day, "gate")
    if passed and passed["passed"]:
        return registry.get(config, passed["version"])
    champion = registry.find(config, registry.CHAMPION)
    if champion is None:
        raise JobError(
            f"index of {day}: no version passed the gate of that date, and model {config.mlflow.model_name!r} has no champion at "
            f"{config.tracking_uri()}; train, register and judge one first (make retrain)"
        )
    return champion


def release_of(config: Config, day: date, model: registry.ModelRef, scratch: Path) -> Release:
    """A version with the catalogue, user state and cross arrays of a day.

    Args:
        config: settings in force.
        day: the day.
        model: the version.
        scratch: an empty folder, where the catalogue is kept while it is needed: it is read a column at a time.

    Raises:
        MissingPartition: some table of that day was not built.
        FeatureSpecMismatch: the model was trained with other features than the settings in force give.
    """
    lake, spec = Lake(config.paths.at("lake")), config.dataset.spec()
    lake.require("cross_arrays", [day])
    bundle = load_bundle(registry.fetch(config, model))
    spec.require(bundle.spec.digest, f"{model.name} version {model.version}")
    return Release(
        day=day,
        model_name=model.name,
        model_version=model.version,
        bundle=bundle,
        items=spill_items(lambda name: lake.read_arrow("item_features", [day], [name]).column(name), spec, scratch),
        user_state=lake.read_arrow("user_state", [day]),
        cross_arrays=lake.folder("cross_arrays", day),
        resolve_collisions=config.index.resolve_collisions,
    )


def build_index(config: Config, day: date, model: registry.ModelRef, *, allow_older: bool = False) -> Built:
    """Build the generation of a day with a version, and verify it.

    Raises:
        JobError: a missing partition, an older date than what is current, or a model or catalogue that cannot be indexed.
        FeatureSpecMismatch: the model was trained with other features than the settings in force give.
    """
    root = index_root(config)
    try:
        with locked(root), scratch(root) as folder:
            guard(root, day, model, allow_older=allow_older)
            emit("index", 0, STEPS)
            release = release_of(config, day, model, folder)
            emit("index", 1, STEPS)
            generation = build(root, release)
            emit("index", 2, STEPS, generation=generation)
            verified = verify(root, generation)
    except (g.IndexMissing, g.IndexCorrupt, g.NotIndexable, BundleError, CrossArraysError) as error:
        raise JobError(str(error)) from error
    emit("index", STEPS, STEPS, generation=generation)
    return Built(generation=generation, verified=verified)


def report(root: Path, done: Built) -> dict[str, Any]:
    """What ``index.json`` keeps of a generation."""
    manifest = g.read_manifest(root, done.generation)
    levels = [{key: level[key] for key in ("codes", "used", "perplexity")} for level in manifest.quality["levels"]]
    return {
        "index": {
            "generation": manifest.id,
            "items": manifest.items,
            "users": manifest.users,
            "path": str(root / g.GENERATIONS / manifest.id),
        },
        "model": {"name": manifest.model_name, "version": manifest.model_version},
        "sid": {
            "collision_rate": manifest.quality["collision_rate"],
            "largest_bucket": manifest.quality["largest_bucket"],
            "levels": levels,
            "churn": manifest.churn,
            "churn_unaligned": unaligned_churn(root, manifest),
        },
        "delta": manifest.delta,
        "previous": manifest.previous,
        "verified": [list(check) for check in done.verified.checks],
        "bytes": sum(entry.size for entry in manifest.files.values()),
    }


def main(invocation: Invocation) -> None:
    """The job."""
    config, day, options = invocation.config, invocation.date, invocation.options
    done = build_index(config, day, chosen(config, day, options.version), allow_older=options.allow_older)
    log.info("index generation %s is there", done.generation)
    for check, seen in done.verified.checks:
        log.info("verified %s: %s", check, seen)
    runs.save(config, day, "index", report(index_root(config), done))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--version", metavar="N", help="registered version; default: the one that passed the gate of the date, else the champion"
    )
    parser.add_argument("--allow-older", action="store_true", help="build although a later day is current")


if __name__ == "__main__":
    sys.exit(run("index", main, options=_options))
