"""Which days are out of date and why, read off markers: windows of 3 and 7 days, a catalogue of 14, a history of 7."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs import cli, stale
from jobs.config import Config
from jobs.lake import MARKER
from jobs.provenance import RAW_TABLES, TABLES
from jobs.stale import Reason, refresh_command, summary
from tests.jobs.marker_world import MarkerWorld, march

#: Days that a changed raw file of March 12 reaches, of a lake with examples of March 10 to 30 (run window: examples from the 23rd on).
REACHED_BY_THE_12TH = {
    **dict.fromkeys(RAW_TABLES, march(12)),
    "item_daily": march(12),
    "item_features": march(12, 25),  # the day itself and 13 more: a window of 14 days
    "u2i_daily": march(12),
    "u2i_crosses": march(12, 19),  # its own requests, then windows of 7 closed days
    "cross_arrays": march(30),  # popularity of the 22nd reaches back to the 9th
    "examples": march(12, 26),  # its own rows, history until the 19th, catalogues of the day before until the 26th
}


@pytest.fixture
def world(tiny_config: Config) -> MarkerWorld:
    return MarkerWorld(tiny_config).built()


def test_a_lake_that_was_just_built_has_nothing_out_of_date(world: MarkerWorld) -> None:
    report = world.report()
    assert (report.stale, report.unknown) == ({}, {})
    assert {table for table in TABLES if world.lake.days(table)} == set(TABLES)


def test_a_changed_raw_file_reaches_just_the_days_of_its_windows(world: MarkerWorld) -> None:
    world.raw[march(12)[0]] = "with late rows"
    report = world.report()
    assert report.days() == REACHED_BY_THE_12TH
    direct = {key for key, one in report.stale.items() if not one.only_by_way}
    assert direct == {(table, march(12)[0]) for table in RAW_TABLES}
    assert report.stale["interactions", march(12)[0]].why == "raw files changed: interactions of the day"
    assert report.stale["u2i_crosses", march(13)[0]].why == "by way of u2i_daily"


def test_days_after_a_rebuilt_day_used_its_old_rows(world: MarkerWorld) -> None:
    world.raw[march(12)[0]] = "with late rows"
    world.build({table: march(12) for table in (*RAW_TABLES, "item_daily", "item_features", "u2i_daily", "u2i_crosses", "examples")})
    expected = {
        "item_features": march(13, 25),
        "u2i_crosses": march(13, 19),
        "cross_arrays": march(30),
        "examples": march(13, 26),
    }
    report = world.report()
    assert report.days() == expected
    assert Reason(kind="input", what="item_daily", days=("2024-03-12",)) in report.stale["item_features", march(25)[0]].reasons
    assert not report.stale["item_features", march(25)[0]].only_by_way
    assert report.stale["examples", march(26)[0]].only_by_way, "its catalogue will change, but has not yet"


def test_a_rebuilt_day_with_the_same_rows_leaves_the_days_after_it_alone(world: MarkerWorld) -> None:
    for table in RAW_TABLES:
        marker = world.lake.marker(table, march(12)[0])
        assert marker is not None
        world.content[table, march(12)[0]] = marker.content
    world.raw[march(12)[0]] = "the same rows in another order"
    world.build(dict.fromkeys(RAW_TABLES, march(12)))
    assert world.report().stale == {}


def test_another_code_of_a_job_is_a_reason_of_its_own(world: MarkerWorld) -> None:
    world.codes["u2i_daily"] = "another"
    report = world.report()
    assert report.stale["u2i_daily", march(1)[0]].why == "the job's code changed"
    assert report.days()["u2i_daily"] == march(1, 30)
    assert set(report.days()) == {"u2i_daily", "u2i_crosses", "cross_arrays", "examples", "user_state"}


def test_a_setting_of_the_features_leaves_the_raw_tables_up_to_date(world: MarkerWorld) -> None:
    catalogue = world.config.dataset.catalogue.model_copy(update={"min_events": 2})
    world.config = world.config.model_copy(update={"dataset": world.config.dataset.model_copy(update={"catalogue": catalogue})})
    report = world.report()
    assert set(report.days()) == set(TABLES) - set(RAW_TABLES)
    assert report.stale["item_daily", march(1)[0]].why == "settings changed"


def test_an_earlier_snapshot_of_items_stands_for_the_days_before_it(world: MarkerWorld) -> None:
    world.commit("items", march(5)[0])
    report = world.report()
    assert report.days()["u2i_daily"] == march(1, 5)
    assert report.stale["u2i_daily", march(1)[0]].why == "changed: items of 2024-03-05, 2024-03-10"


def test_a_damaged_marker_is_a_day_to_rebuild(world: MarkerWorld) -> None:
    (world.lake.day_dir("u2i_crosses", march(20)[0]) / MARKER).write_text("{")
    report = world.report()
    assert report.days() == {"u2i_crosses": march(20), "examples": march(20)}
    assert "not a marker" in report.stale["u2i_crosses", march(20)[0]].why


def test_a_day_that_others_are_made_from_and_that_is_gone_is_to_be_built_again(world: MarkerWorld) -> None:
    shutil.rmtree(world.lake.day_dir("item_daily", march(9)[0]))
    shutil.rmtree(world.lake.day_dir("interactions", march(9)[0]))
    report = world.report()
    assert report.stale["interactions", march(9)[0]].why == "gone, and other days are made from it"
    assert report.stale["item_daily", march(9)[0]].why == "gone, and other days are made from it"
    assert report.days()["u2i_daily"] == march(9)


def test_days_whose_raw_files_are_gone_cannot_be_judged_and_are_left_alone(world: MarkerWorld) -> None:
    del world.raw[march(3)[0]]
    report = world.report()
    assert report.stale == {}
    assert report.unknown == dict.fromkeys(
        (("interactions", march(3)[0]), ("requests", march(3)[0])), "raw table interactions: no file of 2024-03-03"
    )


def test_a_day_that_cannot_be_built_again_takes_the_days_made_from_it_out(world: MarkerWorld) -> None:
    del world.raw[march(3)[0]]
    shutil.rmtree(world.lake.day_dir("interactions", march(3)[0]))
    report = world.report()
    assert report.stale == {}
    assert report.unknown["u2i_daily", march(3)[0]] == "its input interactions 2024-03-03 is not in the lake, and cannot be built"


def test_a_part_of_a_report_can_be_widened_by_the_inputs_it_waits_for(world: MarkerWorld) -> None:
    world.raw[march(12)[0]] = "with late rows"
    whole = world.report()
    part = whole.between(march(26)[0], march(26)[0])
    assert part.days() == {"examples": march(26)}
    widened = whole.with_inputs(part).days()
    assert widened["examples"] == march(26), "examples of other days are no input of it"
    assert widened["item_features"] == march(25)
    assert widened["item_daily"] == widened["interactions"] == march(12)
    assert "u2i_crosses" not in widened


def test_a_change_of_everything_is_a_few_lines_all_the_same(world: MarkerWorld) -> None:
    world.raw = dict.fromkeys(world.raw, "all delivered again")
    lines = summary(world.report())
    assert "interactions 2024-03-01, 2024-03-02, … 2024-03-30 (30 days): raw files changed: interactions of the day" in lines
    assert len(lines) <= 2 * len(TABLES)


def test_a_reason_names_the_days_of_an_input_if_they_are_few(world: MarkerWorld) -> None:
    world.commit("items", march(5)[0])
    assert {why for _, _, why in world.report().rows()} >= {"changed: items of 2024-03-05, 2024-03-10"}
    changed = Reason(kind="input", what="item_daily", days=tuple(str(day) for day in march(1, 9)))
    assert changed.said(march(9)[0]) == "changed: item_daily of several days"


def test_days_with_the_same_reasons_are_one_line(world: MarkerWorld) -> None:
    world.codes = {"user_state": "another"}
    assert summary(world.report()) == ["user_state 2024-03-30: the job's code changed"]
    assert refresh_command(world.report()) == "dig lake refresh --from 2024-03-30 --to 2024-03-30"


def conf_of(world: MarkerWorld) -> str:
    return str(Path(world.config.paths.home).parent / "conf" / "local.yaml")


def test_the_command_names_table_day_and_reason(
    world: MarkerWorld, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(stale, "survey", lambda config: world.report())
    assert cli.main(["lake", "stale", "--config", conf_of(world)]) == 0
    assert capsys.readouterr().out.strip() == "nothing is out of date"
    world.raw[march(12)[0]] = "with late rows"
    assert cli.main(["lake", "stale", "--config", conf_of(world), "--from", "2024-03-20"]) == 0
    out = capsys.readouterr().out
    assert "by way of item_daily" in out and "raw files" not in out
    assert "dig lake refresh --from 2024-03-20 --to 2024-03-30" in out
    assert cli.main(["lake", "stale", "--config", conf_of(world), "--to", "2024-03-12", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["stale"][0] == {
        "table": "interactions",
        "ds": "2024-03-12",
        "only_by_way": False,
        "reasons": [{"kind": "raw", "what": "interactions", "days": ["2024-03-12"]}],
    }
    assert found["unknown"] == []


def test_the_job_logs_the_days_and_the_command(
    world: MarkerWorld, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stale, "survey", lambda config: world.report())
    caplog.set_level(logging.INFO)
    arguments = ["--config", conf_of(world), "--date", "2024-03-27"]
    assert stale.run("stale", stale.main, arguments) == 0
    assert "nothing is out of date from 2024-03-27 on" in caplog.text
    world.raw[march(12)[0]] = "with late rows"
    assert stale.run("stale", stale.main, arguments) == 0
    assert "refresh them with: dig lake refresh --from 2024-03-30 --to 2024-03-30" in caplog.text


@pytest.mark.parametrize("command", ["stale", "refresh"])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--from", "yesterday"], "--from yesterday: expected a date, YYYY-MM-DD"),
        (["--from", "2024-03-02", "--to", "2024-03-01"], "--from must not be after --to"),
    ],
)
def test_days_that_are_none_are_refused(
    tiny_conf: Path, capsys: pytest.CaptureFixture[str], command: str, wrong: list[str], said: str
) -> None:
    assert cli.main(["lake", command, "--config", str(tiny_conf), *wrong]) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")
