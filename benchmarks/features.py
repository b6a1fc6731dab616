"""Does a day's feature cost grow with history? Days early and late in the year, built alone, again and again.

Usage: ``python -m benchmarks.features [--home FOLDER] [--sample 0.1] [--repeats 5]``. The lake is prepared first (ingest of the
year's events, offers of each day's window, daily aggregates), in a scratch folder that is removed at the end unless ``--home`` names
one to keep. Then, in one warm Spark session, each day's jobs run alone, days taking turns so that a busy machine disturbs all of
them alike. The jobs include their data gates (rules, profiles, data docs; days before a measured one are not built, so drift is
profiled but compared with nothing). Windows of 90 and 180 days fill up over the first half of the year: what must stay level is the cost
of days after that. The export of the cross arrays is a row of its own. Wall seconds and CPU seconds (this process
and its JVM) are kept; the figures are medians. Writes ``benchmarks/results/features.json`` and ``features.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psutil

from jobs import cross_arrays, examples, item_features, u2i_crosses
from jobs.build import Build
from jobs.config import Config, load
from jobs.entry import Invocation
from jobs.lake import Lake
from jobs.spark import spark_session

RESULTS = Path(__file__).parent / "results"


def export_arrays(call: Invocation) -> None:
    """The export of the cross arrays, which ``u2i_crosses`` does last."""
    with spark_session(call.config, "cross_arrays") as spark:
        build = Build(call.config, spark, "u2i_crosses", ["jobs.u2i_crosses"], steps=1)
        cross_arrays.export(build, call.date)


JOBS: dict[str, Callable[[Invocation], None]] = {
    "item_features": item_features.main,
    "u2i_crosses": u2i_crosses.main,
    "examples": examples.main,
    "cross_arrays": export_arrays,
}
TABLES = ("interactions", "requests", "offers", "item_features", "u2i_crosses", "examples", "cross_arrays")


def options_of(**given: Any) -> argparse.Namespace:
    """Options of the feature jobs, as the command line would give them; the arrays are exported by a job of their own."""
    return argparse.Namespace(**({"missing": False, "events_from": None, "arrays": False} | given))


def ingest(sets: list[str], days: list[date], *more: str) -> None:
    """Run the ingest job for a range, leaving days alone that are there."""
    overrides = [part for one in sets for part in ("--set", one)]
    span = ["--from", days[0].isoformat(), "--to", days[-1].isoformat()]
    subprocess.run([sys.executable, "-m", "jobs.ingest", *span, "--missing", *more, *overrides], check=True)


def prepare(config: Config, sets: list[str], days: list[date]) -> None:
    """Ingest what the days need, then their daily aggregates and the catalogues of the days before them; nothing here is measured."""
    first = config.dataset.first_date
    ingest(sets, [first, days[-1]], "--offers-from", days[-1].isoformat())
    for day in days:
        ingest(sets, config.run_window(day).examples())
    with spark_session(config, "prepare"):
        for day in days:
            JOBS["item_features"](
                Invocation(config=config, days=[day - timedelta(days=1)], options=options_of(events_from=first, missing=True))
            )
        JOBS["item_features"](Invocation(config=config, days=days[-1:], options=options_of(events_from=first, missing=True)))
        JOBS["u2i_crosses"](Invocation(config=config, days=days[-1:], options=options_of(events_from=first, missing=True)))


def cpu_seconds() -> float:
    """CPU seconds so far of this process and the processes it started."""
    me = psutil.Process()
    times = [p.cpu_times() for p in (me, *me.children(recursive=True))]
    return float(sum(t.user + t.system for t in times))


def measure(config: Config, days: list[date], repeats: int) -> dict[date, dict[str, dict[str, list[float]]]]:
    """Wall and CPU seconds of each job on each day; a first round warms up and does not count."""
    found: dict[date, dict[str, dict[str, list[float]]]] = {d: {j: {"wall": [], "cpu": []} for j in JOBS} for d in days}
    with spark_session(config, "benchmark"):
        for round_ in range(repeats + 1):
            for day in days if round_ % 2 else reversed(days):
                for name, job in JOBS.items():
                    wall, cpu = time.perf_counter(), cpu_seconds()
                    job(Invocation(config=config, days=[day], options=options_of()))
                    if round_:
                        found[day][name]["wall"].append(round(time.perf_counter() - wall, 3))
                        found[day][name]["cpu"].append(round(cpu_seconds() - cpu, 3))
    return found


def rows_of(config: Config, day: date) -> dict[str, int]:
    """Rows of each table on a day, to tell a busy day from a costly history."""
    lake = Lake(config.paths.at("lake"))
    markers = {table: lake.marker(table, day) for table in TABLES}
    return {table: marker.rows for table, marker in markers.items() if marker is not None}


def plot(result: dict[str, Any], path: Path) -> None:
    """Median wall and CPU seconds of a day against the day of the year, stacked by job."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    days = result["days"]
    number = [d["day_of_year"] for d in days]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharex=True, layout="constrained")
    for axis, kind in zip(axes, ("wall", "cpu"), strict=True):
        below = [0.0] * len(days)
        for job in JOBS:
            height = [d["median"][job][kind] for d in days]
            axis.bar(range(len(days)), height, bottom=below, label=job)
            below = [a + b for a, b in zip(below, height, strict=True)]
        axis.set_xticks(range(len(days)), [f"day {n}" for n in number])
        axis.set_ylabel(f"{kind} seconds (median of {result['repeats']})")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(f"Cost of one day's features, built alone ({result['sample']:g} of the households)")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Prepare, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--home", type=Path, help="folder for the benchmark's own lake, which is kept; default: a scratch folder, removed")
    parser.add_argument("--sample", type=float, default=0.1, help="share of the households")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--days", type=int, nargs="+", default=[30, 120, 210, 300], help="days of the year")
    args = parser.parse_args()
    if args.home:
        report(args.home, args)
    else:
        with tempfile.TemporaryDirectory(prefix="dig-features-") as home:
            report(Path(home), args)


def report(home: Path, args: argparse.Namespace) -> None:
    """Measure in a home of its own and write the results."""
    sets = [f"paths.home={home}", f"dataset.sample_users={args.sample}"]
    config = load(None, sets)
    first = config.dataset.first_date
    days = [first + timedelta(days=n - 1) for n in sorted(args.days)]
    quick = [*sets, "checks.enabled=false"]
    prepare(load(None, quick), quick, days)
    found = measure(config, days, args.repeats)
    result = {
        "question": "cost of one day's features, built alone, early and late in the year",
        "machine": {"cpus": os.cpu_count(), "load_average": [round(v, 2) for v in os.getloadavg()]},
        "sample": args.sample,
        "repeats": args.repeats,
        "days": [
            {
                "day": day.isoformat(),
                "day_of_year": (day - first).days + 1,
                "rows": rows_of(config, day),
                "seconds": found[day],
                "median": {job: {kind: statistics.median(values) for kind, values in kinds.items()} for job, kinds in found[day].items()},
            }
            for day in days
        ],
    }
    for one in result["days"]:
        one["total"] = {kind: round(sum(m[kind] for m in one["median"].values()), 3) for kind in ("wall", "cpu")}
        print(one["day_of_year"], one["total"], one["rows"])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "features.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(result, RESULTS / "features.png")


if __name__ == "__main__":
    main()
