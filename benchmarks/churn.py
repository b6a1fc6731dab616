"""How many items get another semantic ID from one day to the next, and what keeping them costs in quality.

    python -m benchmarks.churn [--from 2017-11-15] [--days 4]

The lake must hold what a training of each of the days reads (``python -m jobs.backfill``). The first day is trained cold; then three
chains of models go on from it, each in a home of its own under ``<paths.home>/benchmarks/churn/<first day>``: trained cold every day,
or started from the day before with known items keeping their codes (the default), or with their codes moving to the nearest. Every
model is trained by ``jobs.launch``, judged by ``jobs.evaluate``, and registered as promoted so that the next day starts from it and is
aligned with it. What is there with the same lineage is not trained again, so the script goes on where it was stopped.

SIDs are those that a generation of the day publishes: its catalogue, with the day's model. A model keeps the renaming that aligned
it, so each training is counted twice, with alignment and without: renaming changes no score, and a cold training knows nothing of the
day before. (A warm one that lets codes move starts from renamed codes, which changes the order in which dead codes are reset.)

Writes ``benchmarks/results/churn.json`` and ``churn.png``; the exit status is 1 if the default settings miss the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from dig_models.bundle import Bundle, load_bundle
from dig_models.items import ItemTable
from dig_models.quantize.known import KnownSids
from dig_models.train.warm import between, unaligned
from jobs import registry, runs
from jobs.config import Config, ConfigError, load
from jobs.dates import days_between
from jobs.evaluate import evaluate
from jobs.files import exclusive
from jobs.lake import Lake
from jobs.runs import write_json

RESULTS = Path(__file__).parent / "results"
LIMIT = 0.05
CHAINS: dict[str, dict[str, str]] = {
    "cold": {"train.warm_start": "false"},
    "keep": {"train.warm_start": "true", "train.warm_codes": "keep"},
    "move": {"train.warm_start": "true", "train.warm_codes": "move"},
}
LABELS = {"cold": "cold every day", "keep": "warm, codes kept", "move": "warm, codes move"}
DEFAULT = "keep, aligned"


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Trainings of consecutive days, each from the one before, in a home of their own.

    Attributes:
        settings: the file that all jobs read; None for the default.
        sets: settings of this chain that go to every job.
    """

    name: str
    config: Config
    settings: Path | None
    sets: tuple[str, ...]

    @classmethod
    def of(cls, name: str, whole: Config, first: date, settings: Path | None, sets: Sequence[str]) -> Chain:
        """A chain that begins on a day, beside the others under ``paths.home``, on the same lake."""
        own = {
            "paths.home": str(Path(whole.paths.home).resolve() / "benchmarks" / "churn" / first.isoformat() / name),
            "paths.lake": whole.paths.at("lake"),
            "mlflow.tracking_uri": '""',
            "train.align_codes": "true",
            **CHAINS.get(name, {}),
        }
        every = (*sets, *(f"{key}={value}" for key, value in own.items()))
        return cls(name=name, config=load(settings, every), settings=settings, sets=every)

    def folder(self, day: date) -> Path:
        """What the training of a day left."""
        return Path(self.config.paths.at("checkpoints")) / day.isoformat()

    def bundle(self, day: date) -> Bundle:
        """The model of a day."""
        return load_bundle(self.folder(day) / "bundle")

    def train(self, day: date) -> None:
        """Train and judge the model of a day, as far as that was not done, and leave it as promoted for the days after it.

        Raises:
            CalledProcessError: the training failed; what it said is on standard error.
        """
        command = [sys.executable, "-m", "jobs.launch", "--date", day.isoformat()]
        command += ["--config", str(self.settings)] if self.settings else []
        command += [part for one in self.sets for part in ("--set", one)]
        subprocess.run(command, check=True, env={k: v for k, v in os.environ.items() if k != "DIG_PROGRESS"})
        lineage = self.bundle(day).info["lineage"]
        judged = runs.find(self.config, day, "evaluate")
        if judged is None or judged["lineage"] != lineage:
            runs.save(self.config, day, "evaluate", evaluate(self.config, day))
        self.promote(day)

    def take(self, other: Chain, day: date) -> None:
        """Begin with another chain's model of a day."""
        shutil.copytree(other.folder(day), self.folder(day), dirs_exist_ok=True)
        for name in ("train", "evaluate"):
            runs.save(self.config, day, name, runs.read(other.config, day, name))
        self.promote(day)

    def promote(self, day: date) -> None:
        """Register the model of a day as promoted on it; one that is there already stays as it is."""
        lineage = self.bundle(day).info["lineage"]
        if registry.by_lineage(self.config, lineage):
            return
        store, name = registry.client(self.config), self.config.mlflow.model_name
        run = store.create_run(registry.experiment_id(self.config))
        store.log_artifacts(run.info.run_id, str(self.folder(day) / "bundle"), registry.BUNDLE)
        if not store.search_registered_models(f"name = '{name}'"):
            store.create_registered_model(name)
        tags = {registry.RUN_DATE: day.isoformat(), registry.PROMOTED_ON: day.isoformat(), registry.LINEAGE: lineage}
        store.create_model_version(name, run.info.artifact_uri, run.info.run_id, tags=tags)

    def published(self, day: date) -> KnownSids:
        """SIDs of a day's catalogue with its model."""
        bundle = self.bundle(day)
        items = ItemTable.from_arrow(Lake(self.config.paths.at("lake")).read_arrow("item_features", [day]), bundle.spec)
        bundle.model.set_items(items)
        return KnownSids.of(items.hash_N[1:], bundle.model.codes(bundle.model.encode_catalogue()).numpy()[1:])


