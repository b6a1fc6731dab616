"""The record of a run: ``<runs>/<date>/<name>.json``, one file a job, written whole or not at all."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

from jobs.config import Config
from jobs.entry import JobError
from jobs.files import replace_text


def run_dir(config: Config, day: date) -> Path:
    """Folder of the run for ``day``; created if missing."""
    path = Path(config.paths.at("runs")) / day.isoformat()
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically and durably: a reader sees the old file or the new one."""
    replace_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def save(config: Config, day: date, name: str, value: Any) -> Path:
    """Keep what a job found: ``<runs>/<day>/<name>.json``."""
    path = run_dir(config, day) / f"{name}.json"
    write_json(path, value)
    return path


def find(config: Config, day: date, name: str) -> dict[str, Any] | None:
    """What the job ``name`` kept for ``day``; None if it did not run."""
    path = run_dir(config, day) / f"{name}.json"
    if not path.is_file():
        return None
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def read(config: Config, day: date, name: str) -> dict[str, Any]:
    """What the job ``name`` kept for ``day``.

    Raises:
        JobError: it did not run for that day.
    """
    found = find(config, day, name)
    if found is None:
        raise JobError(f"{run_dir(config, day) / f'{name}.json'}: not found; run python -m jobs.{name} --date {day} first")
    return found


def supersede(config: Config, day: date, lineage: str) -> None:
    """Remove what the jobs after training kept of another model of that day, so that a run's folder never mixes two.

    A refused rerun thus leaves no report of the model before it; what ``<runs>/latest`` shows stays.

    Args:
        config: settings in force.
        day: date of the run.
        lineage: of the model that the folder is about from now on.
    """
    folder = run_dir(config, day)
    path = folder / "evaluate.json"
    if path.is_file() and json.loads(path.read_text()).get("lineage") != lineage:
        for name in ("report.html", "summary.json", "promote.json", "index.json", "gate.json", "register.json", "evaluate.json"):
            (folder / name).unlink(missing_ok=True)
