"""The one way to get a Spark session: settings from the config, UTC, quiet, stopped when the job is done."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pyspark import SparkConf
from pyspark.sql import SparkSession

from jobs.config import Config

# What the jobs rely on for their results; `spark.conf` in the settings may add to it, not take away.
REQUIRED = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.legacy.parquet.nanosAsLong": "true",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.ansi.enabled": "true",
    "spark.sql.sources.partitionColumnTypeInference.enabled": "false",
}
DEFAULTS = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.sources.parallelPartitionDiscovery.threshold": "2048",
    "spark.sql.parquet.compression.codec": "zstd",
}
LOCAL = {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}


def session_conf(config: Config, *, submitted: str = "") -> dict[str, str]:
    """Spark properties of a session.

    Args:
        config: settings; ``spark.conf`` may add properties, but not change those that results rely on.
        submitted: master that ``spark-submit`` gave, if it started this process; then master and memory are its business.
    """
    conf = {**DEFAULTS, "spark.sql.shuffle.partitions": str(config.spark.shuffle_partitions)}
    if not submitted:
        conf |= {"spark.master": config.spark.master, "spark.driver.memory": config.spark.driver_memory}
    if (submitted or config.spark.master).startswith("local"):
        conf |= LOCAL
    return conf | config.spark.conf | REQUIRED


@contextmanager
def spark_session(config: Config, name: str) -> Iterator[SparkSession]:
    """A Spark session for one job; a session that is already active is used and left running.

    A master given by ``spark-submit`` wins over ``spark.master`` of the settings.

    Args:
        config: settings in force.
        name: application name.
    """
    active = SparkSession.getActiveSession()
    if active is not None:
        yield active
        return
    # spark-submit sets this for the Python process that it starts, and hands its options over as defaults of a SparkConf.
    submitted = SparkConf().get("spark.master", config.spark.master) or "" if "PYSPARK_GATEWAY_PORT" in os.environ else ""
    if not submitted and config.spark.master.startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    builder = SparkSession.builder.appName(name)
    for key, value in session_conf(config, submitted=submitted).items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    for noisy in ("SQLQueryContextLogger", "DataFrameQueryContextLogger"):  # they print each exception's Java stack a second time
        logging.getLogger(noisy).disabled = True
    logging.getLogger("py4j").setLevel(logging.WARNING)
    try:
        yield spark
    finally:
        spark.stop()
