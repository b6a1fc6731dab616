"""Bring the item maps in Redis (``serve.redis``) to what ``CURRENT`` serves: ``python -m jobs.redis_sink``."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from dig_models.index.generation import IndexCorrupt, IndexMissing
from dig_models.index.redis_sink import PASSWORD, RedisFailed, Sunk, push
from jobs.config import Config, ConfigError
from jobs.entry import Invocation, JobError, ServiceAway, run

log = logging.getLogger("jobs.redis_sink")


def sink(config: Config) -> Sunk:
    """Push what serves.

    Raises:
        ConfigError: no server is named.
        JobError: nothing was published yet, or what serves is damaged.
        ServiceAway: the server did not answer, or refused.
    """
    to = config.serve.redis
    if not to.url:
        raise ConfigError("serve.redis.url: empty, so there is nowhere to push to; expected a URL such as redis://host:6379/0")
    try:
        return push(Path(config.paths.at("index")), to.url, to.prefix, keep=to.keep, password=os.environ.get(PASSWORD, ""))
    except (IndexMissing, IndexCorrupt) as error:
        raise JobError(str(error)) from error
    except RedisFailed as error:
        raise ServiceAway(str(error)) from error


def main(call: Invocation) -> None:
    """The job."""
    done = sink(call.config)
    log.info("%s serves %s: %d fields written, %d generations removed", done.url, done.generation, done.written, len(done.removed))


if __name__ == "__main__":
    sys.exit(run("redis_sink", main, dated=False))
