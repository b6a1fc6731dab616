"""Fault points: the places between two steps of a protocol where a crash must do no harm, each with a name.

A protocol calls ``reached(name)`` between its steps. Nothing happens unless ``$DIG_FAULT`` names the point: ``<name>=kill`` ends the
process at once as ``kill -9`` does, ``<name>=full`` raises the error of a full disk, ``<name>=pause:<folder>`` leaves the file
``<folder>/<name>`` and waits until it is gone. ``<name>@3=kill`` acts the third time. The crash tests visit every point.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import Counter
from pathlib import Path

VARIABLE = "DIG_FAULT"
POLL_SECONDS = 0.05

#: Every fault point: its name and what has been done when it is reached.
POINTS: dict[str, str] = {
    # A file is replaced by one with other text: a marker, a manifest, CURRENT, the record of a job.
    "file.written": "the new text is in a hidden file beside the old one, flushed",
    "file.replaced": "the new file has the name; the folder is not flushed",
    "file.appended": "a line is at the end of a log, flushed",
    # A day of a table is staged and committed.
    "partition.staging_cleared": "the run holds its staging folder, which is empty",
    "partition.rows_written": "Spark has written all days into the staging folder",
    "partition.gate_passed": "the table's data gate has seen the staged rows and let them pass",
    "partition.staged": "the rows of a day are staged and digested, its marker is composed",
    "partition.same_found": "the day holds just these rows already; the staged ones are still there",
    "partition.damaged_moved_aside": "a data folder that lay under the name of the new one is out of the way",
    "partition.synced": "the staged files are flushed",
    "partition.moved": "the data folder is in its day; no marker names it",
    "partition.named": "the names of the data folder and of the folders above it are flushed",
    "partition.marker_replaced": "the marker names the new data folder; the old one is still there",
    "partition.old_removed": "only what the marker names is left of the day",
    "partition.day_committed": "a day is committed, the next day of the range is not",
    "partition.staging_removed": "what was staged is gone, committed or not; the lock is still held",
    # All raw tables of a range are staged before the first is committed.
    "ingest.gates_passed": "every table is staged and let pass, none is committed",
    "ingest.table_committed": "all days of a table are committed, the next table is not",
    # A checkpoint in training.
    "checkpoint.cleared": "the folder to write the checkpoint into is empty",
    "checkpoint.tensors_written": "every rank has written its tensors",
    "checkpoint.meta_written": "lineage, step and figures lie beside the tensors",
    "checkpoint.synced": "everything in the new checkpoint is flushed; it has no name yet",
    "checkpoint.moved_aside": "a checkpoint of the same step is out of the way",
    "checkpoint.renamed": "the new checkpoint has its name",
    "checkpoint.old_renamed": "a checkpoint that is one too many has lost its name; its files are still there",
    "checkpoint.old_removed": "the newest two checkpoints are left",
    # SIDs that a tokenizer makes before a training.
    "sids.written": "tokenizer and SIDs are written beside what is there; nothing says that they are whole",
    "sids.sealed": "the new folder is whole and flushed; CURRENT names the old one",
    "sids.current": "CURRENT names the new folder; the old one is still there",
    "sids.old_removed": "only the folder that CURRENT names is left; the run's record is the old one",
    # A bundle, and the end of training.
    "bundle.weights_written": "the weights are written, catalogue and settings are not",
    "bundle.items_written": "weights and catalogue are written, the settings, which make them a bundle, are not",
    "training.fitted": "the last step is done, every checkpoint is still there",
    "training.tracked": "MLflow has all figures, and the run is finished there",
    "training.bundle_written": "the new bundle is whole, beside the old one",
    "training.report_written": "the new train.json stands beside the bundle that was there before",
    "training.old_moved_aside": "the old bundle is out of the way; none has the name",
    "training.bundle_renamed": "the new bundle has the name",
    "training.old_removed": "the old bundle is gone",
    "training.checkpoints_removed": "the checkpoints are gone",
    "training.superseded": "what later jobs said of another model of that date is gone; this one's train.json is not in the runs yet",
    # A model is registered.
    "register.run_found": "the MLflow run of the lineage is there",
    "register.artifacts_logged": "model card, figures and plots are in the run",
    "register.metrics_logged": "the headline figures are in the run",
    "register.model_logged": "the bundle is logged; no version names it",
    "register.model_named": "the registered model exists",
    "register.version_created": "the version exists with its tags; the alias challenger is not on it",
    "register.challenger_set": "the alias challenger is on the version; register.json is not written",
    "fetch.downloaded": "the bundle of a version is downloaded under a hidden name, flushed",
    "fetch.renamed": "the downloaded bundle has its name",
    # An index generation is built, checked and made current.
    "index.cleared": "the staging folder is empty",
    "index.model_written": "the bundle of the generation is staged",
    "index.maps_written": "both SID maps are staged",
    "index.arrays_written": "trie and node embeddings are staged",
    "index.state_written": "user state and cross arrays are staged",
    "index.delta_written": "the delta against the current generation is staged",
    "index.manifest_written": "the manifest is staged",
    "index.synced": "all staged files are flushed",
    "index.damaged_moved_aside": "a damaged generation of the same id is out of the way",
    "index.renamed": "the generation has its name; the names are not flushed",
    "index.installed": "the generation is durable; nobody has checked it, and CURRENT names the one before",
    "index.verified": "the generation passed its check; CURRENT names the one before",
    "index.switched": "CURRENT names the new generation",
    "index.retired": "a generation that is one too many has lost its name; its files are still there",
    "index.retention_done": "only as many generations as index.keep says are left",
    # A delta generation is written; its other points are those of any generation.
    "refresh.reused": "model, user state and crosses of the whole generation are staged under another name",
    "refresh.items_written": "the item table with its SIDs is staged, with the new items and without those that were withdrawn",
    "refresh.staged": "everything of the delta generation is staged but delta and manifest",
    # Alias and CURRENT move together.
    "promotion.intent_written": "the intent of a move is on disk, nothing has moved",
    "promotion.previous_moved": "the alias previous has moved",
    "promotion.champion_moved": "the alias champion has moved, CURRENT has not",
    "promotion.current_switched": "CURRENT has moved, the tags have not",
    "promotion.tags_set": "aliases, CURRENT and tags have moved, the log does not say so",
    "promotion.logged": "the log says so, the intent is still there",
    "promotion.intent_removed": "all is done",
    # A generation is copied to a mirror, and from one.
    "mirror.file": "a file of a generation is in the mirror",
    "mirror.manifest": "the manifest is in the mirror, after all files that it names",
    "mirror.current": "CURRENT of the mirror names the generation",
    "pull.file": "a file of a generation is in the local folder of the pull",
    "pull.installed": "the generation is whole and verified in its place, but not current yet",
}

_visits: Counter[str] = Counter()


def reached(name: str) -> None:
    """Say that a protocol has come to a fault point; acts only if ``$DIG_FAULT`` names it.

    Raises:
        KeyError: the point is not listed in ``POINTS``.
        OSError: a full disk, if that was asked for.
        ValueError: ``$DIG_FAULT`` cannot be read.
    """
    POINTS[name]
    armed = os.environ.get(VARIABLE)
    if not armed:
        return
    place, _, action = armed.partition("=")
    point, _, visit = place.partition("@")
    if point not in POINTS:
        raise ValueError(f"{VARIABLE}={armed}: no fault point {point!r}; there are {', '.join(sorted(POINTS))}")
    if point != name:
        return
    _visits[name] += 1
    if _visits[name] == int(visit or 1):
        _act(name, action, armed)


def _act(name: str, action: str, armed: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "full":
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (fault point {name})")
    elif action.startswith("pause:"):
        flag = Path(action.removeprefix("pause:"), name)
        flag.write_text(str(os.getpid()))
        while flag.exists():
            time.sleep(POLL_SECONDS)
    else:
        raise ValueError(f"{VARIABLE}={armed}: expected <point>=kill, <point>=full or <point>=pause:<folder>")
