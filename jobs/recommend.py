"""Lists for every user, as a table of the lake: ``python -m jobs.recommend --date D`` writes ``recommendations/ds=D``.

The lists come from the generation that ``jobs.index`` built for D (or ``--generation ID``), not from whatever serves, so a rerun gives the
same rows. Spark deals the users out by hash; a worker opens the generation once and reads it memory-mapped, so the index must lie where
all workers reach it. Users without a state have no row: a cold user's list is the same for all of them, ask the server for it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial

from pyspark.sql import DataFrame, SparkSession

from dig_models.index import generation as g
from dig_models.index.reader import hold
from dig_models.serve.batch import lists
from dig_models.serve.service import Search
from jobs import runs
from jobs.config import Config
from jobs.entry import Invocation, JobError, run
from jobs.index import index_root
from jobs.lake import Lake, Marker, code_digest
from jobs.progress import emit
from jobs.provenance import RECOMMEND
from jobs.spark import spark_session

log = logging.getLogger("jobs.recommend")
TABLE = "recommendations"
COLUMNS = "user_id string, place int, item_id string, sid string, probability double, generation string, ds string"


def chosen(config: Config, day: date, generation: str | None) -> g.Manifest:
    """The manifest of the generation to take, every byte of which is as it says.

    Raises:
        JobError: none was built for that day, it is gone or damaged, or serves another day.
    """
    name = generation or str(runs.read(config, day, "index")["index"]["generation"])
    root = index_root(config)
    try:
        manifest = g.read_manifest(root, name)
        g.check_files(g.generation_dir(root, name), manifest)
    except (g.IndexMissing, g.IndexCorrupt) as error:
        raise JobError(str(error)) from error
    if manifest.date != day:
        raise JobError(f"recommendations of {day}: generation {name} serves {manifest.date}; give --date {manifest.date}")
    return manifest


@contextmanager
def leased(config: Config, day: date, generation: str | None) -> Iterator[g.Manifest]:
    """``chosen``, and inside the context nobody removes that generation: workers open it late, and again where one failed.

    Raises:
        JobError: see ``chosen``, or it is being removed just now.
    """
    manifest = chosen(config, day, generation)
    try:
        lease = hold(g.generation_dir(index_root(config), manifest.id))
    except (g.IndexMissing, g.IndexCorrupt) as error:
        raise JobError(str(error)) from error
    with lease:
        yield manifest


def frame(spark: SparkSession, config: Config, manifest: g.Manifest) -> DataFrame:
    """The lists of all users of a generation."""
    batch = config.serve.batch
    work = partial(
        lists,
        root=str(index_root(config)),
        generation=manifest.id,
        settings=config.retrieve,
        search=Search(k=batch.k, exclude_bought=batch.exclude_bought),
        parts=batch.partitions,
        ds=manifest.date.isoformat(),
    )
    return spark.range(0, batch.partitions, 1, batch.partitions).mapInArrow(work, COLUMNS)


def recommend(config: Config, day: date, spark: SparkSession, generation: str | None = None) -> Marker:
    """Make, check and commit the lists of a day.

    Raises:
        JobError: see ``leased``.
        GateFailed: the lists are not what the gate expects; nothing was committed.
    """
    with leased(config, day, generation) as manifest:
        return _commit(config, manifest, spark)


def _commit(config: Config, manifest: g.Manifest, spark: SparkSession) -> Marker:
    from jobs.checks import check  # Great Expectations takes seconds to import

    lake, day = Lake(config.paths.at("lake")), manifest.date
    emit("recommend", 0, 2)
    inputs = {
        "index": {manifest.id: manifest.content},
        "settings": {"retrieve": config.digest("retrieve"), "batch": _digest(config)},
    }
    with lake.stage(TABLE, f"recommend-{day}") as stage:
        stage.write(frame(spark, config, manifest), [day], sort=["user_id", "place"])
        emit("recommend", 1, 2)
        report = check(TABLE, stage.frame(spark, [day]), [day], config=config, lake=lake, spark=spark)
        marker = stage.commit(
            spark,
            [day],
            job="recommend",
            code=code_digest(*RECOMMEND),
            config=config.dataset.rows_digest(),
            inputs=lambda _: inputs,
            stats=report.stats,
        )[0]
    emit("recommend", 2, 2, rows=marker.rows)
    return marker


def _digest(config: Config) -> str:
    """Settings of the lists that decide rows; whether a DAG makes them does not."""
    batch = config.serve.batch
    return f"k={batch.k} partitions={batch.partitions} exclude_bought={batch.exclude_bought}"


def main(call: Invocation) -> None:
    """The job."""
    with spark_session(call.config, "recommend") as spark:
        marker = recommend(call.config, call.date, spark, call.options.generation)
    log.info("%s of %s: %d rows from %s", TABLE, call.date, marker.rows, next(iter(marker.inputs["index"])))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--generation", metavar="ID", help="generation of that date; default: the one that jobs.index built last for it")


if __name__ == "__main__":
    sys.exit(run("recommend", main, options=_options))
