"""Where the SIDs lie that a tokenizer made for a date, and by what they are known to be the ones wanted; no torch here.

``<checkpoints>/<D>/tokenizer/`` holds a folder a result and ``CURRENT``, which names the one that counts and is replaced last.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from dig_models.files import replace_text, sync_tree
from jobs.config import Config
from jobs.dates import Window, days_between
from jobs.entry import JobError
from jobs.lake import Inputs, code_digest, digest_of

PLACE, CURRENT, SIDS, RECORD = "tokenizer", "CURRENT", "sids.parquet", "made.json"
CODE = (
    *(f"dig_models.{m}" for m in ("arrays", "cross_files", "features", "generator", "items", "nn.norm", "quantize", "tokenizers")),
    *(
        "dig_models.evaluate.sid_quality",
        "dig_models.index.resolve",
        "jobs.dates",
        "jobs.sids",
        "jobs.sids_before",
        "jobs.sids_inputs",
        "jobs.tokenizing",
        "jobs.train_inputs",
    ),
)
"""Modules that decide the SIDs. Those that make them are no part of a ranker's digest that makes its own."""


class NotWhole(ValueError):
    """A result is missing or damaged; the message names the file and what was found."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """SIDs of a date, whole.

    Attributes:
        folder: the tokenizer as ``Tokenizer.save`` wrote it, ``sids.parquet`` of all items known, and ``made.json``.
        record: ``date, kind, content, lineage, wanted, fit, kept`` (version and lineage of the tokenizer taken over, or null), how it
            went, and ``sha256`` of the other files.
        sha256: of ``made.json`` itself.
    """

    folder: Path
    record: dict[str, Any]
    sha256: str

    @property
    def lineage(self) -> str:
        """Digest of all that determines the SIDs."""
        return str(self.record["lineage"])

    @property
    def sids(self) -> Path:
        """The file of SIDs."""
        return self.folder / SIDS

    @property
    def told(self) -> dict[str, Any]:
        """What reports and bundles say of it; ``sha256`` is that of ``made.json``, which has those of the other files."""
        return {name: self.record[name] for name in ("kind", "content", "lineage", "fit", "kept")} | {"sha256": self.sha256}


def home(config: Config, day: date) -> Path:
    """Folder of a date's results."""
    return Path(config.paths.at("checkpoints")) / day.isoformat() / PLACE


def lock(config: Config, day: date) -> Path:
    """Lock file of a date's training and of its SIDs: a training reads them from its start to its very end."""
    folder = home(config, day).parent
    return folder.with_name(f".{folder.name}.lock")


def fit_digest(config: Config) -> str:
    """Digest of the settings that decide a fit, whatever the data: those under which a tokenizer may be taken over."""
    own = config.tokenizers.of(config.tokenizer)
    return digest_of(
        {
            "kind": config.tokenizer,
            "settings": own.model_dump(mode="json") if own else None,
            "content": config.tokenizers.content,
            "conflicts": config.tokenizers.conflicts,
            "shape": [config.model.levels, config.model.codes],
            "seed": config.train.seed,
            "spec": config.dataset.spec().digest,
            "fields": config.dataset.fields_digest(),
        }
    )


def wanted(config: Config, day: date, window: Window, inputs: Inputs) -> str:
    """Digest of all that decides a date's SIDs but the version promoted before.

    Args:
        config: settings in force.
        day: date of the run.
        window: its days.
        inputs: content digests of the partitions that a training reads; the examples of the days that move weights are among them.
    """
    moving = {of.isoformat() for of in days_between(window.train_first, window.fit_last)}
    facts = {
        "date": day.isoformat(),
        "fit": fit_digest(config),
        "policy": [config.tokenizers.refit, config.train.warm_start],
        "dataset": [config.dataset.rows_digest(), config.digest("window")],
        "inputs": {"item_features": inputs["item_features"], "examples": {ds: c for ds, c in inputs["examples"].items() if ds in moving}},
        "code": code_digest(*CODE),
    }
    return digest_of(facts)


def found(config: Config, day: date) -> Made | None:
    """The result of a date; None if there is none, or it is damaged."""
    try:
        name = (home(config, day) / CURRENT).read_text().strip()
    except OSError:
        return None
    try:
        return read(home(config, day) / name) if name else None
    except NotWhole:
        return None


def read(folder: Path, sha256: str | None = None) -> Made:
    """A result wherever it lies, as beside the model that was trained on it.

    Args:
        folder: its folder.
        sha256: digest that its ``made.json`` must have, as the bundle around it says; None where nothing says one.

    Raises:
        NotWhole: a file is missing or is not the one that was written.
    """
    file = folder / RECORD
    try:
        own = _same(file, sha256)
        record: dict[str, Any] = json.loads(file.read_text())
        for name, digest in record["sha256"].items():
            file = folder / name
            _same(file, str(digest))
    except OSError as error:
        raise NotWhole(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, NotWhole):
            raise
        raise NotWhole(f"{file}: not the record of a tokenizer ({str(error).splitlines()[0]})") from error
    return Made(folder=folder, record=record, sha256=own)


def _same(file: Path, digest: str | None) -> str:
    """SHA-256 of a file, which must be ``digest`` if that is given."""
    found = _sha256(file)
    if digest is not None and found != digest:
        raise NotWhole(f"{file}: damaged: sha256 {found[:12]} found, {digest[:12]} expected")
    return found


def require(config: Config, day: date, want: str) -> Made:
    """The result that a training takes.

    Args:
        config: settings in force.
        day: date of the run.
        want: see ``wanted``.

    Raises:
        JobError: there is none, or one of other data, settings or code; the message names the command that makes it.
    """
    made, command = found(config, day), f"run python -m jobs.sids --date {day} first"
    if made is None:
        raise JobError(f"tokenizer is {config.tokenizer}: no SIDs of {day} in {home(config, day)}; {command}")
    if made.record.get("wanted") != want:
        raise JobError(
            f"{made.folder}: SIDs by {made.record.get('kind')} made from other data, settings or code than those in force "
            f"(digest {str(made.record.get('wanted'))[:12]}, now {want[:12]}); {command}"
        )
    return made


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Write ``made.json`` over all files of a folder, and flush them."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    replace_text(folder / RECORD, json.dumps(facts | {"sha256": {n: _sha256(folder / n) for n in names}}, indent=2, sort_keys=True) + "\n")
    sync_tree(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
