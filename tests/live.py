"""A live stack for tests: real PostgreSQL, Redis, MLflow and Airflow on free ports, with the small data set; shared by a session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from tiny_shop import TINY_DAYS, write_tables, write_tiny_place

from jobs import registry
from jobs.config import Config
from jobs.index import index_root
from ops.client import StackClient, poll

PROJECT = Path(__file__).resolve().parent.parent
FREE_PORTS = {"mlflow_port": 0, "airflow_port": 0}
CHAIN = ("dig_features", "dig_retrain", "dig_publish")
DEADLINE = 3600.0
CLOCK = timedelta(hours=3)  # when dig_features asks for the day that has closed

#: What is lost is noticed in seconds, where a real stack takes minutes.
HASTY = {
    "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
}


def ops(conf: Path, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m ops <command>`` with the settings in ``conf`` and none of the caller's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DIG_", "AIRFLOW"))}
    environment = kept | HASTY | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    full = [sys.executable, "-m", "ops", command, "--config", str(conf), *options]
    return subprocess.run(full, cwd=conf.parent, env=environment, capture_output=True, text=True, check=False)


@contextmanager
def running(conf: Path) -> Iterator[StackClient]:
    """A stack of its own, started from nothing; stopped and removed at the end."""
    try:
        started = ops(conf, "up")
        assert started.returncode == 0, started.stderr
        yield StackClient.at(conf.parent / "home")
    finally:
        ended = ops(conf, "down", "--purge")
        assert ended.returncode == 0, ended.stderr


def newest_closed_day() -> date:
    """The day that the schedule asks for now."""
    return (datetime.now(UTC) - CLOCK).date() - timedelta(days=1)


def write_live_place(folder: Path) -> Path:
    """The small data set with days that end with the newest closed one, and settings under which a failed task is soon tried again."""
    raw = folder / "raw"
    raw.mkdir()
    first = newest_closed_day() - timedelta(days=TINY_DAYS - 1)
    return write_tiny_place(folder, write_tables(raw, first), first, stack=FREE_PORTS, airflow={"retries": 4, "retry_minutes": 0.05})


def is_own(stack: StackClient) -> bool:
    """Whether tests laid the stack out, as ``write_live_place`` does: its settings and servers may be tampered with."""
    return Path(stack.state.config).parent == stack.home.parent


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackClient]:
    """The stack under ``$DIG_E2E_HOME``, which keeps running, else one of the session's own."""
    if home := os.environ.get("DIG_E2E_HOME"):
        yield StackClient.at(Path(home))
        return
    with running(write_live_place(tmp_path_factory.mktemp("live"))) as stack:
        yield stack


def wait_for(said: Callable[[], bool], what: str, deadline: float = 300.0) -> None:
    """Wait for something that a server does."""
    assert poll(said, deadline), f"waited in vain for {deadline:.0f} s: {what}"


# ---- what is in force ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InForce:
    """The champion, and the bytes of ``CURRENT`` and of the promotion log; empty where there is none."""

    champion: str
    current: bytes
    log: bytes

    @classmethod
    def of(cls, config: Config) -> InForce:
        champion, root = registry.find(config, registry.CHAMPION), index_root(config)
        files = [path.read_bytes() if path.is_file() else b"" for path in (root / "CURRENT", root / "promotions.jsonl")]
        return cls(champion.version if champion else "", *files)

    @property
    def generation(self) -> str:
        return self.current.decode().strip()


# ---- a day, from nothing to an index ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Day:
    """The first day that went through the schedule's chain.

    Attributes:
        day: which.
        filled: run of ``dig_backfill`` that built the days before it.
        before: what was in force when it began; ``after_filling``: when that run had ended.
        trained_by_filling: runs of ``dig_retrain`` that had come up by then.
        by_clock: whether the schedule asked for the day, and not a person.
        runs: run of each DAG of the chain.
    """

    day: date
    filled: str
    before: InForce
    after_filling: InForce
    trained_by_filling: list[str]
    by_clock: bool
    runs: dict[str, str]


@pytest.fixture(scope="session")
def released(live: StackClient) -> Iterator[Day]:
    """The first day that the stack releases, see ``release``; DAGs that were paused are paused again at the end."""
    wanted = (*CHAIN, "dig_backfill", "dig_promote")
    live.await_dags(wanted)
    paused = [dag_id for dag_id, is_paused in live.dags().items() if is_paused and dag_id in wanted]
    yield release(live)
    live.pause(*paused)


def release(stack: StackClient) -> Day:
    """The days before the data set's last in the lake, without a training; then that day through the chain, all by itself.

    Where the schedule asks for that day, its own run is the one that counts; a data set that has ended is asked for by hand.
    """
    config = stack.config
    day = config.dataset.default_date
    first = config.run_window(day - timedelta(days=1)).train_first
    known = {dag_id: {run["dag_run_id"] for run in stack.runs(dag_id)} for dag_id in CHAIN}
    by_clock = day == newest_closed_day() and not [run for run in stack.runs(CHAIN[0]) if run["partition_key"] == day.isoformat()]
    before = InForce.of(config)

    stack.unpause(*CHAIN[1:], "dig_backfill", "dig_promote")
    filled = stack.trigger("dig_backfill", {"from": first.isoformat(), "to": (day - timedelta(days=1)).isoformat()})
    stack.wait("dig_backfill", filled, DEADLINE)
    after, trained = InForce.of(config), [r["dag_run_id"] for r in stack.runs(CHAIN[1]) if r["dag_run_id"] not in known[CHAIN[1]]]

    stack.unpause(CHAIN[0])
    if by_clock:
        runs = {CHAIN[0]: stack.await_run(CHAIN[0], day.isoformat(), known=known[CHAIN[0]])}
    else:
        runs = {CHAIN[0]: stack.trigger(CHAIN[0], {"date": day.isoformat(), "fill": True})}
    stack.wait(CHAIN[0], runs[CHAIN[0]], DEADLINE)
    for dag_id in CHAIN[1:]:
        runs[dag_id] = stack.await_run(dag_id, day.isoformat(), known=known[dag_id])
        stack.wait(dag_id, runs[dag_id], DEADLINE)
    return Day(day, filled, before, after, trained, by_clock, runs)
