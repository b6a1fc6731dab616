"""Fixtures of all tests: one Spark session, and a small generic data set with the settings that describe it.

With several processes (``-n 2 --dist loadfile``) a file stays in one of them, as does all that asks the live stack.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tiny_shop import tiny_dataset, write_tables

from jobs.config import Config, load

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


LIVE = ("test_live.py", "test_live_faults.py")
"""They share a live stack, and take longest."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Files that are not part of the project, which some checks read where they are given."""
    parser.addoption("--reference-sids", default="", help="LETTER's released SIDs of Amazon Beauty, letter_rqvae_index.json")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    items.sort(key=lambda item: item.path.name not in LIVE)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a file in one process, as ``--dist loadfile`` does, and what shares the live stack too."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return LIVE[0] if file.endswith(LIVE) else file

    return ByFile(config, log)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand what the crash tests of this process found to the one that reports."""
    found = sys.modules.get("tests.crash.table")
    if found and hasattr(session.config, "workeroutput"):
        session.config.workeroutput["crash"] = found.dump()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what the crash tests of another process found."""
    if found := getattr(node, "workeroutput", {}).get("crash"):
        from tests.crash.table import take

        take(found)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what the crash tests found, if they ran."""
    if table := sys.modules.get("tests.crash.table"):
        from rich.console import Console

        table.show(Console(file=terminalreporter._tw._file, width=max(terminalreporter._tw.fullwidth, 200)))


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """A small local session with the settings that jobs rely on."""
    from jobs.spark import spark_session

    with spark_session(tiny_session_config(), "tests") as session:
        yield session


def tiny_session_config() -> Config:
    """Settings of the tests' Spark session."""
    # No query here runs long enough for the second compiler, and one level alone would have a small code cache.
    quick = "spark.conf={spark.driver.extraJavaOptions: '-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m'}"
    return load("conf/local.yaml", ["spark.driver_memory=2g", "spark.shuffle_partitions=2", "spark.master=local[2]", quick])


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw tables of the small data set: events.csv, products.parquet, people.csv."""
    return write_tables(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny_conf(tmp_path: Path, tiny_data: Path) -> Path:
    """A settings file for the small data set with a home of its own; returns ``<tmp>/conf/local.yaml``."""
    (tmp_path / "conf" / "datasets").mkdir(parents=True)
    (tmp_path / "conf" / "datasets" / "tiny.yaml").write_text(yaml.safe_dump(tiny_dataset(tiny_data), sort_keys=False))
    place = {
        "dataset": {"name": "tiny"},
        "paths": {"home": str(tmp_path / "home")},
        "spark": {"master": "local[2]", "driver_memory": "2g", "shuffle_partitions": 2},
        "window": {"eval_days": 2, "train_days": 6, "validation_days": 1},
    }
    path = tmp_path / "conf" / "local.yaml"
    path.write_text(yaml.safe_dump(place, sort_keys=False))
    return path


@pytest.fixture
def tiny_config(tiny_conf: Path) -> Config:
    """Settings of the small data set, loaded."""
    return load(tiny_conf)
