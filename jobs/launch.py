"""Start the training of a date under torchrun, with ranks, hosts and rendezvous from the settings.

What training reads is checked first, so that a missing partition is one message and not one a process. Then this process becomes
torchrun: signals and exit status are its own. On several hosts, start the same command on each of them. A rank that fails, or a host
that is lost and started again, makes all ranks meet anew and go on from the last checkpoint, ``train.max_restarts`` times. The host of
the rendezvous keeps the list of who is there: if that one is lost, all end, and are started again to go on.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from dig_models.config import TrainConfig
from jobs.config import Config, ConfigError
from jobs.entry import Invocation, run
from jobs.train_inputs import train_inputs

KEEP_ALIVES = 3
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
    command += ["--max-restarts", str(train.max_restarts)]
    if train.hosts > 1 and not train.rendezvous:
        raise ConfigError(f"train.hosts is {train.hosts}: train.rendezvous must name host:port of one of them, found nothing")
    command += _meeting(train, day) if train.rendezvous else ["--standalone"]
    command += ["-m", "jobs.train", "--date", day.isoformat()]
    command += ["--config", str(settings)] if settings else []
    return command + [part for one in sets for part in ("--set", one)]


def _meeting(train: TrainConfig, day: date) -> list[str]:
    timeouts = {
        "join_timeout": 60 * train.join_minutes,
        "keep_alive_interval": train.lost_seconds // KEEP_ALIVES,
        "keep_alive_max_attempt": KEEP_ALIVES,
    }
    if train.address:  # else torchrun guesses whose the rendezvous is from host names, and all wait for each other if it is wrong
        timeouts["is_host"] = int(train.rendezvous.rpartition(":")[0] == train.address)
    options = ["--nnodes", str(train.hosts), "--rdzv-backend", "c10d", "--rdzv-endpoint", train.rendezvous, "--rdzv-id", f"dig-{day}"]
    options += ["--rdzv-conf", ",".join(f"{key}={value}" for key, value in timeouts.items())]
    return options + (["--local-addr", train.address] if train.address else [])


def environment(train: TrainConfig) -> dict[str, str]:
    """Variables of torchrun and its ranks.

    With a store shared between rendezvous and ranks, torchrun tells a host that joins later nothing of it: the host would wait in vain
    for the address that the others remember from their first round. So the ranks make a store of their own each time they meet.
    """
    return {"OMP_NUM_THREADS": str(train.threads_per_rank), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def main(asked: Invocation) -> None:
    """Check the inputs, then turn into torchrun."""
    train_inputs(asked.config, asked.date)
    command = torchrun_command(asked.config, asked.date, settings=asked.options.config, sets=asked.options.set)
    log.info("starting %s", " ".join(command))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, {**os.environ, **environment(asked.config.train)})  # noqa: S606


if __name__ == "__main__":
    sys.exit(run("launch", main))
