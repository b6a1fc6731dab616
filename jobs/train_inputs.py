"""What a training reads, checked before any process of it starts; no torch here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dig_models.config import LAUNCH
from dig_models.features import SECONDS_PER_DAY
from dig_models.tokenizers.settings import DIG
from jobs import sids_inputs
from jobs.config import Config
from jobs.dates import Window, days_between
from jobs.entry import JobError
from jobs.lake import Inputs, Lake, Marker, code_digest, job_of

CODE = (
    *(
        f"dig_models.{m}"
        for m in ("affinity", "arrays", "batch", "bundle", "calibrate", "config", "cross_files", "crosses", "dig", "features", "items")
    ),
    *(f"dig_models.{m}" for m in ("losses", "nn", "quantize", "train", "u2t")),
    *("dig_models.evaluate.sid_quality", "jobs.dates", "jobs.neighbours", "jobs.sids_before", "jobs.sids_inputs"),
    *("jobs.train", "jobs.train_inputs"),
)

NEIGHBOUR_DAYS = 28
"""Days of events at least that the affinity's matrix is fitted on."""


class NoAffinity(JobError):
    """The data set cannot have the affinity as the settings are: too few days before the first example, or too many items."""


@dataclass(frozen=True, kw_only=True)
class TrainInputs:
    """Partitions of one training, all of them committed and made with the settings in force.

    Attributes:
        fit, validation: data folders of the examples.
        inputs: content digests by table and day.
        given: file of SIDs made beforehand, None if the model makes its own; ``sids`` its SHA-256 (hex), else empty.
        made: what made that file, where it was a tokenizer of this project.
    """

    config: Config
    day: date
    window: Window
    lake: Lake
    fit: list[str]
    validation: list[str]
    inputs: Inputs
    given: Path | None = None
    sids: str = ""
    made: sids_inputs.Made | None = None

    def lineage(self, *, ranks: int, ancestor: str, aligned_to: str = "") -> str:
        """SHA-256 (hex) over all that determines the trained model.

        Args:
            ranks: processes that train; they decide how examples form batches.
            ancestor: lineage of the model to start from, or an empty string.
            aligned_to: lineage of the model whose SIDs the codes are aligned with, or an empty string.
        """
        train = self.config.train.model_dump(mode="json", exclude={*LAUNCH, "given_sids"})
        facts: dict[str, Any] = {
            "date": self.day.isoformat(),
            "settings": [self.config.digest("model", "window"), train, self.config.dataset.rows_digest()],
            "spec": self.config.dataset.spec().digest,
            "inputs": self.inputs,
            "code": code_digest(*CODE),
            "ranks": ranks,
            "ancestor": ancestor,
            "aligned_to": aligned_to,
            "sids": self.sids,
        }
        if self.made:
            facts["tokenizer"] = self.made.lineage
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def first_second(self) -> int:
        """Start of the first day of examples, seconds of the local clock."""
        return (self.window.train_first - date(1970, 1, 1)).days * SECONDS_PER_DAY

    @property
    def catalogue_day(self) -> date:
        """Day whose items the bundle holds: the last day of training."""
        return self.window.train_last

    def items_shown(self) -> pa.Table:
        """Every item that an example of the window may show, as its newest ``item_features`` row.

        Training on the last day's catalogue alone would leave out the rows of items that have fallen out of it since, the ones
        that sold least, and so raise the label rate that the model takes for granted.
        """
        return self._items(_catalogue_days(self.window))

    def items_known(self) -> pa.Table:
        """Every item that ``items_shown`` has or that was or will be published up to the date of the run, as its newest row.

        The days since training ended are no part of the training. Their items get a SID here, so that all publications of the
        model, and the training of the next day, agree on it.
        """
        return self._items(_known_days(self.window, self.day))

    def _items(self, days: list[date]) -> pa.Table:
        table = self.lake.read_arrow("item_features", days)
        table = table.sort_by([("item_hash", "ascending"), ("ds", "descending")])
        hash_M = table.column("item_hash").to_numpy()
        newest_M = np.concatenate([[True], hash_M[1:] != hash_M[:-1]]) if len(hash_M) else np.zeros(0, bool)
        return self._as_of_the_start(table.filter(pa.array(newest_M)))

    def _as_of_the_start(self, table: pa.Table) -> pa.Table:
        """The same rows with the popularity that the encoder reads as of the end of the day before the first example.

        A newer row counts events that the examples before it are to predict. An item that was in no catalogue then has 0.
        """
        names = self.config.dataset.popularity_columns
        if not names:
            return table
        before = self.lake.read_arrow("item_features", _catalogue_days(self.window)[:1], columns=["item_hash", *names])
        at = pc.index_in(table.column("item_hash"), value_set=before.column("item_hash").combine_chunks())
        for name in names:
            was = pc.fill_null(pc.take(before.column(name), at).cast(pa.float64()), 0.0)
            table = table.set_column(table.column_names.index(name), name, was)
        return table


