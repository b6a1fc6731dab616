"""Make the semantic IDs of a date beforehand, where ``tokenizer`` names another kind than ``dig``: fit, encode, keep.

``python -m jobs.sids --date D`` fits the tokenizer on the items that D's training shows, or takes over that of the version promoted
before, gives every item known its SID and leaves tokenizer and SIDs in ``<checkpoints>/<D>/tokenizer``, all or nothing. What is there
from the same data, settings and code is not made again. The daily run calls this ``tokenize``; a module of that name here would be
taken for Python's own where Spark starts a job by its file.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from dig_models.bundle import BundleError, read_sids
from dig_models.evaluate.sid_quality import measure
from dig_models.faults import reached
from dig_models.features import FeatureSpecMismatch
from dig_models.files import naming_full_disk, replace_text, sync_dir
from dig_models.quantize.known import KnownSids, write_sids
from dig_models.tokenizers.base import Tokenizer, TokenizerError
from dig_models.tokenizers.registry import MissingExtra, load_tokenizer
from dig_models.tokenizers.settings import DIG, WITHOUT_CONTENT
from jobs import registry, runs, sids_inputs
from jobs.dataset_config import digest_of
from jobs.entry import Held, Invocation, JobError, run
from jobs.files import exclusive
from jobs.progress import emit
from jobs.sids_before import WAY_OUT, Before, before
from jobs.sids_inputs import Made
from jobs.tokenizing import Encoded, encoded, fitted
from jobs.train_inputs import TrainInputs, lake_inputs

log = logging.getLogger("jobs.sids")
STAGE, STEPS = "tokenize", 3


def main(asked: Invocation) -> None:
    """Make the SIDs of the date, or say that they are there."""
    config, day = asked.config, asked.date
    if config.tokenizer == DIG:
        log.info("tokenizer is dig: the ranker makes its own SIDs, there is nothing to do")
        return
    torch.set_num_threads(config.train.threads_per_rank)
    inputs = lake_inputs(config, day)
    try:
        with exclusive(sids_inputs.lock(config, day), wait=False), registry.answering(config):
            made = _made(inputs)
    except Held as error:
        raise Held(f"SIDs of {day} are being made, or its training, which reads them to its end, is under way: {error}") from None
    log.info("%s: SIDs by %s", made.sids, made.record["kind"])


def _made(inputs: TrainInputs) -> Made:
    config, day = inputs.config, inputs.day
    emit(STAGE, 0, STEPS)
    last = before(config, day)
    want = sids_inputs.wanted(config, day, inputs.window, inputs.inputs)
    lineage = digest_of([want, last.lineage if last else None])
    there = sids_inputs.found(config, day)
    if there and there.lineage == lineage:
        log.info("%s: made already from the same data, settings and code (lineage %s)", there.folder, lineage[:12])
        _tidy(there.folder)
        return _told(inputs, there)
    since = time.perf_counter()
    tokenizer = _tokenizer(inputs, last)
    spent = {"fit": time.perf_counter() - since}
    emit(STAGE, 1, STEPS)
    since = time.perf_counter()
    done = encoded(inputs, tokenizer, conflicts=config.tokenizers.conflicts, before=_sids_before(last))
    spent["encode"] = time.perf_counter() - since
    emit(STAGE, 2, STEPS)
    facts = {
        "date": day.isoformat(),
        "kind": config.tokenizer,
        "content": None if config.tokenizer in WITHOUT_CONTENT else config.tokenizers.content,
        "lineage": lineage,
        "wanted": want,
        "fit": sids_inputs.fit_digest(config),
        "kept": last.kept if last else None,
    }
    return _told(inputs, _install(inputs, tokenizer, done, facts | _report(inputs, done, spent)))


def _told(inputs: TrainInputs, made: Made) -> Made:
    runs.save(inputs.config, inputs.day, "sids", {name: value for name, value in made.record.items() if name != "sha256"})
    emit(STAGE, STEPS, STEPS)
    return made


def _tokenizer(inputs: TrainInputs, last: Before | None) -> Tokenizer:
    """The one taken over, else one that is fitted now.

    Raises:
        JobError: it cannot be fitted, or the one to take over cannot be read.
    """
    config = inputs.config
    if last is None:
        of = config.tokenizers
        return fitted(
            inputs,
            config.tokenizer,
            content=of.content,
            conflicts=of.conflicts,
            seed=config.train.seed,
            settings=of.of(config.tokenizer),
        )
    try:
        tokenizer = load_tokenizer(last.made().folder, config.dataset.spec())
    except (TokenizerError, FeatureSpecMismatch, MissingExtra) as error:
        raise JobError(f"tokenizer of version {last.version}: {error}; {WAY_OUT}") from error
    conflicts = config.tokenizers.conflicts
    keeps = "items keep their SIDs while their fields stay"
    if conflicts in ("sinkhorn", "suffix"):  # both look at all items of the day
        keeps = f"items keep the codes that it gives them, but tokenizers.conflicts={conflicts} may give them another last one"
    log.info("tokenizer of version %s is kept: %s", last.version, keeps)
    return tokenizer


def _sids_before(last: Before | None) -> KnownSids | None:
    try:
        return read_sids(last.bundle) if last else None
    except BundleError as error:
        raise JobError(str(error)) from error


def _install(inputs: TrainInputs, tokenizer: Tokenizer, done: Encoded, facts: dict[str, Any]) -> Made:
    """Write a result beside what is there, and let it count by one atomic replace; then what counted before is removed."""
    home = sids_inputs.home(inputs.config, inputs.day)
    folder = home / str(facts["lineage"])[:16]
    shutil.rmtree(folder, ignore_errors=True)  # half written by one that was killed, or damaged since
    folder.mkdir(parents=True)
    with naming_full_disk(folder):
        tokenizer.save(folder)
        write_sids(folder / sids_inputs.SIDS, [str(item) for item in done.items.id_N[1:]], done.code_NL[1:])
        reached("sids.written")
        sids_inputs.seal(folder, facts)
        reached("sids.sealed")
        replace_text(home / sids_inputs.CURRENT, f"{folder.name}\n")
    reached("sids.current")
    _tidy(folder)
    reached("sids.old_removed")
    made = sids_inputs.found(inputs.config, inputs.day)
    if made is None:
        raise JobError(f"{folder}: what was just written cannot be read back; look at the disk")
    return made


def _tidy(folder: Path) -> None:
    """Leave no other result beside the one that counts, whole or not."""
    for other in folder.parent.iterdir():
        if other.is_dir() and other != folder:
            shutil.rmtree(other)
    sync_dir(folder.parent)


def _report(inputs: TrainInputs, done: Encoded, seconds: dict[str, float]) -> dict[str, Any]:
    codes = inputs.config.model.codes
    was, quality = measure(done.was_NL[1:], codes), measure(done.code_NL[1:], codes)
    return {
        "items": len(done.items) - 1,
        "shown": done.shown,
        "seconds": seconds,
        "collision_rate": quality.collision_rate,
        "collision_rate_before": was.collision_rate,
        "unique_rate": quality.unique_rate,
        "codes_used": [level.used for level in quality.levels],
        "codes": codes,
    }


if __name__ == "__main__":
    sys.exit(run("sids", main))
