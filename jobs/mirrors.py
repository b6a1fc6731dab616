"""The mirrors of the index that the settings name (``index.mirrors``), kept at what ``CURRENT`` serves: ``python -m jobs.mirrors``."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from dig_models.index import mirror
from dig_models.index.mirror import MirrorFailed, Pushed, push
from jobs.config import Config
from jobs.entry import Held, Invocation, ServiceAway, run

log = logging.getLogger("jobs.mirrors")


def push_all(config: Config, *, only_behind: bool = False) -> list[Pushed]:
    """Push what serves to every mirror; all are tried, also after one has failed. Doing it again sends only what is missing.

    Args:
        config: settings in force.
        only_behind: leave a mirror alone that serves the same already; else all that it holds is read and compared.

    Raises:
        IndexMissing: nothing was published yet.
        IndexCorrupt: what serves is damaged.
        ServiceAway: some mirrors failed; names each, with what its store said.
    """
    root, done, failed = Path(config.paths.at("index")), [], []
    for url in config.index.mirrors:
        try:
            done.append(push(root, url, keep=config.index.keep, only_behind=only_behind))
        except MirrorFailed as error:
            log.error("%s", error)
            failed.append(str(error))
    if failed:
        raise ServiceAway(
            f"{len(failed)} of {len(config.index.mirrors)} mirrors were not brought up to date (dig index push tries again): "
            + "; ".join(failed)
        )
    return done


def collect(root: Path, url: str, keep: int, *, dry_run: bool = False) -> list[str]:
    """Remove the generations of a mirror that are too many: see ``dig_models.index.mirror.collect``.

    Args:
        root: the index that pushes to the mirror.
        url: the mirror.
        keep: newest whole generations that stay.
        dry_run: only say which would go.

    Returns:
        Ids that were removed, or would be, oldest first.

    Raises:
        Held: a push is under way.
        IndexMissing: the mirror serves nothing.
        IndexCorrupt: what it serves is damaged.
        MirrorFailed: the store refused or did not answer.
    """
    try:
        return mirror.collect(root, url, keep, dry_run=dry_run)
    except BlockingIOError as error:
        raise Held(f"mirror {url}: a push is under way ({error.strerror}); nothing was removed: ask again when it is done") from None


def main(call: Invocation) -> None:
    """The job."""
    for pushed in push_all(call.config, only_behind=call.options.behind):
        log.info("mirror %s serves %s, %d files sent", pushed.url, pushed.generation, pushed.sent)


def options(parser: argparse.ArgumentParser) -> None:
    """Options of the job."""
    parser.add_argument("--behind", action="store_true", help="only the mirrors that serve another generation; the others are not read")


if __name__ == "__main__":
    sys.exit(run("mirrors", main, dated=False, options=options))