def train_inputs(config: Config, day: date) -> TrainInputs:
    """Look up and check everything that training for ``day`` reads.

    Raises:
        ConfigError: the date leaves no training window.
        MissingPartition: names the table and the days that were never built.
        JobError: a partition was made with other data-set settings, no day has a catalogue, no training day has a positive, the SIDs
            made beforehand are missing or not those of what is read.
        NoAffinity: too few days, or too many items, to fit its matrix.
    """
    found = lake_inputs(config, day)
    if config.tokenizer == DIG:
        given, made = _given_sids(config), None
    else:
        made = sids_inputs.require(config, day, sids_inputs.wanted(config, day, found.window, found.inputs))
        given = made.sids
    if given is None:
        return found
    with given.open("rb") as file:
        return replace(found, given=given, made=made, sids=hashlib.file_digest(file, "sha256").hexdigest())


def lake_inputs(config: Config, day: date) -> TrainInputs:
    """What training for ``day`` reads of the lake, without the SIDs made beforehand; raises as ``train_inputs``."""
    window, lake = config.run_window(day), Lake(config.paths.at("lake"))
    fit = days_between(window.train_first, window.fit_last)
    validation = days_between(window.validation_first, window.train_last)
    needed = {"examples": fit + validation, "item_features": _known_days(window, day), "cross_arrays": [day]}
    if config.model.affinity.enabled:
        _long_enough(config, window)
        needed["u2i_daily"] = neighbour_days(window)
    for table, days in needed.items():
        markers = lake.require(table, days)
        _same_settings(config, markers)
        if table == "item_features" and not any(marker.rows for marker in markers):
            rule = config.dataset.catalogue
            raise JobError(
                f"item_features of {days[0]} to {days[-1]} hold no item: none had {rule.min_events} events in {rule.window_days} days; "
                "set catalogue.min_events of the data set lower, then build these days again (python -m jobs.item_features)"
            )
    if config.model.affinity.enabled:
        _few_enough(config, lake, neighbour_catalogue(window))
    found = TrainInputs(
        config=config,
        day=day,
        window=window,
        lake=lake,
        fit=lake.paths("examples", fit),
        validation=lake.paths("examples", validation),
        inputs=lake.inputs(needed),
    )
    if not any(_has_positive(folder) for folder in found.fit):
        raise JobError(
            f"examples of {fit[0]} to {fit[-1]} hold no positive: there is nothing to learn from; "
            "check ingest of these days, or train for a date whose window has events"
        )
    return found


def neighbour_days(window: Window) -> list[date]:
    """Days whose events the affinity's matrix is fitted on: those that features of the first examples reach, none that has examples."""
    return days_between(window.events_first, window.train_first - timedelta(days=1))


def neighbour_catalogue(window: Window) -> date:
    """Day whose catalogue the affinity's matrix is about: the day before the first example."""
    return _catalogue_days(window)[0]


def _long_enough(config: Config, window: Window) -> None:
    found = (window.train_first - window.events_first).days
    if found < NEIGHBOUR_DAYS:
        raise NoAffinity(
            f"model.affinity: {max(found, 0)} days of events before the first example, {window.train_first}, at least {NEIGHBOUR_DAYS} "
            f"expected, for the matrix is fitted on them alone: lower window.train_days (now {config.window.train_days}), take a later "
            f"date, or set model.affinity.enabled=false (events begin on {window.events_first})"
        )


def _few_enough(config: Config, lake: Lake, day: date) -> None:
    most, found = config.model.affinity.max_items, lake.require("item_features", [day])[0].rows
    if found > most:
        raise NoAffinity(
            f"model.affinity: item_features of {day} hold {found} items, at most {most} expected, for the fit inverts items x items "
            f"({8 * found**2 / 2**30:.0f} GiB): set model.affinity.enabled=false, cap dataset.catalogue.max_items, or raise "
            "model.affinity.max_items if the machine can do it"
        )


def _given_sids(config: Config) -> Path | None:
    given = config.train.given_sids
    if config.model.assignment != "given":
        if given:
            raise JobError(f"train.given_sids {given}: used with model.assignment=given alone, found {config.model.assignment}")
        return None
    if not Path(given).is_file():
        raise JobError(
            f"model.assignment is given: train.given_sids must name a Parquet file with item_id, s_1 .., found {given or 'nothing'}"
        )
    return Path(given)


def _catalogue_days(window: Window) -> list[date]:
    """Examples of a day show the catalogue of the day before; the last day's is what the model will serve."""
    return days_between(window.train_first - timedelta(days=1), window.train_last)


def _known_days(window: Window, day: date) -> list[date]:
    return days_between(window.train_first - timedelta(days=1), day)


def _same_settings(config: Config, markers: list[Marker]) -> None:
    wanted = config.dataset.rows_digest()
    other = [m for m in markers if m.config != wanted]
    if other:
        raise JobError(
            f"table {other[0].table}: {len(other)} of {len(markers)} days, first {other[0].ds}, were made with other data-set settings "
            f"(digest {other[0].config[:12]}, now {wanted[:12]}); rebuild them with python -m {job_of(other[0].table)} "
            f"--from {other[0].ds} --to {other[-1].ds}, or restore the settings"
        )


def _has_positive(folder: str) -> bool:
    for file in sorted(Path(folder).glob("*.parquet")):
        try:
            with pq.ParquetFile(file) as parquet:
                for index in range(parquet.num_row_groups):
                    labels = pc.list_flatten(parquet.read_row_group(index, columns=["label"]).column("label"))
                    if pc.any(pc.greater(labels, 0)).as_py():
                        return True
        except (pa.ArrowInvalid, OSError) as error:
            raise JobError(f"{file}: cannot be read ({str(error).splitlines()[0]}); rebuild that day of examples") from error
    return False
