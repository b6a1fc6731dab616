"""Is what serves fresh, and is staging clean."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from jobs.config import load
from jobs.entry import JobError
from jobs.files import exclusive
from jobs.sweep import sweep
from jobs.watch import due, watch


def settings(home: Path, *sets: str):
    return load(sets=[f"paths.home={home}", *sets], environ={})


@pytest.mark.parametrize(
    ("at", "oldest"),
    [
        # 48 hours before, on the clock of UTC-5, and the day that had closed by then.
        ("2017-11-18T04:59:00+00:00", date(2017, 11, 14)),
        ("2017-11-18T05:00:00+00:00", date(2017, 11, 15)),
        ("2026-01-01T00:00:00+00:00", date(2017, 12, 31)),
    ],
)
def test_the_oldest_day_that_may_serve(tmp_path, at, oldest):
    assert due(settings(tmp_path), datetime.fromisoformat(at)) == oldest


def test_an_index_that_is_too_old_is_said_with_both_days(tmp_path):
    config = settings(tmp_path)
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "CURRENT").write_text("2017-11-15-v1-0123456789\n")
    assert watch(config, datetime(2017, 11, 18, 6, tzinfo=UTC)) == "2017-11-15-v1-0123456789"
    with pytest.raises(JobError, match=r"serves 2017-11-15; at 2017-11-19T05:00\+00:00 a generation of 2017-11-16 or later is due"):
        watch(config, datetime(2017, 11, 19, 5, tzinfo=UTC))


def test_no_index_at_all_is_said_too(tmp_path):
    with pytest.raises(JobError, match="no index was published yet"):
        watch(settings(tmp_path), datetime(2017, 11, 18, 6, tzinfo=UTC))


def test_what_a_killed_job_left_goes_and_what_a_running_one_holds_stays(tmp_path):
    staging = tmp_path / "lake" / "_staging"
    for run_id in ("ingest-a", "ingest-b"):
        (staging / run_id / "items").mkdir(parents=True)
        (staging / run_id / "items" / "part").write_text("x")
    with exclusive(staging / ".ingest-b.items.lock"):
        assert sweep(settings(tmp_path)) == [staging / "ingest-a" / "items"]
    assert sorted(path.name for path in staging.iterdir() if path.is_dir()) == ["ingest-b"]
    assert sweep(settings(tmp_path)) == [staging / "ingest-b" / "items"]
    assert sweep(settings(tmp_path / "nothing")) == []
