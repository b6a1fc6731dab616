"""Where the programs of the stack are: found, or installed, by the scripts in ``scripts/``."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ops.service import StackError

PROJECT = Path(__file__).resolve().parent.parent


def _ask(script: str) -> list[str]:
    done = subprocess.run([str(PROJECT / "scripts" / script)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise StackError(done.stderr.strip() or f"scripts/{script} ended with exit status {done.returncode}")
    return done.stdout.split("\n")


def java_home() -> str:
    """Home of a Java that Spark can use.

    Raises:
        StackError: there is none, and none can be installed.
    """
    return _ask("ensure_java.sh")[0]


def databases() -> tuple[Path, Path]:
    """The folder of PostgreSQL's programs, and ``redis-server``.

    Raises:
        StackError: one is missing and cannot be installed.
    """
    postgres, redis = _ask("ensure_services.sh")[:2]
    return Path(postgres), Path(redis)