def churn_of(chain: Chain, days: Sequence[date]) -> dict[str, list[dict[str, Any]]]:
    """Churn from each day to the next, with and without alignment; a list with an entry for each day after the first.

    Without alignment a cold training has the names that it happened to give, on both days. A warm one starts from the names of
    the day before, whichever these are.
    """
    out: dict[str, list[dict[str, Any]]] = {"aligned": [], "unaligned": []}
    before: dict[str, KnownSids] = {}
    for day in days:
        sids, alignment = chain.published(day), chain.bundle(day).info["alignment"]
        now = {"aligned": sids, "unaligned": unaligned(sids, alignment) if alignment else sids}
        for kind, entries in out.items():
            if before:
                old = before[kind if chain.name == "cold" else "aligned"]
                found = between(old, now[kind])
                if found is None:
                    raise ConfigError(f"chain {chain.name}: no item is in the catalogues of {day} and of the day before")
                entries.append({"date": day.isoformat(), **found.as_dict()})
        before = now
    return out


def quality_of(chain: Chain, days: Sequence[date]) -> list[dict[str, Any]]:
    """How good the models of the days are, the first one too."""
    entries = []
    for day in days:
        judged, trained = runs.read(chain.config, day, "evaluate"), runs.read(chain.config, day, "train")
        ranking, found = judged["ranking"], judged["retrieval"]
        entries.append(
            {
                "date": day.isoformat(),
                "auc": ranking["auc"],
                "recall_path_auc": ranking["recall_path"]["exact"]["auc"],
                "recall@10": found["all"]["dig"]["recall@10"],
                "path_recall@10": found["all"]["dig_path"]["recall@10"],
                "new_recall@10": found["new"]["dig"]["recall@10"],
                "collision_rate": judged["sid"]["collision_rate"],
                "codes_used": [level["used"] for level in judged["sid"]["levels"]],
                "train_seconds": trained["seconds"],
            }
        )
    return entries


def measure(config: Config, days: Sequence[date], settings: Path | None, sets: Sequence[str]) -> dict[str, Any]:
    """Train what is missing, then compare."""
    base = Chain.of("base", config, days[0], settings, sets)
    base.train(days[0])
    found: dict[str, Any] = {"churn": {}, "quality": {}}
    for name in CHAINS:
        chain = Chain.of(name, config, days[0], settings, sets)
        chain.take(base, days[0])
        for day in days[1:]:
            chain.train(day)
        found["quality"][name] = quality_of(chain, days)
        for kind, entries in churn_of(chain, days).items():
            found["churn"][f"{name}, {kind}"] = entries
    rate = {setting: float(np.mean([entry["rate"] for entry in entries])) for setting, entries in found["churn"].items()}
    return {
        "dataset": config.dataset.name,
        "sample_users": config.dataset.sample_users,
        "dates": [day.isoformat() for day in days],
        "acceptance": any(config.in_acceptance(day) for day in days),
        **found,
        "mean_rate": rate,
        "limit": LIMIT,
        "limits": {f"default_under_{LIMIT:g}": max(entry["rate"] for entry in found["churn"][DEFAULT]) < LIMIT},
    }


