"""Train DIG for a date: ``torchrun … -m jobs.train --date D``, or alone as one process.

Reads examples of the training window, the items they show and the cross arrays of ``D``; writes
``<checkpoints>/<D>/bundle`` and ``<runs>/<D>/train.json``. A training that was cut short goes on from its last checkpoint; one whose
bundle is there with the same lineage is done already.
"""

from __future__ import annotations

import json
import logging
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from dig_models.bundle import NEIGHBOURS, Bundle, BundleError, BundleMismatch, load_bundle, read_sids, save_bundle
from dig_models.cross_files import CrossArraysError
from dig_models.crosses import CrossStore
from dig_models.dig import Dig
from dig_models.faults import reached
from dig_models.features import FeatureSpecMismatch
from dig_models.files import sync_dir, sync_tree
from dig_models.items import ItemTable
from dig_models.quantize.known import KnownSids, SidsError
from dig_models.quantize.known import read_sids as read_given
from dig_models.tokenizers.settings import DIG
from dig_models.train.data import ExamplesError, pair_lookup, popular_chances
from dig_models.train.distributed import World, process_group
from dig_models.train.loop import Record, Setup, Told, TrainingDiverged, fit
from dig_models.train.stream import ExampleStream, row_groups
from dig_models.train.warm import align, settle, warm_start
from jobs import registry, runs
from jobs.config import Config
from jobs.entry import Invocation, JobError, run
from jobs.files import exclusive
from jobs.neighbours import neighbours
from jobs.progress import emit
from jobs.sids_before import require_current
from jobs.sids_inputs import PLACE as TOKENIZER
from jobs.sids_inputs import lock
from jobs.tracking import Tracker
from jobs.train_inputs import TrainInputs, train_inputs

log = logging.getLogger(__name__)
STAGE = "train"
REPORT = "train.json"
STEPS, WRITING, OLD = "steps", ".bundle", ".bundle-old"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A promoted version, whose SIDs the new model is to keep as far as renaming its codes can."""

    version: str
    lineage: str
    sids: KnownSids


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where the weights come from, agreed by all ranks.

    Attributes:
        lineage: digest of all that determines the model.
        ancestor: version to start from, ``None`` for a cold start.
        warm: its codebooks were taken over.
        reference: what to align with; on the first rank only, ``None`` if there is nothing.
    """

    lineage: str
    ancestor: str | None
    warm: bool
    reference: Reference | None


def main(asked: Invocation) -> None:
    """Train for the date, or say that it is done."""
    config = asked.config.train
    try:
        with process_group(config.backend, config.threads_per_rank) as world, _alone(asked.config, asked.date, world):
            if world.size != config.ranks * config.hosts:
                log.warning(
                    "%d process(es) train, the settings say %d: start with python -m jobs.launch", world.size, config.ranks * config.hosts
                )
            world.barrier()  # what is made under the same lock, the SIDs, stays as it is from here on, for all ranks
            with registry.answering(asked.config):
                _train(train_inputs(asked.config, asked.date), world)
    except (ExamplesError, CrossArraysError, BundleError, SidsError, TrainingDiverged) as error:
        raise JobError(str(error)) from error


def _home(config: Config, day: date) -> Path:
    return Path(config.paths.at("checkpoints")) / day.isoformat()


@contextmanager
def _alone(config: Config, day: date, world: World) -> Iterator[None]:
    """One training of a date at a time; the first rank holds the lock and clears up behind one that was killed."""
    home = _home(config, day)
    with exclusive(lock(config, day), wait=False) if world.leads else nullcontext():
        if world.leads:
            _settle(home)
        yield


