"""The benchmark of building and opening, at a size that takes seconds: it measures every phase and writes figures and plot."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import index_build


def test_the_affinity_is_off_whatever_the_settings_say() -> None:
    assert not index_build.settings(["model.affinity.enabled=true"]).model.affinity.enabled


@pytest.mark.slow
def test_every_phase_of_every_size_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "index_build",
            "--items",
            "300",
            "600",
            "--users",
            "30",
            "--threads",
            "1",
            "--out",
            str(tmp_path),
            "--set",
            "model.affinity.enabled=true",
        ],
    )
    index_build.main()
    found = json.loads((tmp_path / "index_build.json").read_text())
    assert [row["items"] for row in found["rows"]] == [300, 600]
    for row in found["rows"]:
        assert row["build"]["build_seconds"] > 0 and row["verify"]["verify_seconds"] > 0 and row["open"]["open_ms_median"] > 0
        assert len(row["open"]["request_ms"]) == 3 and row["refresh"]["refresh_seconds"] > 0
        assert row["build"]["peak_rss_mb"] > row["build"]["grown_anonymous_mb"] >= 0
    assert (tmp_path / "index_build.png").stat().st_size > 1000
