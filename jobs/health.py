"""Is this container healthy? ``python -m jobs.health`` asks whatever the container was started for.

Any container must read its settings and write to its home. One that runs a process of Airflow must also find that process alive: the API
server answers over HTTP, the others have a recent heartbeat in the metadata database. A job needs no more: its exit status is its health.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from jobs.config import Config, ConfigError, load

HEARTBEATS = {"scheduler": "SchedulerJob", "dag-processor": "DagProcessorJob", "triggerer": "TriggererJob"}
SERVER_PORT = "8080"
TIMEOUT_SECONDS = 30


class Unhealthy(RuntimeError):
    """The container cannot do its work; the message says what was asked and what was found."""


def airflow_process(command: Sequence[str]) -> str | None:
    """The process of Airflow that a command line starts (``scheduler``), if any, with or without an init in front of it."""
    for place, word in enumerate(command[:-1]):
        if Path(word).name == "airflow":
            return command[place + 1]
    return None


def check_home(config: Config) -> None:
    """The home of the settings can be written to.

    Raises:
        Unhealthy: it cannot.
    """
    home = Path(config.paths.home)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as file:
            file.write(b"\0")
    except OSError as error:
        raise Unhealthy(
            f"paths.home {home}: expected a folder that user {os.getuid()} can write to, found {error.strerror}; mount one there"
        ) from error


def check_server(address: str) -> None:
    """Airflow's API server answers, and reaches its metadata database.

    Raises:
        Unhealthy: it does not.
    """
    try:
        with urllib.request.urlopen(f"{address}/api/v2/monitor/health", timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
            found = json.load(answer)["metadatabase"]["status"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unhealthy(f"Airflow's API server at {address}: expected an answer about its health, found {error!r}") from error
    if found != "healthy":
        raise Unhealthy(f"Airflow's API server at {address}: its metadata database is {found}")


def check_heartbeat(kind: str) -> None:
    """A process of Airflow on this host had a heartbeat lately.

    Raises:
        Unhealthy: none, or Airflow did not say in time.
    """
    command = [sys.executable, "-m", "airflow", "jobs", "check", "--job-type", kind, "--local"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unhealthy(f"Airflow's {kind}: no answer from `airflow jobs check` in {TIMEOUT_SECONDS} s") from error
    if done.returncode:
        raise Unhealthy(f"Airflow's {kind}: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")


def check(command: Sequence[str]) -> str:
    """Check a container that was started for ``command``; returns what was checked.

    Raises:
        ConfigError: the settings cannot be used.
        Unhealthy: something else is wrong.
    """
    check_home(load())
    process = airflow_process(command)
    if process == "api-server":
        check_server(f"http://127.0.0.1:{os.environ.get('AIRFLOW__API__PORT', SERVER_PORT)}")
    elif process in HEARTBEATS:
        check_heartbeat(HEARTBEATS[process])
    else:
        return "settings and home"
    return f"settings, home and Airflow's {process}"


def main() -> int:
    """Exit status 0 if healthy, else 1 and one line that says why."""
    started_for = Path("/proc/1/cmdline").read_bytes().decode(errors="replace").split("\0")
    try:
        sys.stdout.write(f"healthy: {check(started_for)}\n")
    except (ConfigError, Unhealthy) as error:
        sys.stderr.write(f"unhealthy: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
