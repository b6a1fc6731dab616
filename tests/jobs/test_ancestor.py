"""Which version a training starts from."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from jobs import registry
from jobs.config import CONF_DIR, load
from jobs.registry import ModelRef


def version(number: str, **tags: str) -> ModelRef:
    return ModelRef(name="dig", version=number, run_id="", tags=tags)


def test_training_starts_from_the_newest_promoted_version_that_was_not_withdrawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = [
        version("1", promoted_on="2017-11-13"),
        version("2", promoted_on="2017-11-14"),
        version("3", promoted_on="2017-11-15", withdrawn="2017-11-14"),
        version("4"),
    ]
    monkeypatch.setattr(registry, "versions", lambda config: known)
    config = load(CONF_DIR / "local.yaml", [f"paths.home={tmp_path}"], {})

    def start(day: int) -> str | None:
        found = registry.ancestor(config, date(2017, 11, day))
        return found.version if found else None

    assert [start(day) for day in (13, 14, 15, 16)] == [None, "1", "2", "2"]
