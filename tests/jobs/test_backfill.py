"""How a range is cut into chunks, what is refused, and which days a refresh takes up; no Spark."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import pytest

from jobs import backfill, progress
from jobs.backfill import alone, plan, run_chunks
from jobs.config import Config, ConfigError, load
from jobs.entry import JobError, Request, run
from jobs.provenance import RAW_TABLES, TABLES
from jobs.reach import Reach, spans
from jobs.refresh import chunks_of
from tests.jobs.marker_world import MarkerWorld, march


def with_chunks(config: Config, days: int) -> Config:
    return config.model_copy(update={"backfill": config.backfill.model_copy(update={"chunk_days": days})})


def whole(config: Config, first: int, last: int) -> dict[str, list[date]]:
    """Days of each table over all chunks."""
    found: dict[str, list[date]] = {}
    for chunk in plan(config, march(first)[0], march(last)[0]):
        for table, days in chunk.request.days.items():
            found.setdefault(table, []).extend(days)
    return found


def test_a_range_takes_along_the_days_that_its_first_features_reach(tiny_config: Config) -> None:
    days = whole(tiny_config, 20, 26)
    assert days["interactions"] == days["requests"] == days["item_daily"] == days["u2i_daily"] == march(5, 26)  # 14 + 1 days back
    assert days["item_features"] == march(19, 26)
    assert days["offers"] == days["items"] == days["users"] == days["u2i_crosses"] == days["examples"] == march(20, 26)
    assert days["user_state"] == march(26)


@pytest.mark.parametrize("chunk_days", [1, 3, 7, 30])
def test_however_a_range_is_cut_each_day_of_each_table_is_built_once(tiny_config: Config, chunk_days: int) -> None:
    assert whole(with_chunks(tiny_config, chunk_days), 10, 26) == whole(tiny_config, 10, 26)


@pytest.mark.parametrize("chunk_days", [1, 3, 30])
def test_every_input_of_a_chunk_is_built_before_it(tiny_config: Config, chunk_days: int) -> None:
    config = with_chunks(tiny_config, chunk_days)
    there: set[tuple[str, date]] = set()
    reach = Reach(config, MarkerWorld(config).built().lake)
    for chunk in plan(config, march(10)[0], march(30)[0]):
        for table in TABLES:
            days = chunk.request.wanted(table)
            for day in days if table not in RAW_TABLES else []:
                needed = {(source, one) for source, some in reach.of(table, day).items() for one in some}
                assert needed <= there, (table, day)
            there |= {(table, day) for day in days}


def test_the_first_day_of_the_data_gives_no_examples(tiny_config: Config) -> None:
    days = whole(tiny_config, 1, 3)
    assert (days["examples"], days["item_features"], days["interactions"]) == (march(2, 3), march(1, 3), march(1, 3))
    with pytest.raises(ConfigError, match=r"examples of 2024-03-01: data start on 2024-03-01.*the earliest day possible is 2024-03-02"):
        plan(tiny_config, march(1)[0], march(1)[0])


def test_anew_is_about_the_days_asked_for_alone(tiny_config: Config) -> None:
    (chunk,) = plan(tiny_config, march(20)[0], march(22)[0], anew=True)
    assert chunk.request.anew == frozenset(march(20, 22))
    assert set(march(5, 19)) <= set(chunk.request.wanted("interactions"))


def test_cross_arrays_are_left_out_with_a_word_if_their_window_is_not_in_the_lake(
    tiny_config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    assert whole(tiny_config, 28, 30)["cross_arrays"] == []
    assert "no cross arrays for 2024-03-30" in caplog.text
    assert "offers lacks 5 days from 2024-03-23 on" in caplog.text
    assert "fill its window from 2024-03-23 on" in caplog.text
    assert whole(tiny_config, 23, 30)["cross_arrays"] == march(30)
    MarkerWorld(tiny_config).built(first=20, last=27)
    assert whole(tiny_config, 28, 30)["cross_arrays"] == march(30), "the days before the range are there by now"


def started(conf: Path, *options: str) -> int:
    return run("backfill", backfill.main, ["--config", str(conf), *options], ranges=True, options=backfill.options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--from", "2024-02-28", "--to", "2024-03-05"), "date 2024-02-28 is outside data set 'tiny', whose days run from 2024-03-01 to"),
        (("--from", "2024-03-05", "--to", "2024-04-01"), "date 2024-04-01 is outside data set 'tiny'"),
        (("--from", "2024-03-05", "--to", "2024-03-04"), "--from must not be after --to"),
        (("--date", "2024-03-05", "--anew", "--missing"), "--anew and --missing: give one of them"),
    ],
)
def test_a_range_that_cannot_be_built_is_refused_in_one_line(
    tiny_conf: Path, caplog: pytest.LogCaptureFixture, options: Sequence[str], said: str
) -> None:
    assert started(tiny_conf, *options) == 2
    assert said in caplog.text
    assert not Path(load(tiny_conf).paths.at("lake")).exists(), "nothing was begun"


def test_a_second_backfill_is_told_to_wait(tiny_conf: Path, caplog: pytest.LogCaptureFixture) -> None:
    lake = MarkerWorld(load(tiny_conf)).lake
    with alone(lake):
        assert started(tiny_conf, "--from", "2024-03-10", "--to", "2024-03-12") == 1, "a retry may find it free"
    assert ".backfill.lock: held by another run that builds the same days (process " in caplog.text


def test_the_lock_is_let_go_when_a_backfill_ends(tiny_config: Config) -> None:
    lake = MarkerWorld(tiny_config).lake
    with pytest.raises(JobError, match="held by another run"), alone(lake), alone(lake):
        pass
    assert run_chunks(tiny_config, []) == {}


def test_progress_of_the_jobs_moves_the_backfill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIG_PROGRESS", str(tmp_path / "events"))
    progress.emit("backfill", 0, 8)
    with progress.part_of("backfill", before=4, share=1, total=8):
        progress.emit("examples", 1, 2, table="examples")
        progress.emit("examples", 0, 0)
    progress.emit("examples", 1, 2)
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert events == [
        {"stage": "backfill", "done": 0, "total": 8},
        {"stage": "backfill", "done": 4.5, "total": 8, "step": "examples", "table": "examples"},
        {"stage": "backfill", "done": 5.0, "total": 8, "step": "examples"},
        {"stage": "examples", "done": 1, "total": 2},
    ]


def test_days_are_grouped_by_how_far_they_lie_apart() -> None:
    days = [*march(1, 3), *march(7), *march(20, 21)]
    assert spans(days, 7) == [[*march(1, 3), *march(7)], march(20, 21)]
    assert spans(days, 1) == [[day] for day in days]
    assert spans([], 7) == []


def test_a_refresh_takes_up_just_the_days_it_is_given_and_raw_tables_first() -> None:
    stale: Mapping[str, list[date]] = {"interactions": march(12), "items": march(20), "u2i_daily": march(12), "examples": march(12, 26)}
    chunks = chunks_of(stale, 7)
    requests = [{table: days for table, days in chunk.request.days.items() if days} for chunk in chunks]
    assert requests == [
        {"interactions": march(12)},
        {"items": march(20)},
        {"u2i_daily": march(12), "examples": march(12, 18)},
        {"examples": march(19, 25)},
        {"examples": march(26)},
    ]
    assert not any(chunk.request.anew for chunk in chunks), "a day whose inputs turn out the same stays"


def test_a_request_builds_all_anew_or_only_what_is_missing() -> None:
    assert Request.of({"examples": march(1, 2)}, missing=True).anew == frozenset()
    assert Request.of({"examples": march(1, 2)}, missing=False).anew == frozenset(march(1, 2))
    assert Request(days={}).wanted("examples") == []
