"""Start the training of a date under torchrun, with ranks, hosts and rendezvous from the settings.

What training reads is checked first, so that a missing partition is one message and not one a process. Then this process becomes
torchrun: signals and exit status are its own. On several hosts, start the same command on each of them.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from jobs.config import Config, ConfigError
from jobs.entry import Invocation, run
from jobs.train_inputs import train_inputs

log = logging.getLogger(__name__)


def torchrun_command(config: Config, day: date, *, settings: Path | None = None, sets: Sequence[str] = ()) -> list[str]:
    """Command line that trains for ``day``: standalone on one host, else a c10d rendezvous.

    Args:
        config: the settings in force.
        day: logical date.
        settings: settings file to hand on (``--config``).
        sets: overrides to hand on (``--set``).

    Raises:
        ConfigError: several hosts, but no rendezvous.
    """
    train = config.train
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(train.ranks)]
    if train.hosts == 1 and not train.rendezvous:
        command += ["--standalone"]
    elif not train.rendezvous:
        raise ConfigError(f"train.hosts is {train.hosts}: train.rendezvous must name host:port of one of them, found nothing")
    else:
        command += ["--nnodes", str(train.hosts), "--rdzv-backend", "c10d", "--rdzv-endpoint", train.rendezvous, "--rdzv-id", f"dig-{day}"]
    command += ["-m", "jobs.train", "--date", day.isoformat()]
    command += ["--config", str(settings)] if settings else []
    return command + [part for one in sets for part in ("--set", one)]


def main(asked: Invocation) -> None:
    """Check the inputs, then turn into torchrun."""
    train_inputs(asked.config, asked.date)
    command = torchrun_command(asked.config, asked.date, settings=asked.options.config, sets=asked.options.set)
    log.info("starting %s", " ".join(command))
    threads = str(asked.config.train.threads_per_rank)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, {**os.environ, "OMP_NUM_THREADS": threads})  # noqa: S606


if __name__ == "__main__":
    sys.exit(run("launch", main))
