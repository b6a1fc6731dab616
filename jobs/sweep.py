"""Remove what killed jobs left under the lake's staging folder; what a running job holds stays."""

from __future__ import annotations

import logging
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from jobs.config import Config
from jobs.entry import Invocation, JobError, run
from jobs.files import exclusive
from jobs.staging import STAGING

log = logging.getLogger("jobs.sweep")


def sweep(config: Config) -> list[Path]:
    """Remove staging folders that no process holds.

    Returns:
        The folders that were removed.
    """
    home, gone = Path(config.paths.at("lake")) / STAGING, []
    for folder in sorted(home.glob("*/*")):
        try:
            with exclusive(home / f".{folder.parent.name}.{folder.name}.lock", wait=False):
                shutil.rmtree(folder, ignore_errors=True)
                gone.append(folder)
        except JobError:
            log.info("%s is in use and stays", folder)
    for run_folder in sorted(path for path in home.glob("*") if path.is_dir()):
        with suppress(OSError):  # not empty, or gone: its run is at work
            run_folder.rmdir()
    return gone


def main(call: Invocation) -> None:
    """``python -m jobs.sweep``."""
    gone = sweep(call.config)
    log.info("removed %s", ", ".join(map(str, gone)) or "nothing: no job was cut short")


if __name__ == "__main__":
    sys.exit(run("sweep", main, dated=False))
