"""What the comparisons of models share: trainings in homes of their own, the date to judge on, and figures from one set of draws.

Shape suffixes: ``Q`` requests, ``K`` ranks, ``S`` bootstrap replicates.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dig_models.bundle import Bundle, BundleError, load_bundle
from dig_models.crosses import CrossStore
from dig_models.evaluate import bootstrap, retrieval
from dig_models.evaluate.lists import VARIANTS, Variant
from dig_models.retrieve.rerank import Retriever
from dig_models.train.data import RequestTable, request_columns
from jobs.config import Config, ConfigError, load
from jobs.dates import days_between
from jobs.entry import JobError
from jobs.evaluate import Draws, chosen_requests, relevant_items
from jobs.lake import Lake

RESULTS = Path(__file__).parent / "results"
SEEDS = (2017, 7, 18)
"""Of trainings whose mean over seeds is reported."""
MAX_AUC_LOSS = 0.001
"""How far below Base the ranking AUC may be: the one limit for it."""
USUAL = "complete_journey"
"""Data set whose results have the plain names."""
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


Part = Literal["evaluation", "validation"]
"""Days that models are judged on."""


def result_name(config: Config, name: str, part: Part = "evaluation") -> str:
    """Name of a result file without its ending: the plain one, ``<name>-<data set>`` for another than the usual data set.

    What was judged on validation days ends in ``-validation``. So no other run takes the place of a result that is written about.
    """
    of_data = name if config.dataset.name == USUAL else f"{name}-{config.dataset.name}"
    return of_data if part == "evaluation" else f"{of_data}-{part}"


def judged_days(config: Config, day: date, part: Part) -> list[date]:
    """Days that models of a date are judged on: the evaluation days, or the validation days at the end of the training window.

    Settings are tuned on the latter, without a look at the former. The DIG models do not learn from them: no weight and no SID moves by
    their examples; the last step shifts biases to their base rates, one for all rows of a source, which changes no order. The catalogue
    is that of the end of these days, and so has the few items that came into it during them.
    """
    window = config.run_window(day)
    first, last = (window.eval_first, window.eval_last) if part == "evaluation" else (window.validation_first, window.train_last)
    return days_between(first, last)


def add_options(parser: argparse.ArgumentParser, *, of: str = "") -> None:
    """Options that ``asked`` reads, and ``--results``; ``of`` says of what the date must be."""
    parser.add_argument("--date", type=date.fromisoformat, help=f"{of}default: the default date of the data set")
    parser.add_argument("--acceptance", action="store_true", help="allow a date in the acceptance period")
    parser.add_argument("--config", type=Path, default=None)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--results", type=Path, default=RESULTS)


def add_validation(parser: argparse.ArgumentParser) -> None:
    """Option ``--validation``, for ``part_of``."""
    parser.add_argument(
        "--validation", action="store_true", help="judge on the validation days, to choose settings by; results are named so"
    )


def part_of(args: argparse.Namespace) -> Part:
    """The days that the options ask to judge on."""
    return "validation" if args.validation else "evaluation"


def facts(config: Config, day: date, part: Part, sets: Sequence[str] | None = None) -> dict[str, Any]:
    """What a result file says of its date and days, and of what made it.

    Args:
        config: settings in force.
        day: the run date.
        part: the days judged on.
        sets: overrides that the settings were read with (``deciding`` ones are said); None if the caller says them itself.
    """
    days, reserved = judged_days(config, day, part), config.dataset.acceptance_from
    return {
        "date": day.isoformat(),
        "dataset": config.dataset.name,
        "acceptance": reserved is not None and days[-1] >= reserved,
        "judged_on": {"part": part, "days": [days[0].isoformat(), days[-1].isoformat()]},
        "draws": config.evaluate.bootstrap,
        **({} if sets is None else {"settings": deciding(sets)}),
    }


def plainly(main: Callable[[], None]) -> Callable[[], None]:
    """A program that ends with one message and status 2 where something it reads is not there, not with a traceback."""

    @wraps(main)
    def run() -> None:
        try:
            main()
        except (BundleError, JobError) as error:
            sys.exit(_told(f"{error}\n`make retrain` for the date makes lake and model"))
        except subprocess.CalledProcessError as error:
            sys.exit(_told(f"a job that this needs ended with status {error.returncode}; what it said is above"))

    return run


def _told(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


def deciding(sets: Sequence[str]) -> list[str]:
    """Overrides without those of folders, which decide no figure and are another machine's."""
    return [one for one in sets if not one.startswith("paths.")]


