"""Sessions: what the settings decide, what spark-submit decides, what neither may change."""

from __future__ import annotations

from datetime import datetime

import pytest
from pyspark.sql import SparkSession

from jobs.config import load
from jobs.spark import session_conf, spark_session


def test_the_settings_choose_master_memory_and_shuffle_partitions() -> None:
    conf = session_conf(load("conf/local.yaml", ["spark.master=local[3]", "spark.driver_memory=1g", "spark.shuffle_partitions=7"], {}))
    assert (conf["spark.master"], conf["spark.driver.memory"], conf["spark.sql.shuffle.partitions"]) == ("local[3]", "1g", "7")
    assert conf["spark.driver.host"] == "127.0.0.1"


def test_spark_submit_keeps_its_master_and_memory() -> None:
    conf = session_conf(load("conf/local.yaml", (), {}), submitted="yarn")
    assert not {"spark.master", "spark.driver.memory", "spark.driver.host"} & set(conf)
    assert session_conf(load("conf/local.yaml", (), {}), submitted="local[2]")["spark.driver.host"] == "127.0.0.1"


def test_settings_cannot_change_what_results_rely_on() -> None:
    config = load("conf/local.yaml", ["spark.conf={spark.sql.session.timeZone: Europe/Berlin, spark.executor.cores: '2'}"], {})
    conf = session_conf(config)
    assert conf["spark.sql.session.timeZone"] == "UTC" and conf["spark.executor.cores"] == "2"


@pytest.mark.slow
def test_an_active_session_is_used_and_left_running(spark: SparkSession) -> None:
    with spark_session(load("conf/local.yaml", (), {}), "second") as session:
        assert session is spark
    assert spark.sql("SELECT timestamp'2024-03-05 01:02:03' AS ts").collect()[0]["ts"] == datetime(2024, 3, 5, 1, 2, 3)
