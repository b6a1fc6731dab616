"""Tokenizers behind one generator, beside SASRec, by the protocol of the published tables.

    python -m benchmarks.tokenizers --data PATH [--datasets beauty] [--kinds sasrec rqvae:tiger] [--orders shuffled] [--mode gpu]

SIDs of each kind (``dig_models.tokenizers``) are handed to the same encoder-decoder (``dig_models.generator``), which is trained on
users' sequences and searched over the items that exist. The data are read where they lie (``tokenizers_data`` says in which layout) and
stay there; ``TOKENIZER_DATA`` stands for ``--data``. A run leaves a record in the work folder and is not done again; a generator's
training that was stopped goes on after its last epoch, and SIDs are kept; a fit or a SASRec that was stopped begins anew. The table of
all records is written: ``tokenizers.md`` and ``tokenizers.json``; that of the runs asked for is shown. Modes ``gpu`` (ReSID's generator)
and ``full`` (DIGER's) want ``--device cuda``, for the generator and SASRec: tokenizers are fitted on the CPU.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.judging import RESULTS
from benchmarks.tokenizers_data import LAYOUT, DataError, DataSet, Order, read
from benchmarks.tokenizers_modes import MODES, NOT_HERE, REFERENCES, VARIANTS, Mode, kind_of, kind_settings, settings_of
from benchmarks.tokenizers_runs import Asked, run
from benchmarks.tokenizers_sids import Apart
from benchmarks.tokenizers_table import Record, markdown, rows_of, summary
from dig_models.tokenizers.registry import KINDS, MissingExtra, UnknownKind, tokenizer_class
from jobs.evaluate import finite
from jobs.files import replace_text
from jobs.runs import write_json

DATA = "TOKENIZER_DATA"
WORK = Path(".dig/benchmarks/tokenizers")
ORDERS: tuple[Order, ...] = ("published", "shuffled")


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    compared = [*REFERENCES, *(kind for kind in KINDS if kind not in NOT_HERE), *VARIANTS]
    of_data = f"folder of the data sets: <data set>/interactions.tsv and items.jsonl; by default {DATA} of the environment"
    out.add_argument("--data", type=Path, help=of_data)
    out.add_argument("--datasets", nargs="+", default=["beauty"])
    out.add_argument("--kinds", nargs="+", help=f"of {', '.join(compared)}; by default those of the mode")
    out.add_argument("--orders", nargs="+", choices=ORDERS, default=["published"], help="of events of one user and day")
    out.add_argument("--mode", choices=sorted(MODES), default="quick")
    out.add_argument("--seeds", nargs="+", type=int, default=[2017])
    out.add_argument("--levels", type=int, default=3)
    out.add_argument("--codes", type=int, default=256)
    out.add_argument("--set", nargs="*", default=[], metavar="KIND.KEY=VALUE", help="settings of kinds or variants")
    out.add_argument("--conflicts", choices=get_args(Apart), default="suffix", help="what tells items apart that share a SID")
    out.add_argument("--device", default="cpu", help="cpu or cuda")
    out.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    out.add_argument("--work", type=Path, default=WORK, help="records, checkpoints and text vectors")
    out.add_argument("--results", type=Path, default=RESULTS)
    return out


def folder_of_data(given: Path | None) -> Path:
    """The folder given, or that of the environment.

    Raises:
        DataError: neither is there.
    """
    if given is None and not os.environ.get(DATA):
        raise DataError(f"no folder of data sets found: give --data PATH, or set {DATA}=PATH in the environment; {LAYOUT}")
    return given or Path(os.environ[DATA])


def changes_of(mode: Mode, sets: list[str], name: str, dataset: str = "") -> dict[str, str]:
    """Settings of a kind or variant: see ``settings_of``; then those among ``KIND.KEY=VALUE`` of the kind or the variant.

    Raises:
        ValueError: one has another form, or there is no such variant.
    """
    out = settings_of(mode, dataset, name)
    for one in sets:
        which, equals, value = one.partition("=")
        of, dot, setting = which.partition(".")
        if not (equals and dot):
            raise ValueError(f"--set {one}: KIND.KEY=VALUE expected, for example rqvae.epochs=100")
        if of in (name, kind_of(name)):
            out[setting] = value
    return out


def require(names: list[str], mode: Mode, sets: list[str], datasets: list[str]) -> None:
    """Check kinds and their settings before anything is read.

    Raises:
        ValueError: a kind that is not compared here, or settings that it does not have, or settings of a kind that is not asked for.
        UnknownKind: there is no such kind.
        MissingExtra: a package that a kind needs is not installed.
    """
    for name in names:
        if name in NOT_HERE:
            raise ValueError(f"--kinds {name}: not compared here: {NOT_HERE[name]}")
        for dataset in datasets:
            changes = changes_of(mode, sets, name, dataset)
            if name not in REFERENCES:
                kind_settings(tokenizer_class(kind_of(name)), changes)
    for one in sets:
        if one.partition(".")[0] not in {*names, *map(kind_of, names)} - set(REFERENCES):
            raise ValueError(f"--set {one}: of none of the kinds asked for with settings, {', '.join(names)}")


def orders_of(data: DataSet, orders: list[Order]) -> list[Order]:
    """The orders that a data set has; one that it lacks is said."""
    if data.day_P is None and "shuffled" in orders:
        print(f"{data.name}: has an order but no times, so there are no ties to shuffle", flush=True)
        return [order for order in orders if order != "shuffled"]
    return orders


def main() -> None:
    """Run what is asked for and write the table."""
    options = parser()
    args = options.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(args.threads)
    began = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - began:6.0f} s] {line}", flush=True)

    try:
        asked = runs_of(args)
        done: list[Record] = []
        rows: list[Record] = []
        for number, one in enumerate(asked, start=1):
            say(f"run {number} of {len(asked)}: {one.name}")
            done.append(run(one, say))
            rows = write_table(args.work, args.results)
    except (DataError, UnknownKind, MissingExtra, ValueError) as error:
        options.error(str(error))
    print(markdown([row for row in rows if row["name"] in {one["name"] for one in done}]))


def runs_of(args: argparse.Namespace) -> list[Asked]:
    """The runs that are asked for.

    Raises:
        DataError: the data are not there, or not as expected.
        ValueError: see ``require``.
    """
    mode = MODES[args.mode]
    kinds = list(args.kinds or mode.compared)
    require(kinds, mode, args.set, args.datasets)
    folder = folder_of_data(args.data)
    return [
        Asked(
            data=data,
            kind=kind_of(kind),
            order=order,
            mode=mode,
            seed=seed,
            levels=args.levels,
            codes=args.codes,
            changes={} if kind in REFERENCES else changes_of(mode, args.set, kind, data.name),
            conflicts=args.conflicts,
            device=args.device,
            work=args.work,
        )
        for data in (read(folder, name) for name in args.datasets)
        for order in orders_of(data, args.orders)
        for seed in args.seeds
        for kind in kinds
    ]


def write_table(work: Path, results: Path) -> list[Record]:
    """Make the table of all records, of those that differ by the code alone the last that was made; its rows."""
    found: dict[str, Any] = {}
    for path in sorted((work / "runs").glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
        record = json.loads(path.read_text())
        asked = {name: record[name] for name in ("data", "kind", "order", "seed", "mode", "sid", "device")}
        found[json.dumps(asked, sort_keys=True)] = record
    rows = rows_of(list(found.values()))
    results.mkdir(parents=True, exist_ok=True)
    write_json(results / "tokenizers.json", finite(summary(rows)))
    replace_text(results / "tokenizers.md", markdown(rows))
    return rows


if __name__ == "__main__":
    main()