def judged_date(config: Config, asked: date | None, *, acceptance: bool) -> date:
    """The date to compare on: the one asked for, else the data set's default.

    Raises:
        ConfigError: it is judged on days of the acceptance period, and that was not asked for.
    """
    day = asked or config.dataset.default_date
    if config.in_acceptance(day) and not acceptance:
        raise ConfigError(
            f"date {day}: its evaluation days reach into the acceptance period, which starts on {config.dataset.acceptance_from} and is "
            "reported, never tuned on; take an earlier date, or add --acceptance for the final report"
        )
    return day


def asked(parser: argparse.ArgumentParser, args: argparse.Namespace) -> tuple[Config, date]:
    """Settings and date that the options ask for; a mistake in them ends the program with one message and status 2."""
    try:
        config = load(args.config, args.set)
        return config, judged_date(config, args.date, acceptance=args.acceptance)
    except ConfigError as error:
        parser.error(str(error))


def ablation_home(config: Config, day: date, *, quick: bool = False) -> Path:
    """Folder of what the ablation of a date keeps; other benchmarks take its trainings from there, or leave theirs for it."""
    return Path(config.paths.home).resolve() / "benchmarks" / ("ablation-quick" if quick else "ablation") / day.isoformat()


def model_home(ablation: Path, name: str, seed: int) -> Path:
    """``paths.home`` of one training in such a folder."""
    return ablation / "models" / f"{name}-{seed}"


def changes_of(config: Config, folder: Path, home: Path, seed: int, changes: Mapping[str, object]) -> list[str]:
    """Settings of a training for a benchmark, as ``KEY=VALUE``: in a home of its own on the common lake, started from no older model.

    The model learns its own SIDs whatever ``tokenizer`` is in force (those made beforehand are handed to it as a file), and its MLflow
    runs stay in the benchmark's folder, away from those of the daily runs. All benchmarks that share trainings take the settings from
    here: with others each would train over the model of the one before.

    Args:
        config: settings in force.
        folder: of the benchmark.
        home: ``paths.home`` of the training.
        seed: its ``train.seed``.
        changes: what else it changes.
    """
    own = {"paths.home": home, "paths.lake": config.paths.at("lake"), "train.seed": seed, "train.warm_start": "false"}
    beside = {"tokenizer": "dig", "mlflow.tracking_uri": f"sqlite:///{folder / 'mlflow'}/mlflow.db"}
    return [f"{key}={value}" for key, value in {**own, **beside, **changes}.items()]


KINDS: Mapping[str, Mapping[str, object]] = {"dig": {}, "base": {"model.loss.recall": 0}}
"""What DIG, and the same ranker without it, change of the settings in force; the ablation's rows of these names are the same."""


def dig_or_base(config: Config, day: date, kind: str, seed: int, settings: Path | None, sets: Sequence[str]) -> Bundle:
    """Bundle of DIG or Base (``kind``): the training of the ablation's row of that name and seed, done if it is not there.

    Raises:
        CalledProcessError: the training failed.
    """
    folder = ablation_home(config, day)
    home = model_home(folder, kind, seed)
    return trained(day, home, settings, [*sets, *changes_of(config, folder, home, seed, KINDS[kind])])


def trained(day: date, home: Path, settings: Path | None, sets: Sequence[str], log: Path | None = None) -> Bundle:
    """Bundle of a training under torchrun (done at once if it is there with the same lineage).

    Args:
        day: its date.
        home: ``paths.home`` as in ``sets``.
        settings: settings file to hand on.
        sets: all overrides.
        log: file for what the training says; None leaves it on the terminal.

    Raises:
        CalledProcessError: the training failed.
    """
    command = _job("launch", settings, sets, "--date", day.isoformat())
    if log is None:
        subprocess.run(command, check=True, env=_environment())
    else:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as out:
            subprocess.run(command, check=True, env=_environment(), stdout=out, stderr=subprocess.STDOUT)
    return load_bundle(home / "checkpoints" / day.isoformat() / "bundle")


def build_features(config: Config, day: date, settings: Path | None, sets: Sequence[str]) -> None:
    """Build the days that a run for ``day`` reads, as far as they are not up to date; no Spark session is started if all are.

    Raises:
        CalledProcessError: a feature job failed; what it said is on standard error.
    """
    first = config.run_window(day).train_first
    subprocess.run(_job("backfill", settings, sets, "--from", first.isoformat(), "--to", day.isoformat()), check=True, env=_environment())


def _job(name: str, settings: Path | None, sets: Sequence[str], *options: str) -> list[str]:
    given = ["--config", str(settings)] if settings else []
    return [sys.executable, "-m", f"jobs.{name}", *options, *given, *(part for one in sets for part in ("--set", one))]


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "DIG_PROGRESS"}