def _train(inputs: TrainInputs, world: World) -> None:
    config, day = inputs.config, inputs.day
    home = _home(config, day)
    spec = config.dataset.spec()
    items = ItemTable.from_arrow(inputs.items_shown(), spec)
    if len(items) < 2:
        raise JobError(f"item_features of {inputs.catalogue_day} hold no item: nothing to recommend; lower dataset.catalogue.min_events")
    torch.manual_seed(config.train.seed)
    model = Dig(config.model, spec, seed=config.train.seed)
    start = _start(inputs, model, items, world)
    if _is_done(home, start.lineage, world):
        if world.leads:
            log.info("%s: trained already from the same data, settings and code (lineage %s)", home / "bundle", start.lineage[:12])
            runs.supersede(config, day, start.lineage)
            runs.save(config, day, STAGE, json.loads((home / REPORT).read_text()))
            shutil.rmtree(home / STEPS, ignore_errors=True)
            _forget_sids(config, day)
        return
    if config.model.affinity.enabled:
        model.neighbours = world.handed(neighbours(inputs, home / NEIGHBOURS) if world.leads else None)
    store = CrossStore.open(inputs.lake.folder("cross_arrays", day), spec, items)
    common: dict[str, Any] = {
        "spec": spec,
        "items": items,
        "lookup": pair_lookup(store, spec),
        "keep_rate": config.dataset.sampling.exposed_negative_rate,
        "random_negatives": config.train.random_negatives,
        "history_negatives": config.train.history_negatives,
        "popular_negatives": config.train.popular_negatives,
        "chance_N": popular_chances(store, spec, inputs.first_second),
        "open_positives": config.model.open_positives,
        "affinity": model.affinity,
        "seed": config.train.seed,
        "rank": world.rank,
        "world": world.size,
        "requests_per_batch": config.train.requests_per_batch,
        "shuffle_row_groups": config.train.shuffle_row_groups,
    }
    setup = Setup(
        model=model,
        config=config.train,
        train=ExampleStream(groups=row_groups(inputs.fit), **common),
        validation=ExampleStream(groups=row_groups(inputs.validation), **common),
        checkpoints=home / STEPS,
        lineage=start.lineage,
        warm=start.warm,
    )
    tracker = Tracker.open(config, day, start.lineage) if world.leads else None
    record = fit(setup, world, _Teller(tracker))
    peak = _peak_rss(world)
    if tracker:
        alignment = _settle_sids(inputs, start, model)
        report = _report(inputs, start, record, world, peak, tracker.run_id) | {"alignment": alignment}
        reached("training.fitted")
        tracker.close(report)  # first: what has a bundle is done, so nothing may be left to tell
        reached("training.tracked")
        _write(home, model, report, inputs)
        runs.supersede(config, day, start.lineage)
        reached("training.superseded")
        runs.save(config, day, STAGE, report)
        _forget_sids(config, day)
    world.barrier()


def _forget_sids(config: Config, day: date) -> None:
    """Where the ranker makes its own SIDs now, remove those that a tokenizer made for the date before: no report may tell of them."""
    if config.tokenizer == DIG:
        (runs.run_dir(config, day) / "sids.json").unlink(missing_ok=True)
        shutil.rmtree(_home(config, day) / TOKENIZER, ignore_errors=True)


def _start(inputs: TrainInputs, model: Dig, items: ItemTable, world: World) -> Start:
    """Decide on rank 0 what to start from; every rank then has its weights."""
    said, reference = None, None
    given = inputs.given is not None
    if inputs.given is not None:
        model.reserved = _given(inputs, inputs.given, items)
    model.set_items(items)
    if world.leads:
        if inputs.made:
            require_current(inputs.config, inputs.day, inputs.made)
        config = inputs.config.train
        # SIDs made beforehand stay what they are: neither those of an older model nor its names for them.
        before = registry.ancestor(inputs.config, inputs.day) if (config.warm_start or config.align_codes) and not given else None
        place = registry.fetch(inputs.config, before) if before else None
        if before and place and config.align_codes:
            reference = _reference(before, place, model.config.levels)
        ancestor, warm = before if config.warm_start else None, False
        if ancestor and place:
            try:
                everyone = ItemTable.from_arrow(inputs.items_known(), model.spec)
                warm = warm_start(model, _own_codes(load_bundle(place, model.spec)), items, everyone)
                log.info("starting from version %s (%s), codebooks %s", ancestor.version, ancestor.date, "kept" if warm else "built anew")
            except (FeatureSpecMismatch, BundleMismatch) as error:
                log.warning("cold start: %s", error)
                ancestor = None
        lineage = inputs.lineage(
            ranks=world.size, ancestor=ancestor.lineage if ancestor else "", aligned_to=reference.lineage if reference else ""
        )
        said = json.dumps([lineage, ancestor.version if ancestor else None, warm])
    lineage, version, warm = json.loads(world.agreed(said) or "")
    world.spread(model)
    return Start(lineage=lineage, ancestor=version, warm=warm, reference=reference)


