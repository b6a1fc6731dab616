"""The mirrors of the index that the settings name (``index.mirrors``), kept at what ``CURRENT`` serves."""

from __future__ import annotations

import logging
from pathlib import Path

from dig_models.index.mirror import MirrorFailed, Pushed, push
from jobs.config import Config
from jobs.entry import JobError

log = logging.getLogger(__name__)


def push_all(config: Config) -> list[Pushed]:
    """Push what serves to every mirror; all are tried, also after one has failed. Doing it again sends only what is missing.

    Raises:
        IndexMissing: nothing was published yet.
        IndexCorrupt: what serves is damaged.
        JobError: some mirrors failed; names each, with what its store said.
    """
    root, done, failed = Path(config.paths.at("index")), [], []
    for url in config.index.mirrors:
        try:
            done.append(push(root, url, keep=config.index.keep))
        except MirrorFailed as error:
            log.error("%s", error)
            failed.append(str(error))
    if failed:
        raise JobError(
            f"{len(failed)} of {len(config.index.mirrors)} mirrors were not brought up to date (dig index push tries again): "
            + "; ".join(failed)
        )
    return done
