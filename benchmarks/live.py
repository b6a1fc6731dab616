"""What a user of the live stack waits for: a backfill of some days of features, and a rollback.

Usage: ``python -m benchmarks.live [--days 3] [--repeats 5]``, with the servers up (``make up``) and a date retrained on them
(``make e2e``). The days after the champion's are backfilled through Airflow's own ``backfill create``, one run after the other,
each of four Spark applications, and then anew by one run of ``dig_backfill``, which is one application; the seconds are from the command
or trigger to the end of the last run. Then the generation of the day before goes out
and is rolled back again and again: by the command alone, and by the DAG from its trigger to its end. Writes
``benchmarks/results/live.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from dig_models.index import generation as g
from jobs.config import load
from jobs.dates import days_between
from ops.client import StackClient

RESULTS = Path(__file__).parent / "results"
DEADLINE = 1800.0
FEATURES, RANGE, PROMOTE = "dig_features", "dig_backfill", "dig_promote"


def job(stack: StackClient, *arguments: str) -> None:
    """Run a job against the stack."""
    subprocess.run([sys.executable, "-m", *arguments], env=stack.env, check=True)


def seconds(action: Callable[[], Any]) -> float:
    """Wall seconds of an action."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def backfill(stack: StackClient, days: list[date]) -> dict[str, Any]:
    """Backfill days through Airflow; its consumers must skip.

    Returns:
        Seconds in all, and of each run.
    """
    known = {run["dag_run_id"] for run in stack.runs(FEATURES)}
    wanted = {day.isoformat() for day in days}
    started = time.perf_counter()
    # The end is compared at the hour of the schedule: without a time the last day would be left out.
    span = ["--from-date", days[0].isoformat(), "--to-date", f"{days[-1]}T23:59"]
    stack.cli("backfill", "create", "--dag-id", FEATURES, *span, "--reprocess-behavior", "completed", "--max-active-runs", "1")
    found: dict[str, str] = {}
    while set(found) < wanted:
        found = {run["partition_key"]: run["dag_run_id"] for run in stack.runs(FEATURES) if run["dag_run_id"] not in known}
        time.sleep(0.5)
    runs = [stack.wait(FEATURES, found[day], DEADLINE) for day in sorted(wanted)]
    took = time.perf_counter() - started
    return {"days": sorted(wanted), "seconds": round(took, 1), "runs": [round(run["duration"], 1) for run in runs]}


def by_range(stack: StackClient, days: list[date]) -> dict[str, Any]:
    """Build the same days anew through the DAG that takes a range; seconds from its trigger to its end."""
    asked = {"from": days[0].isoformat(), "to": days[-1].isoformat(), "anew": True}
    return {"seconds": round(seconds(lambda: stack.wait(RANGE, stack.trigger(RANGE, asked), DEADLINE)), 1)}


def by_dag(stack: StackClient) -> float:
    """Seconds of a rollback from the trigger of the DAG to its end."""

    def roll_back() -> None:
        stack.wait(PROMOTE, stack.trigger(PROMOTE, {"version": "rollback", "reason": "benchmark"}), DEADLINE)

    return seconds(roll_back)


def rollbacks(stack: StackClient, repeats: int) -> dict[str, Any]:
    """Move to the generation of the day before with the same version, and roll back, again and again."""
    root = Path(stack.config.paths.at("index"))
    before = (root / "CURRENT").read_text().strip()
    day, version = g.id_date(before) - timedelta(days=1), g.id_version(before)
    job(stack, "jobs.index", "--date", day.isoformat(), "--version", version, "--allow-older")
    other = next(one for one in g.generations(root) if one.startswith(f"{day}-v{version}-"))
    forward = ("jobs.promote", "--generation", other, "--reason", "benchmark")
    back = ("jobs.promote", "--rollback", "--reason", "benchmark")
    ways: dict[str, Callable[[], float]] = {"command": lambda: seconds(lambda: job(stack, *back)), "dag": lambda: by_dag(stack)}
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, roll_back in ways.items():
            job(stack, *forward)
            found[way].append(roll_back())
            if (now := (root / "CURRENT").read_text().strip()) != before:
                raise RuntimeError(f"after a rollback {now} is current, {before} expected")
    return {way: {"median": round(statistics.median(took), 2), "seconds": [round(s, 2) for s in took]} for way, took in found.items()}


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--days", type=int, default=3, help="days to backfill after the champion's")
    parser.add_argument("--repeats", type=int, default=5, help="rollbacks of each kind")
    options = parser.parse_args()
    stack = StackClient.at(Path(load().paths.home))
    config = stack.config
    first = config.dataset.default_date + timedelta(days=1)
    days = days_between(first, first + timedelta(days=options.days - 1))
    stack.unpause(FEATURES, RANGE, PROMOTE)
    results = {
        "dataset": config.dataset.name,
        "sample_users": config.dataset.sample_users,
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "backfill": backfill(stack, days),
        "range": by_range(stack, days),
        "rollback": rollbacks(stack, options.repeats),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "live.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
