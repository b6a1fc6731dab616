"""What each part of the method is worth: the same training with one thing changed, over several seeds, on the same rows.

    python -m benchmarks.ablation [--features] [--date 2017-11-15] [--seeds 2017 7 18] [--rows gumbel_sdud ... | --all] [--baselines]
    python -m benchmarks.ablation --features --quick

Without ``--rows`` or ``--all`` the rows are the grid: the paper's, and what collision resolution costs. ``--all`` adds every further switch
of the method and every further two-stage system, some fifty trainings a seed. Of these, rows that the data set cannot have are left out,
which standard error and the result say; one that ``--rows`` names is refused.

Every row of ``ablation_rows`` is trained under torchrun in a home of its own under ``<paths.home>/benchmarks/ablation`` and judged on the
evaluation days of the date: ranking, the retrieval path on the same impressions, and lists over the whole catalogue with and without
re-ranking. A run that is there is not done again (``ablation_runs``), so the script goes on where it was stopped; ``--again`` judges anew.
``--features`` first builds what the lake lacks, from the raw tables on. ``--quick`` does the rows that the paper's grid names, once, on a
short window, and builds no more than that needs, in a lake of its own where the common one is not whole (``ablation_lake``): under ten
minutes from nothing on two cores. ``--validation`` judges on the validation days instead: settings
are tuned by these, and the evaluation days are left for what was chosen. The models are the same, so each is trained once for both.
``--baselines`` runs ``benchmarks.baselines`` afterwards, for the same date, days, settings and seeds: usual methods on the same rows.

Writes ``benchmarks/results/ablation.json``, ``.txt`` and ``.png`` (``--quick``: ``ablation-quick``; names of others: ``result_name``),
after every seed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.ablation_lake import quick_lake
from benchmarks.ablation_rows import QUICK_ROWS, ROWS, Row, chosen
from benchmarks.ablation_runs import Place, Run, possible, runs_of
from benchmarks.ablation_table import plot, summary, text
from benchmarks.judging import (
    SEEDS,
    ablation_home,
    add_options,
    add_validation,
    asked,
    build_features,
    deciding,
    facts,
    part_of,
    result_name,
)
from jobs.config import Config, ConfigError, load
from jobs.entry import JobError
from jobs.runs import write_json

LEAST_DRAWS = 1000
"""Bootstrap replicates where neither settings nor options ask for more: the ends of 95% intervals are read off 25 of them."""
QUICK = (
    "window.eval_days=3",
    "window.train_days=9",
    "window.validation_days=2",
    "train.epochs=1",
    "evaluate.max_requests=200",
    "evaluate.bootstrap=100",
)
"""Settings of ``--quick``: ``QUICK_ROWS`` once, on twelve days; shows that the table can be made, not what the rows are worth."""


def run_all(runs: Sequence[Run], rows: Sequence[Row], write: Any) -> dict[str, list[dict[str, Any]]]:
    """Do what is not done, telling on standard error how far it is; ``write`` is called when all rows have one seed more."""
    records: dict[str, list[dict[str, Any]]] = {row.name: [] for row in rows}
    missing = len({run.key for run in runs if run.kept() is None})
    done, since = 0, time.monotonic()
    for number, run in enumerate(runs, start=1):
        there = run.kept() is not None
        if not there:
            _say(f"run {number}/{len(runs)}  {run.row.name}, seed {run.seed} ...")
        record = run.done()
        records[run.row.name].append(record)
        done += not there
        figures = {name: record["figures"].get(name) for name in ("rank_auc", "path_auc", "recall@10_all")}
        shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items() if value is not None)
        state = "there already" if there else f"{record['wall_seconds']:.0f} s"
        if done:  # before, nothing says how long one takes
            state += f"; about {(time.monotonic() - since) / done * (missing - done) / 60:.0f} min left"
        _say(f"run {number}/{len(runs)}  {run.row.name}, seed {run.seed}: {shown}  ({state})")
        if number % len(rows) == 0:
            write(records)
    return records


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def report(
    place: Place,
    rows: Sequence[Row],
    records: dict[str, list[dict[str, Any]]],
    folder: Path,
    name: str,
    left_out: Mapping[str, str] | None = None,
) -> str:
    """Write figures, table and plot, with what ``possible`` left out; returns the table."""
    every = [record for some in records.values() for record in some]
    if len({(record["rows"], record["users"]) for record in every}) != 1:
        raise ValueError("the runs were judged on different rows: give --again to judge all of them anew")
    codes = sorted({record["code"] for record in every})
    about = facts(place.config, place.day, place.part)
    found = summary(records, place.config.evaluate.confidence) | {
        **about,
        "sample_users": place.config.dataset.sample_users,
        "settings": deciding(place.sets),
        "judged": {what: every[0][what] for what in ("rows", "users")} | {"requests": max(record["requests"] for record in every)},
        "draws": place.config.evaluate.bootstrap,
        "labels": {row.name: row.label for row in rows},
        "left_out": dict(left_out or {}),
        "code": codes,
    }
    head = (
        f"{place.config.dataset.name}, {place.day}, {place.part} days {' to '.join(about['judged_on']['days'])}, "
        f"{len(next(iter(records.values())))} seed(s), {found['judged']['rows']} rows, "
        f"{found['judged']['requests']} requests, {found['judged']['users']} users\n"
    )
    if len(codes) > 1:
        head += f"NOTE: the runs were made by {len(codes)} versions of the code; --again makes them all by this one\n"
    if name.startswith("ablation-quick"):
        head += "NOTE: --quick, a short window and few requests: it shows that all runs; `make ablation` says what a part is worth\n"
    if left_out:
        head += f"NOTE: left out, for the data set cannot have them: {', '.join(left_out)}\n"
    table = head + "\n" + text(found, rows)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", found)
    (folder / f"{name}.txt").write_text(table, encoding="utf-8")
    plot(found, rows, head.splitlines()[0]).savefig(folder / f"{name}.png", dpi=130)
    return table


def with_features(place: Place, whole: Config, *, quick: bool) -> Place:
    """The place with the lake that it reads, after what that lacks was built.

    Args:
        place: of the ablation.
        whole: settings of the daily run, whose lake is the common one.
        quick: whether a lake of its own may be built for a window shorter than the daily run's, see ``ablation_lake``.

    Raises:
        CalledProcessError: a feature job failed.
        JobError: see ``quick_lake``.
    """
    if quick and (lake := quick_lake(whole, place.config, place.day)) is not None:
        sets = (*place.sets, f"paths.lake={lake}")
        place = replace(place, sets=sets, config=load(place.settings, sets))
    elif quick:
        return place
    build_features(place.config, place.day, place.settings, place.sets)
    return place


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_options(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help=f"default: {' '.join(map(str, SEEDS))}; --quick: the first")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--rows", nargs="+", default=[], metavar="ROW", help=f"some of: {', '.join(ROWS)}; default: the grid")
    which.add_argument("--all", action="store_true", help=f"the grid and every further row, {len(ROWS)} in all, that the data set can have")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--baselines", action="store_true", help="run benchmarks.baselines afterwards, for the same date and seeds")
    size.add_argument("--quick", action="store_true", help="few rows, one seed, twelve days: under ten minutes on two cores")
    add_validation(parser)
    parser.add_argument("--features", action="store_true", help="build first what the lake lacks")
    parser.add_argument("--again", action="store_true", help="judge anew what is there; a training with the same lineage is kept")
    return parser


def baselines_command(place: Place, seeds: Sequence[int], results: Path) -> list[str]:
    """The command that puts the usual methods beside the table: for the same date, days, settings, draws and seeds."""
    command = [sys.executable, "-m", "benchmarks.baselines", "--date", place.day.isoformat(), "--results", str(results)]
    command += ["--seeds", *map(str, seeds)]
    command += ["--config", str(place.settings)] if place.settings else []
    command += ["--validation"] if place.part == "validation" else []
    command += ["--acceptance"] if place.config.in_acceptance(place.day) else []
    return command + [part for one in place.sets for part in ("--set", one)]


def rows_asked(args: argparse.Namespace) -> list[Row]:
    """Rows that the options ask for.

    Raises:
        ValueError: there is no such row.
    """
    return chosen(tuple(ROWS) if args.all else args.rows or (QUICK_ROWS if args.quick else ()))


def main() -> None:
    """Parse the options, run, write, and print the table."""
    parser = _parser()
    args = parser.parse_args()
    whole, day = asked(parser, args)
    draws = max(load(args.config).evaluate.bootstrap, LEAST_DRAWS)
    sets = (f"evaluate.bootstrap={draws}", *(QUICK if args.quick else ()), *args.set)
    try:
        config, rows = load(args.config, sets), rows_asked(args)
    except (ConfigError, ValueError) as error:
        parser.error(str(error))
    name = "ablation-quick" if args.quick else "ablation"
    home = ablation_home(config, day, quick=args.quick)
    place = Place(config=config, day=day, settings=args.config, sets=sets, home=home, part=part_of(args))
    try:
        if args.features:
            place = with_features(place, whole, quick=args.quick)
        seeds = args.seeds or (SEEDS[:1] if args.quick else SEEDS)
        rows, left_out = possible(place, rows) if args.all else (rows, {})
        runs = runs_of(place, rows, seeds)
        files = [run.file for run in runs]  # their keys are taken after the lake was built, for they hold what is in it
    except ConfigError as error:
        parser.error(str(error))
    except JobError as error:
        parser.exit(2, f"{error}\n" + ("" if args.features else "--features builds what the lake lacks\n"))
    except subprocess.CalledProcessError as error:
        parser.exit(2, f"the features were not built: python -m jobs.backfill ended with status {error.returncode}\n")
    for row, why in left_out.items():
        _say(f"row {row} left out: {why}")
    if args.again:
        for file in files:
            file.unlink(missing_ok=True)
    table = ""

    def write(records: dict[str, list[dict[str, Any]]]) -> None:
        nonlocal table
        table = report(place, rows, records, args.results, result_name(config, name, place.part), left_out)

    torch.set_num_threads(config.train.ranks * config.train.threads_per_rank)  # trainings are processes of their own
    try:
        run_all(runs, rows, write)
    except JobError as error:
        parser.exit(2, f"{error}\n")
    except subprocess.CalledProcessError as error:
        parser.exit(2, f"a training ended with status {error.returncode}; its train.log under {home / 'models'} says why\n")
    print(table, end="", flush=True)
    _say(f"\nwritten to {args.results}: {result_name(config, name, place.part)}.json, .txt and .png")
    if args.baselines:
        sys.exit(subprocess.run(baselines_command(place, seeds, args.results), check=False).returncode)


if __name__ == "__main__":
    main()
