"""Servers that die under a running day: the run heals, its partitions are as ever, and readers of the index notice nothing."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from datetime import date, timedelta
from pathlib import Path

import psutil
import pytest
from live import DEADLINE, Day, InForce, is_own, ops, wait_for

from jobs import cross_arrays
from jobs.lake import MARKER
from jobs.processes import tree
from jobs.staging import STAGING
from ops import supervise
from ops.client import StackClient
from tests.crash.serving import watched

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * 3600)]
OUTAGE_SECONDS = 60.0
LAST_ONLY = (cross_arrays.TABLE, "user_state")


@pytest.fixture(scope="module")
def stack(live: StackClient, released: Day) -> StackClient:
    """The session's own stack, with an index that serves."""
    if not is_own(live):
        pytest.skip("the servers of a stack that tests did not lay out are not theirs to kill")
    return live


def lake(stack: StackClient) -> Path:
    return Path(stack.config.paths.at("lake"))


def markers(stack: StackClient) -> dict[str, bytes]:
    """Every marker of the lake."""
    return {str(path.relative_to(lake(stack))): path.read_bytes() for path in lake(stack).glob(f"*/ds=*/{MARKER}")}


def lose(stack: StackClient, day: date, *, last: bool) -> None:
    """Take a day out of every table that a range is built of; some are made for the last day alone."""
    for folder in lake(stack).glob(f"*/ds={day}"):
        if last or folder.parent.name not in LAST_ONLY:
            shutil.rmtree(folder)


def stop(stack: StackClient, name: str, with_signal: signal.Signals, *, workers: bool = False) -> None:
    """End a server, on request with its workers, and wait until it is gone."""
    process = StackClient.at(stack.home).state.processes[name]
    for member in tree(process.pid) if workers else [psutil.Process(process.pid)]:
        member.send_signal(with_signal)
    wait_for(lambda: not supervise.alive(process), f"{name} to be gone")


def revive(stack: StackClient) -> None:
    """``make up``: starts what is dead, and only that; again if a server that was still on its way out ended meanwhile."""
    wait_for(lambda: ops(Path(stack.state.config), "up").returncode == 0, "every server to be healthy", 900.0)


def staged(stack: StackClient) -> bool:
    """Whether a Spark job is writing."""
    return any(lake(stack).joinpath(STAGING).glob("*/*/*"))


def begin_backfill(stack: StackClient, released: Day, days: int) -> str:
    """Lose the newest days and have them built again; returns the run when its Spark job is writing."""
    first = released.day - timedelta(days=days - 1)
    for back in range(days):
        lose(stack, released.day - timedelta(days=back), last=not back)
    run_id = stack.trigger("dig_backfill", {"from": first.isoformat(), "to": released.day.isoformat()})
    wait_for(lambda: staged(stack), "the Spark job to write")
    return run_id


def finish(stack: StackClient, dag_id: str, run_id: str) -> None:
    """Wait for a run; a server that a lost one took along is revived, as whoever watches over the stack would."""

    def over() -> bool:
        if not all(supervise.alive(process) for process in StackClient.at(stack.home).state.processes.values()):
            revive(stack)
        return stack.run(dag_id, run_id)["state"] in ("success", "failed")

    wait_for(over, f"{dag_id} to end", DEADLINE)
    stack.wait(dag_id, run_id)


def is_clean(stack: StackClient) -> bool:
    """Whether nothing is staged, and no Spark job is left of those that lost their server."""
    left = [process for process in supervise.marked(stack.state.marker) if "--driver-memory" in _command(process)]
    return not staged(stack) and not left


def refused(stack: StackClient, run_id: str, task_id: str) -> bool:
    """Whether the first attempt of a task is over and another is to come, or has."""
    task = next(task for task in stack.tasks("dig_features", run_id) if task["task_id"] == task_id)
    return task["state"] == "up_for_retry" or task["try_number"] > 1


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_scheduler_that_is_killed_under_a_spark_job(stack: StackClient, released: Day) -> None:
    rows, before = markers(stack), InForce.of(stack.config)
    with watched(stack, "scheduler", done="a Spark job is writing", situation="dig_backfill", died="SIGKILL"):
        run_id = begin_backfill(stack, released, 8)
        stop(stack, "scheduler", signal.SIGKILL)
        revive(stack)
        finish(stack, "dig_backfill", run_id)
        wait_for(lambda: is_clean(stack), "the abandoned attempt to be gone")
        assert markers(stack) == rows
        assert InForce.of(stack.config) == before


def test_a_database_that_goes_down_under_a_spark_job(stack: StackClient, released: Day) -> None:
    rows, before = markers(stack), InForce.of(stack.config)
    with watched(stack, "postgres", done="a Spark job is writing", situation="dig_backfill", died="fast shutdown"):
        run_id = begin_backfill(stack, released, 8)
        stop(stack, "postgres", signal.SIGINT)
        revive(stack)
        finish(stack, "dig_backfill", run_id)
        wait_for(lambda: is_clean(stack), "the abandoned attempt to be gone")
        assert markers(stack) == rows
        assert InForce.of(stack.config) == before


def test_a_registry_that_is_away_for_a_minute(stack: StackClient, released: Day) -> None:
    before = InForce.of(stack.config)
    known = {run["dag_run_id"] for run in stack.runs("dig_publish")}
    with watched(stack, "mlflow", done="register begins", situation="dig_retrain", died="SIGKILL"):
        run_id = stack.trigger("dig_retrain", {"date": released.day.isoformat()})
        wait_for(lambda: stack.task_states("dig_retrain", run_id).get("register") in ("queued", "running"), "register", DEADLINE)
        stop(stack, "mlflow", signal.SIGKILL, workers=True)
        gone = time.monotonic()
        wait_for(lambda: time.monotonic() - gone > OUTAGE_SECONDS, "a minute without a registry")
        assert stack.task_states("dig_retrain", run_id)["gate"] is None
        revive(stack)
        finish(stack, "dig_retrain", run_id)
        published = stack.await_run("dig_publish", released.day.isoformat(), known=known)
        finish(stack, "dig_publish", published)
        assert InForce.of(stack.config) == before, "the same model is the same version"


def test_three_who_build_the_same_day_at_once(stack: StackClient, released: Day, tmp_path: Path) -> None:
    rows, before, day = markers(stack), InForce.of(stack.config), released.day.isoformat()
    with watched(stack, "lock", done="a job holds the day", situation="dig_features twice", died="refused"):
        point = "partition.rows_written"
        environment = stack.env | {"DIG_FAULT": f"{point}=pause:{tmp_path}"}
        beside = subprocess.Popen([sys.executable, "-m", "jobs.item_features", "--date", day], env=environment)
        try:
            wait_for((tmp_path / point).exists, "the job beside to hold the day")
            first, second = (stack.trigger("dig_features", {"date": day, "retrain": False}) for _ in range(2))
            wait_for(lambda: refused(stack, first, "item_features"), "a refusal", DEADLINE)
            assert stack.run("dig_features", second)["state"] == "queued", "one run at a time"
            said = "\n".join(stack.logs("dig_features", first, "item_features", 1))
            assert f"held by another run that builds the same days (process {beside.pid} on " in said
            (tmp_path / point).unlink()
            assert beside.wait(DEADLINE) == 0
        finally:
            beside.kill()
        for run_id in (first, second):
            stack.wait("dig_features", run_id, DEADLINE)
        assert not staged(stack)
        assert markers(stack) == rows
        assert InForce.of(stack.config) == before
