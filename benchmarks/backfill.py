"""What does a backfill gain by one Spark application? A range against the same days one by one.

Usage: ``python -m benchmarks.backfill [--home FOLDER] [--sample 0.1] [--days 14] [--last 2017-03-14]``. A base lake is prepared first (raw
events, the offers of the run window, daily aggregates of the days before the range) and copied, so that both start from the same. Then

- *range*: one ``python -m jobs.backfill`` for all days;
- *day by day*: what a scheduler does, for each day the four jobs as processes of their own, each with its own Spark session, its JVM with
  the options that a DAG gives a single day (``spark.one_day_java_options``).

Both have their data gates on. The cross arrays are made for the last day alone either way, which spares the days one by one an export each.
At the end every marker of the range must be in the other lake, byte for byte. Wall seconds and CPU seconds (of the processes and their
JVMs) are kept. Writes ``benchmarks/results/backfill.json`` and ``backfill.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psutil

from jobs.config import load
from jobs.dates import days_between
from jobs.lake import MARKER
from jobs.processes import tree

RESULTS = Path(__file__).parent / "results"
JOBS = ("ingest", "item_features", "u2i_crosses", "examples")
POLL_SECONDS = 0.2


def start(job: str, home: Path, sample: float, *options: str) -> dict[str, float]:
    """Run one job to its end.

    Returns:
        Its wall and CPU seconds; the CPU of a process is read while it lives, its last fifth of a second is not seen.

    Raises:
        RuntimeError: it failed; its log says why.
    """
    sets = ("--set", f"paths.home={home}", "--set", f"dataset.sample_users={sample}")
    began, cpu = time.perf_counter(), dict[int, float]()
    with (home / "jobs.log").open("a") as log:
        process = subprocess.Popen([sys.executable, "-m", f"jobs.{job}", *options, *sets], stderr=log, stdout=log)
        while process.poll() is None:
            for one in tree(process.pid):
                try:
                    times = one.cpu_times()
                    cpu[one.pid] = times.user + times.system
                except psutil.NoSuchProcess:
                    continue
            time.sleep(POLL_SECONDS)
    if process.returncode:
        raise RuntimeError(f"jobs.{job} {' '.join(options)} ended with exit status {process.returncode}; see {home / 'jobs.log'}")
    return {"wall": time.perf_counter() - began, "cpu": sum(cpu.values())}


def prepare(home: Path, sample: float, days: list[date]) -> None:
    """What lies before the range; nothing here is measured."""
    config = load(None, [f"paths.home={home}"])
    before, events, offers = days[0] - timedelta(days=1), config.dataset.first_date, config.run_window(days[-1]).train_first
    start("ingest", home, sample, "--from", str(events), "--to", str(before), "--offers-from", str(min(offers, before)), "--missing")
    start("item_features", home, sample, "--date", str(before), "--events-from", str(events), "--missing")
    start("u2i_crosses", home, sample, "--date", str(before), "--events-from", str(events), "--missing", "--no-arrays")


def by_range(home: Path, sample: float, days: list[date]) -> list[dict[str, Any]]:
    """Seconds of the one application."""
    seconds = start("backfill", home, sample, "--from", str(days[0]), "--to", str(days[-1]))
    print(f"range of {len(days)} days: {seconds['wall']:.0f} s", flush=True)
    return [{"job": "backfill", **seconds}]


def day_by_day(home: Path, sample: float, days: list[date]) -> list[dict[str, Any]]:
    """Seconds of each job of each day."""
    found: list[dict[str, Any]] = []
    java = ["--set", f"spark.conf={{spark.driver.extraJavaOptions: '{load().spark.one_day_java_options}'}}"]
    for day in days:
        for job in JOBS:
            more = ["--no-arrays"] if job == "u2i_crosses" and day != days[-1] else []
            found.append({"day": day.isoformat(), "job": job, **start(job, home, sample, "--date", str(day), *more, *java)})
        print(f"{day}: {sum(one['wall'] for one in found if one['day'] == day.isoformat()):.0f} s", flush=True)
    return found


def markers(home: Path) -> dict[str, str]:
    """Every marker of a lake, by its place."""
    return {str(path.relative_to(home / "lake")): path.read_text() for path in (home / "lake").rglob(MARKER)}


def compare(range_home: Path, day_home: Path) -> int:
    """Hold every marker of the range against the other lake's.

    Returns:
        How many are the same.

    Raises:
        RuntimeError: one differs, or the other lake has more than user states of the days before the last.
    """
    ranged, daily = markers(range_home), markers(day_home)
    differing = sorted(name for name, text in ranged.items() if daily.get(name) != text)
    more = sorted(name for name in daily.keys() - ranged.keys() if not name.startswith("user_state/"))
    if differing or more:
        raise RuntimeError(f"the lakes differ: {differing[:5]} are others, {more[:5]} are in one alone")
    return len(ranged)


def totals(seconds: list[dict[str, Any]]) -> dict[str, float]:
    """Wall and CPU seconds of all."""
    return {kind: round(sum(one[kind] for one in seconds), 1) for kind in ("wall", "cpu")}


def plot(result: dict[str, Any], path: Path) -> None:
    """Seconds of both ways; the days one by one stacked by job."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, kind in zip(axes, ("wall", "cpu"), strict=True):
        axis.bar(["range"], [result["range"]["total"][kind]], label="backfill")
        below = 0.0
        for job in JOBS:
            height = sum(one[kind] for one in result["day_by_day"]["seconds"] if one["job"] == job)
            axis.bar(["day by day"], [height], bottom=[below], label=job)
            below += height
        axis.set_ylabel(f"{kind} seconds")
        axis.set_title(f"{result['ratio'][kind]:.1f} times", fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(f"Features of {result['days']} days ({result['sample']:g} of the households)")
    figure.savefig(path, dpi=120)


def report(root: Path, args: argparse.Namespace) -> None:
    """Prepare, measure both ways, compare, write the results."""
    days = days_between(args.last - timedelta(days=args.days - 1), args.last)
    homes = {name: root / name for name in ("base", "range", "daily")}
    homes["base"].mkdir(parents=True, exist_ok=True)
    prepare(homes["base"], args.sample, days)
    for name in ("range", "daily"):
        shutil.rmtree(homes[name], ignore_errors=True)
        shutil.copytree(homes["base"], homes[name])
    load_before = os.getloadavg()
    ranged = by_range(homes["range"], args.sample, days)
    load_between = os.getloadavg()
    daily = day_by_day(homes["daily"], args.sample, days)
    same = compare(homes["range"], homes["daily"])
    total = {"range": totals(ranged), "daily": totals(daily)}
    loads = {"before": load_before, "between": load_between, "after": os.getloadavg()}
    result = {
        "question": "a range of days in one Spark application against the four jobs day by day",
        "machine": {"cpus": os.cpu_count(), "load_average": {when: [round(v, 2) for v in some] for when, some in loads.items()}},
        "note": args.note,
        "sample": args.sample,
        "days": args.days,
        "last": args.last.isoformat(),
        "same_markers": same,
        "ratio": {kind: round(total["daily"][kind] / total["range"][kind], 2) for kind in ("wall", "cpu")},
        "range": {"total": total["range"], "seconds": ranged},
        "day_by_day": {"total": total["daily"], "seconds": daily},
    }
    print(result["ratio"], total)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "backfill.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(result, RESULTS / "backfill.png")


def main() -> None:
    """Prepare, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--home", type=Path, help="folder for the benchmark's own lakes, which is kept; default: a scratch folder, removed")
    parser.add_argument("--sample", type=float, default=0.1, help="share of the households")
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--last", type=date.fromisoformat, default=date(2017, 3, 14), help="last day of the range")
    parser.add_argument("--note", default="", help="state of the machine, kept with the result")
    args = parser.parse_args()
    if args.home:
        report(args.home.resolve(), args)
    else:
        with tempfile.TemporaryDirectory(prefix="dig-backfill-") as home:
            report(Path(home), args)


if __name__ == "__main__":
    main()