def _own_codes(bundle: Bundle) -> Bundle:
    """A bundle to start from.

    Raises:
        BundleMismatch: its SIDs are not the ranker's own, and the new one is to make its own.
    """
    if made := bundle.info.get("tokenizer"):
        raise BundleMismatch(f"the version promoted before has SIDs by {made['kind']}, and the tokenizer is dig now: codes are chosen anew")
    return bundle


def _given(inputs: TrainInputs, file: Path, items: ItemTable) -> KnownSids:
    """SIDs made beforehand.

    Raises:
        SidsError: the file cannot be used, or has no item of the catalogue.
    """
    sids = read_given(file, levels=inputs.config.model.levels, codes=inputs.config.model.codes)
    known = int((sids.find(items.hash_N[1:])[:, 0] >= 0).sum())
    if not known:
        raise SidsError(f"{file}: none of its {len(sids)} items is among the {len(items) - 1} that training shows")
    log.info("SIDs made beforehand for %d of %d items; the others get nearest codes", known, len(items) - 1)
    return sids


def _reference(version: registry.ModelRef, place: Path, levels: int) -> Reference | None:
    """The SIDs of a version; ``None`` if they have another length than the model's."""
    sids = read_sids(place)
    if sids.levels != levels:
        log.warning("SIDs are not aligned: version %s has %d levels, model.levels is %d", version.version, sids.levels, levels)
        return None
    return Reference(version=version.version, lineage=version.lineage, sids=sids)


def _settle_sids(inputs: TrainInputs, start: Start, model: Dig) -> dict[str, Any] | None:
    """The SIDs of all items known on the date, for good, under the names that keep most of them; returns how that went."""
    model.cpu()
    settle(model, ItemTable.from_arrow(inputs.items_known(), model.spec))
    if start.reference is None or not model.settled:
        return None
    found = align(model, start.reference.sids)
    if found.churn and found.unaligned:
        log.info(
            "%.2f%% of %d items that version %s knows have another SID (%.2f%% before codes were renamed)",
            100 * found.churn.rate, found.churn.items, start.reference.version, 100 * found.unaligned.rate,
        )  # fmt: skip
    return {"version": start.reference.version, "lineage": start.reference.lineage, **found.as_dict()}


def _is_done(home: Path, lineage: str, world: World) -> bool:
    done = None
    if world.leads and (home / "bundle").is_dir() and (home / REPORT).is_file():
        try:
            done = "done" if load_bundle(home / "bundle").info["lineage"] == lineage else None
        except BundleError as error:
            log.warning("%s; training again", error)
    return world.agreed(done) is not None


class _Teller:
    """Passes on how far training has come: progress events, MLflow, and a line on a terminal."""

    def __init__(self, tracker: Tracker | None) -> None:
        self.tracker = tracker

    def __call__(self, told: Told) -> None:
        names = {"loss": "total", "auc": "rank_exposed_auc", "auc_recall": "recall_exposed_auc"}
        shown = {name: round(told.fresh[key], 4) for name, key in names.items() if key in told.fresh}
        emit(STAGE, told.step, told.steps, examples_per_s=round(told.examples_per_s, 1), eta_s=round(told.eta_s, 1), **shown)
        if self.tracker:
            self.tracker.log(told.fresh)
        if sys.stderr.isatty():
            figures = "  ".join(f"{k} {v:.4f}" for k, v in shown.items())
            line = f"epoch {told.epoch}/{told.epochs}  step {told.step}/{told.steps}  {told.examples_per_s:,.0f} examples/s"
            sys.stderr.write(f"\r\x1b[K{line}  {told.eta_s:.0f} s left  {figures}" + ("\n" if told.step == told.steps else ""))
            sys.stderr.flush()


