"""The items snapshot of a day to the lake, alone: what a catalogue gained and lost since the last run, without the day's events.

``python -m jobs.arrivals --date D``. It passes the same gate as in ``jobs.ingest``, which later finds the snapshot up to date. Spark is
started only if the raw items are others than those the snapshot was made from.
"""

from __future__ import annotations

import logging
import sys

from jobs.entry import Invocation, Request, run
from jobs.ingest import ingest, to_do
from jobs.lake import Lake
from jobs.progress import emit
from jobs.sources import open_source
from jobs.spark import spark_session

log = logging.getLogger("jobs.arrivals")
NAME = "arrivals"


def main(call: Invocation) -> None:
    """The job."""
    config, lake, source = call.config, Lake(call.config.paths.at("lake")), open_source(call.config.dataset)
    wanted = to_do(config, Request.of({"items": call.days}, missing=True), source, lake)
    if not wanted["items"]:
        log.info("items of %s are up to date", call.date)
        emit(NAME, 1, 1)
        return
    with spark_session(config, f"dig-{NAME}") as spark:
        ingest(spark, config, source, lake, wanted)


if __name__ == "__main__":
    sys.exit(run(NAME, main))
