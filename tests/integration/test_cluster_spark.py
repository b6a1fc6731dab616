"""A feature job on a standalone Spark cluster: a master and two workers of one core each, started here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyspark
import pytest
import yaml
from pyspark.sql import SparkSession

from jobs.config import Config, load
from jobs.lake import Lake
from jobs.processes import stop, tree
from tests.integration.hosts import free_port
from tests.jobs.feature_world import DATASET, DAYS, World, config_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
PROJECT = Path(__file__).resolve().parents[2]
SPARK_CLASS = Path(pyspark.__file__).parent / "bin" / "spark-class"
WORKERS = 2
TABLES = ("item_daily", "item_features", "u2i_daily", "u2i_crosses")
SOME = DAYS[:5]
JOBS = (("jobs.item_features", SOME[0], ()), ("jobs.u2i_crosses", SOME[1], ("--no-arrays",)))


@dataclass(frozen=True)
class Cluster:
    """Address of the master, and what master and workers say about themselves over HTTP."""

    address: str
    master: str
    workers: tuple[str, ...]


def told(address: str) -> Any:
    with urllib.request.urlopen(f"{address}/json/", timeout=10) as answer:  # noqa: S310
        return json.load(answer)


def alive(address: str) -> int:
    try:
        return int(told(address)["aliveworkers"])
    except OSError:
        return -1


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Every node has the project and its packages, as the how-to demands."""
    home = tmp_path_factory.mktemp("spark")
    port, page, *pages = (free_port() for _ in range(2 + WORKERS))
    address, pages_of = f"spark://127.0.0.1:{port}", [f"http://127.0.0.1:{p}" for p in (page, *pages)]
    deploy = "org.apache.spark.deploy"
    commands = [[f"{deploy}.master.Master", "--port", str(port), "--webui-port", str(page)]]
    commands += [
        [f"{deploy}.worker.Worker", "--cores", "1", "--memory", "1G", "--webui-port", str(p), "--work-dir", str(home / str(p)), address]
        for p in pages
    ]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PYSPARK_PYTHON": sys.executable}
    environment |= {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_DAEMON_MEMORY": "256m", "SPARK_LOCAL_DIRS": str(home)}
    log = home / "log"
    with log.open("w") as out:
        started = [
            subprocess.Popen([str(SPARK_CLASS), command, "--host", "127.0.0.1", *options], stdout=out, stderr=out, env=environment)
            for command, *options in commands
        ]
        try:
            until = time.monotonic() + 180
            while alive(pages_of[0]) < WORKERS:
                assert all(process.poll() is None for process in started), log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.2)
            yield Cluster(address=address, master=pages_of[0], workers=tuple(pages_of[1:]))
        finally:
            for process in started:
                stop(tree(process.pid))
                process.wait(30)


def settings_file(home: Path, master: str) -> Path:
    """Settings of the small world, with a home and a master."""
    (home / "conf" / "datasets").mkdir(parents=True)
    (home / "conf" / "datasets" / "small.yaml").write_text(yaml.safe_dump(DATASET))
    place = {
        "dataset": {"name": "small"},
        "paths": {"home": str(home)},
        "spark": {"master": master, "driver_memory": "1g", "conf": {"spark.driver.host": "127.0.0.1", "spark.executor.memory": "600m"}},
        "window": {"eval_days": 2, "train_days": 4, "validation_days": 1},
        "checks": {"enabled": False},
    }
    path = home / "conf" / "place.yaml"
    path.write_text(yaml.safe_dump(place))
    return path


def run_jobs(settings: Path) -> Config:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DIG_")}
    environment |= {"PYTHONPATH": str(PROJECT), "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    for job, first, more in JOBS:
        span = ["--from", first.isoformat(), "--to", SOME[-1].isoformat(), "--events-from", SOME[0].isoformat()]
        command = [sys.executable, "-m", job, "--config", str(settings), *span, *more]
        done = subprocess.run(command, cwd=settings.parent, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return load(settings, environ={})


def markers(lake: Lake) -> dict[tuple[str, str], Any]:
    return {(table, str(day)): lake.marker(table, day) for table in TABLES for day in lake.days(table)}


def test_two_workers_make_the_partitions_that_one_process_makes(spark: SparkSession, cluster: Cluster, tmp_path: Path) -> None:
    homes = [tmp_path / name for name in ("local", "cluster")]
    World.make().write(spark, Lake(config_of(homes[0]).paths.at("lake")), SOME)
    shutil.copytree(homes[0] / "lake", homes[1] / "lake")
    alone, spread = (run_jobs(settings_file(home, master)) for home, master in zip(homes, ("local[*]", cluster.address), strict=True))
    expected = markers(Lake(alone.paths.at("lake")))
    assert {table for table, _ in expected} == set(TABLES) and sum(marker.rows for marker in expected.values()) > 0
    assert markers(Lake(spread.paths.at("lake"))) == expected
    applications = {one["id"] for one in told(cluster.master)["completedapps"]}
    assert len(applications) == len(JOBS)
    for worker in cluster.workers:
        assert {one["appid"] for one in told(worker)["finishedexecutors"]} == applications, "both workers had a part in both jobs"