def _peak_rss(world: World) -> int:
    """Highest resident memory of each rank, summed, in bytes."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return round(float(world.total(torch.tensor([float(own)], dtype=torch.float64))))


def _report(inputs: TrainInputs, start: Start, record: Record, world: World, peak: int, run_id: str) -> dict[str, Any]:
    window = inputs.window
    seconds = record.step_seconds + record.other_seconds
    return {
        "date": inputs.day.isoformat(),
        "lineage": start.lineage,
        "ancestor": start.ancestor,
        "warm_start": start.warm,
        "window": {"first": window.train_first.isoformat(), "fit_last": window.fit_last.isoformat(), "last": window.train_last.isoformat()},
        "inputs": inputs.inputs,
        "spec": inputs.config.dataset.spec().digest,
        "ranks": world.size,
        "steps": record.step,
        "requests": record.requests,
        "examples": record.rows,
        "examples_per_s": record.rows / record.step_seconds if record.step_seconds else 0.0,
        "seconds": seconds,
        "step_seconds": record.step_seconds,
        "wait_share": record.wait_share,
        "peak_rss_bytes": peak,
        "curves": {"steps": record.curve, "epochs": record.epochs},
        "codebooks": record.codebooks,
        "calibration": record.calibration,
        "validation": record.epochs[-1],
        "mlflow_run_id": run_id,
        **({"tokenizer": inputs.made.told} if inputs.made else {}),
    }


def _write(home: Path, model: Dig, report: dict[str, Any], inputs: TrainInputs) -> None:
    """The bundle on the catalogue of the last day, whole or not at all; then the checkpoints have served. See ``_settle``."""
    config, bundle = inputs.config, home / "bundle"
    info = {k: report[k] for k in ("date", "lineage", "ancestor", "window", "inputs", "mlflow_run_id")}
    info |= {"dataset": config.dataset.name, "keep_rate": config.dataset.sampling.exposed_negative_rate, "seed": config.train.seed}
    info |= {kind: getattr(config.train, kind) for kind in ("random_negatives", "history_negatives", "popular_negatives")}
    info |= {"catalogue": inputs.catalogue_day.isoformat()}
    info |= {"tokenizer": inputs.made.told} if inputs.made else {}
    info |= {"alignment": {k: report["alignment"][k] for k in ("version", "lineage", "labels")} if report["alignment"] else None}
    writing, old = home / WRITING, home / OLD
    items = ItemTable.from_arrow(inputs.lake.read_arrow("item_features", [inputs.catalogue_day]), model.spec)
    model.set_items(items)
    save_bundle(writing, model, items, info)
    if inputs.made:  # the next date may take it over
        shutil.copytree(inputs.made.folder, writing / TOKENIZER)
        sync_tree(writing / TOKENIZER)
    reached("training.bundle_written")
    runs.write_json(home / REPORT, report)
    reached("training.report_written")
    if bundle.exists():
        bundle.rename(old)
        reached("training.old_moved_aside")
    writing.rename(bundle)
    reached("training.bundle_renamed")
    sync_dir(home)
    shutil.rmtree(old, ignore_errors=True)
    reached("training.old_removed")
    shutil.rmtree(home / STEPS, ignore_errors=True)
    (home / NEIGHBOURS).unlink(missing_ok=True)
    reached("training.checkpoints_removed")


def _settle(home: Path) -> None:
    """Finish what a training that was killed had begun: where the old bundle was put aside, the new one was complete."""
    writing, bundle, old = home / WRITING, home / "bundle", home / OLD
    if old.exists() and not bundle.exists():
        writing.rename(bundle)
        sync_dir(home)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(writing, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(run(STAGE, main))