@dataclass(frozen=True)
class Judged:
    """The days of a date that models are judged on, as the daily evaluation has them, for lists and scores that others bring.

    Attributes:
        part: which days these are.
        requests: every request of the days; ``index_Q`` are those that lists are judged on.
        bought: item rows that the user of each of them bought before.
        draws: over the users of all requests, so differences of samples are paired by user.
    """

    config: Config
    day: date
    part: Part
    bundle: Bundle
    store: CrossStore
    requests: RequestTable
    index_Q: Ints
    bought: list[Ints]
    draws: Draws

    @classmethod
    def open(cls, config: Config, day: date, most: int, bundle: Bundle | None = None, part: Part = "evaluation") -> Judged:
        """Read what the evaluation of ``day`` reads, or the same of its validation days.

        Args:
            config: its lake and checkpoints hold a finished training for the day.
            day: the run date.
            most: requests to judge lists on.
            bundle: the model whose catalogue counts; that of the day by default.
            part: the days.

        Raises:
            MissingPartition: a day is not in the lake.
            JobError: the days hold no request.
        """
        days, lake = judged_days(config, day, part), Lake(config.paths.at("lake"))
        if bundle is None:
            bundle = load_bundle(Path(config.paths.at("checkpoints")) / day.isoformat() / "bundle", config.dataset.spec())
        spec = bundle.spec
        columns = [*request_columns(spec), "request_id"]
        table = lake.read_arrow("examples", days, columns=columns)
        requests = RequestTable.from_arrow(table, spec, bundle.items)
        if not len(requests):
            raise JobError(f"examples of {days[0]} to {days[-1]}, the {part} days of {day}, hold no request: nothing to judge on")
        store = CrossStore.open(lake.folder("cross_arrays", day), spec, bundle.items)
        index_Q = chosen_requests(requests, table.column("request_id").to_pylist(), most)
        bought = [store.bought(int(requests.user_B[b]), int(requests.ts_B[b])) for b in index_Q]
        return cls(config, day, part, bundle, store, requests, index_Q, bought, Draws.over(config, requests.user_B))

    @cached_property
    def retriever(self) -> Retriever:
        """The model of the run on its catalogue."""
        bundle = self.bundle
        return Retriever.of(bundle.model, bundle.spec, bundle.items, self.store, codes_NL=bundle.codes_NL)

    @cached_property
    def user_Q(self) -> Ints:
        """Index of each judged request's user into the draws."""
        return self.draws.of(self.requests.user_B[self.index_Q])

    @cached_property
    def relevant(self) -> dict[Variant, list[Ints]]:
        """Relevant item rows of each judged request, by variant."""
        return {v: relevant_items(self.requests, self.index_Q, self.bought if v == "new" else None) for v in VARIANTS}

    def excluded(self, variant: Variant) -> list[Ints]:
        """Item rows that no list of a variant may hold."""
        return self.bought if variant == "new" else [b[:0] for b in self.bought]

    def values(self, variant: Variant, list_QK: Ints, k: int = 10, relevant: Sequence[Ints] | None = None) -> dict[str, Floats]:
        """``recall@k`` and ``ndcg@k`` of each request, NaN where nothing is relevant; lists are padded with -1.

        Args:
            variant: which items count as relevant.
            list_QK: item rows.
            k: ranks.
            relevant: item rows that count in the place of the variant's, by request.
        """
        relevant = self.relevant[variant] if relevant is None else relevant
        size_Q = np.array([len(r) for r in relevant], dtype=np.int64)
        flat, offset = np.concatenate([np.zeros(0, np.int64), *relevant]), np.concatenate([[0], np.cumsum(size_Q)])
        hit = retrieval.hits(list_QK, flat, offset)
        return {f"recall@{k}": retrieval.recall_at(hit, size_Q, k), f"ndcg@{k}": retrieval.ndcg_at(hit, size_Q, k)}

    def mean(self, value_Q: Floats) -> float:
        """Mean over the requests that have a value; NaN if none has."""
        return float(np.nanmean(value_Q)) if np.isfinite(value_Q).any() else float("nan")

    def samples(self, value_Q: Floats) -> Floats:
        """Mean over requests in each bootstrap replicate, ``(S,)``."""
        return bootstrap.mean_samples(value_Q, self.user_Q, self.draws.draw_SU)

    def figure(self, value_Q: Floats) -> dict[str, Any]:
        """Mean over requests with its interval."""
        return {"mean": self.mean(value_Q), "ci": self.draws.interval(self.samples(value_Q))}
