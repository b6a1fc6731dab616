"""Tokenizers behind one generator, beside SASRec, by the protocol of the published tables.

    python -m benchmarks.tokenizers --data PATH [--datasets beauty] [--kinds sasrec rqvae] [--orders published shuffled] [--mode quick|full]

SIDs of each kind (``dig_models.tokenizers``) are handed to the same encoder-decoder (``dig_models.generator``), which is trained on
users' sequences and searched over the items that exist. The data are read where they lie (``tokenizers_data`` says in which layout) and
stay there. A run leaves a record in the work folder and is not done again; a training that was stopped goes on after its last epoch. The
table is made of all records: ``tokenizers.md`` and ``tokenizers.json``. ``--mode full`` has the published constants and wants
``--device cuda``.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import torch

from benchmarks.judging import RESULTS
from benchmarks.tokenizers_data import DataError, DataSet, Order, read
from benchmarks.tokenizers_modes import MODES, NOT_HERE, SASREC, Mode, kind_settings
from benchmarks.tokenizers_runs import Asked, run
from benchmarks.tokenizers_table import markdown, summary
from dig_models.tokenizers.registry import KINDS, MissingExtra, UnknownKind, tokenizer_class
from jobs.files import replace_text
from jobs.runs import write_json

WORK = Path(".dig/benchmarks/tokenizers")
ORDERS: tuple[Order, ...] = ("published", "shuffled")


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    compared = [SASREC, *(kind for kind in KINDS if kind not in NOT_HERE)]
    out.add_argument("--data", type=Path, required=True, help="folder of the data sets: <data set>/interactions.tsv and items.jsonl")
    out.add_argument("--datasets", nargs="+", default=["beauty"])
    out.add_argument("--kinds", nargs="+", default=compared, help=f"of {', '.join(compared)}")
    out.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS), help="of events of one user and day")
    out.add_argument("--mode", choices=sorted(MODES), default="quick")
    out.add_argument("--seeds", nargs="+", type=int, default=[2017])
    out.add_argument("--levels", type=int, default=3)
    out.add_argument("--codes", type=int, default=256)
    out.add_argument("--set", nargs="*", default=[], metavar="KIND.KEY=VALUE", help="settings of tokenizers")
    out.add_argument("--device", default="cpu", help="cpu or cuda")
    out.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    out.add_argument("--work", type=Path, default=WORK, help="records, checkpoints and text vectors")
    out.add_argument("--results", type=Path, default=RESULTS)
    return out


def changes_of(mode: Mode, sets: list[str], kind: str) -> dict[str, str]:
    """Settings of a kind: those of the mode, then those among ``KIND.KEY=VALUE``.

    Raises:
        ValueError: one has another form.
    """
    out = dict(mode.kinds.get(kind, {}))
    for one in sets:
        name, equals, value = one.partition("=")
        of, dot, setting = name.partition(".")
        if not (equals and dot):
            raise ValueError(f"--set {one}: KIND.KEY=VALUE expected, for example rqvae.epochs=100")
        if of == kind:
            out[setting] = value
    return out


def there(kinds: list[str], mode: Mode, sets: list[str]) -> list[str]:
    """The kinds that this version of the code has, their settings checked; what it lacks is said.

    Raises:
        ValueError: a kind that is not known or not compared here, or settings that it does not have.
        MissingExtra: a package that a kind needs is not installed.
    """
    out = []
    for kind in kinds:
        if kind in NOT_HERE:
            raise ValueError(f"--kinds {kind}: not compared here: {NOT_HERE[kind]}")
        changes = changes_of(mode, sets, kind)
        if kind == SASREC:
            out.append(kind)
            continue
        try:
            kind_settings(tokenizer_class(kind), changes)
            out.append(kind)
        except ModuleNotFoundError as error:
            print(f"{kind}: left out, this version of the code has no {error.name}", flush=True)
    return out


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
        kinds = there(args.kinds, MODES[args.mode], args.set)
        asked = [
            Asked(
                data=data,
                kind=kind,
                order=order,
                mode=MODES[args.mode],
                seed=seed,
                levels=args.levels,
                codes=args.codes,
                changes=changes_of(MODES[args.mode], args.set, kind),
                device=args.device,
                work=args.work,
            )
            for data in (read(args.data, name) for name in args.datasets)
            for order in orders_of(data, args.orders)
            for seed in args.seeds
            for kind in kinds
        ]
        for number, one in enumerate(asked, start=1):
            say(f"run {number} of {len(asked)}: {one.name}")
            run(one, say)
            write_table(args.work, args.results)
    except (DataError, UnknownKind, MissingExtra, ValueError) as error:
        options.error(str(error))


def write_table(work: Path, results: Path) -> None:
    """Make the table of all records."""
    records = [json.loads(path.read_text()) for path in sorted((work / "runs").glob("*.json"))]
    results.mkdir(parents=True, exist_ok=True)
    write_json(results / "tokenizers.json", summary(records))
    replace_text(results / "tokenizers.md", markdown(records))


if __name__ == "__main__":
    main()