def plot(found: dict[str, Any]) -> Figure:
    """Share of items that move, by first changed level, and the quality of each chain."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    settings = list(found["churn"])
    names = ["{}, {}".format(LABELS[s.split(", ")[0]], s.split(", ")[1]) for s in settings]
    levels = len(found["churn"][settings[0]][0]["first"])
    start = np.zeros(len(settings))
    for level in range(levels):
        share = np.array([np.mean([entry["first"][level] for entry in found["churn"][s]]) for s in settings])
        colour = ("#0b6e99", "#5ba4c4", "#b4d6e4", "#d9dee3")[min(level, 3)]
        left.barh(range(len(settings)), 100 * share, left=100 * start, color=colour, label=f"first at level {level + 1}")
        start += share
    for at, whole in enumerate(start):
        left.text(100 * whole + 1, at, f"{100 * whole:.1f}%", va="center", fontsize=8)
    left.axvline(100 * found["limit"], color="#c2571a", linewidth=1, linestyle="--")
    left.set_yticks(range(len(settings)), names)
    left.set(title="Items with another SID than the day before, %", xlim=(0, 115), ylim=(len(settings) - 0.5, -0.5))
    left.legend(fontsize=7, frameon=False, loc="center right")  # beside the bars of kept codes, which are short
    for axes, key, title in ((middle, "auc", "Ranking AUC"), (right, "recall_path_auc", "AUC of the retrieval path")):
        for (name, entries), colour in zip(found["quality"].items(), ("#6a737d", "#0b6e99", "#c2571a"), strict=True):
            axes.plot([e["date"][5:] for e in entries], [e[key] for e in entries], marker="o", color=colour, label=LABELS[name])
        axes.set(title=title)
        axes.grid(axis="y", color="#d9dee3")
    middle.legend(fontsize=7, frameon=False)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def consecutive(config: Config, first: date, count: int, *, acceptance: bool) -> list[date]:
    """The days to train for.

    Raises:
        ConfigError: fewer than two days, or days of the acceptance period that were not asked for.
    """
    if count < 2:
        raise ConfigError(f"--days {count}: at least two days expected, churn is from one to the next")
    days = days_between(first, first + timedelta(days=count - 1))
    late = [day for day in days if config.in_acceptance(day)]
    if late and not acceptance:
        raise ConfigError(
            f"date {late[0]}: its evaluation days reach into the acceptance period, which starts on {config.dataset.acceptance_from}; "
            "take earlier dates, or add --acceptance for the final report"
        )
    return days


def main() -> None:
    """Parse the options, measure, write, and say what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--from", dest="first", type=date.fromisoformat, help="first day; default: the default date of the data set")
    parser.add_argument("--days", type=int, default=4, help="consecutive days, the first included")
    parser.add_argument("--acceptance", action="store_true", help="allow dates in the acceptance period")
    parser.add_argument("--config", type=Path, default=None)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    try:
        config = load(args.config, args.set)
        days = consecutive(config, args.first or config.dataset.default_date, args.days, acceptance=args.acceptance)
    except ConfigError as error:
        parser.error(str(error))
    torch.set_num_threads(config.train.ranks * config.train.threads_per_rank)
    with exclusive(Path(config.paths.home).resolve() / "benchmarks" / ".churn.lock", wait=False):
        found = measure(config, days, args.config, args.set)
    args.results.mkdir(parents=True, exist_ok=True)
    write_json(args.results / "churn.json", found)
    plot(found).savefig(args.results / "churn.png", dpi=150)
    for setting, rate in found["mean_rate"].items():
        each = "  ".join(f"{100 * entry['rate']:6.2f}%" for entry in found["churn"][setting])
        print(f"{setting:16} mean {100 * rate:6.2f}%   {each}")
    print(json.dumps({name: [round(entry["auc"], 4) for entry in entries] for name, entries in found["quality"].items()}))
    failed = [name for name, met in found["limits"].items() if not met]
    print("limits: " + ("all met" if not failed else f"NOT met: {', '.join(failed)}"))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
