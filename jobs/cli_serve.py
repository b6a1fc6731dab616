"""``dig serve``: the HTTP server on the index of the settings."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

from dig_models.serve.server import TOKEN
from dig_models.serve.server import serve as run
from jobs.config import Config
from jobs.index import index_root


def serve(config: Config, host: str | None, port: int | None, index: str | None) -> None:
    """Serve until the process is told to end; being told is no error.

    Raises:
        CannotServe: a host beyond loopback without a token, or an address that is taken.
        JobError: the index is not on a file system.
    """
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    root = Path(index).resolve() if index else index_root(config)
    with suppress(KeyboardInterrupt):
        run(root, config.serve.model_copy(update=given), config.retrieve, os.environ.get(TOKEN, ""))
