"""The tokenizer that a date takes over: that of the version promoted before, if it was fitted under the settings in force; no fit here."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from dig_models.bundle import BundleError, read_info
from jobs import registry, sids_inputs
from jobs.config import Config
from jobs.entry import JobError
from jobs.sids_inputs import Made, NotWhole

log = logging.getLogger(__name__)
WAY_OUT = (
    "restore the files of that version; or fit another one, which moves nearly all SIDs, so the gate wants gate.max_churn=1: "
    "set tokenizers.refit=daily (or train.warm_start=false) for the whole run"
)


@dataclass(frozen=True, kw_only=True)
class Before:
    """A tokenizer to take over.

    Attributes:
        version: registered version that was trained on its SIDs.
        bundle: folder of that version.
        told: what the bundle says of it, see ``Made.told``.
    """

    version: str
    bundle: Path
    told: dict[str, Any]

    @property
    def lineage(self) -> str:
        """Digest of all that determined that version's SIDs."""
        return str(self.told["lineage"])

    @property
    def kept(self) -> dict[str, str]:
        """What a result says that takes it over."""
        return {"version": self.version, "lineage": self.lineage}

    def made(self) -> Made:
        """Its files.

        Raises:
            JobError: they are not whole. To fit another one instead would move all SIDs without anybody's asking.
        """
        try:
            return sids_inputs.read(self.bundle / sids_inputs.PLACE, str(self.told.get("sha256")))
        except NotWhole as error:
            raise JobError(f"tokenizer of version {self.version}: {error}; {WAY_OUT}") from error


def before(config: Config, day: date) -> Before | None:
    """The tokenizer that a date takes over; None where one is to be fitted, by the settings or for want of one of these settings.

    Raises:
        JobError: the version promoted before cannot be read.
    """
    if config.tokenizers.refit == "daily" or not config.train.warm_start:
        return None
    version = registry.ancestor(config, day)
    if version is None:
        return None
    bundle = registry.fetch(config, version)
    try:
        told = read_info(bundle).get("tokenizer")
    except BundleError as error:
        raise JobError(f"version {version.version}: {error}; {WAY_OUT}") from error
    if told is None or told["kind"] != config.tokenizer:
        log.info("version %s has no tokenizer of kind %s: one is fitted", version.version, config.tokenizer)
        return None
    if told.get("fit") != sids_inputs.fit_digest(config):
        log.info("version %s has a tokenizer of kind %s under other settings: one is fitted anew", version.version, config.tokenizer)
        return None
    return Before(version=version.version, bundle=bundle, told=told)


def require_current(config: Config, day: date, made: Made) -> None:
    """Refuse SIDs of a date that take over another version than would be taken over now, as after a rollback.

    Raises:
        JobError: names both versions and the command that makes the SIDs again.
    """
    now = before(config, day)
    was, wanted = made.record.get("kept"), now.kept if now else None
    if was != wanted:
        raise JobError(
            f"{made.folder}: SIDs by a tokenizer {_of(was)}, expected one {_of(wanted)}: a version was promoted or withdrawn since; "
            f"run python -m jobs.sids --date {day} first"
        )


def _of(kept: dict[str, str] | None) -> str:
    return f"of version {kept['version']} (lineage {kept['lineage'][:12]})" if kept else "fitted for the date"
