"""``dig index diff``: a table for people, JSON for programs, buckets in words where the lake has them."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import synthetic

from dig_models.features import bucket_of
from jobs import cli
from jobs.config import Config
from jobs.field_values import field_values
from jobs.lake import Lake
from tests.jobs import release_world as rw


def snapshot(config: Config, columns: dict[str, list[str | None]]) -> None:
    with Lake(config.paths.at("lake")).stage_files("items", synthetic.DAY) as stage:
        table = pa.table({"item_id": [f"i{n}" for n in range(len(next(iter(columns.values()))))], **columns})
        pq.write_table(table, stage.path / "part-0.parquet")
        stage.commit(rows=len(table), job="test", code="", config="", inputs={})


def test_buckets_have_the_words_of_the_newest_snapshot(tmp_path: Path) -> None:
    config = rw.settings(tmp_path)
    assert field_values(config, ["department"], synthetic.DAY) == {}, "no snapshot yet"
    names = [f"D{n}" for n in range(200)]
    snapshot(config, {"department": [*names, None, ""]})
    assert field_values(config, ["department"], synthetic.DAY - timedelta(days=1)) == {}, (
        "a later day's words say nothing of an earlier day"
    )
    found = field_values(config, ["department", "brand", "no field"], synthetic.DAY)
    assert list(found) == ["department"], "the snapshot has no brand"
    for name in names:
        assert name in found["department"][bucket_of(name, 64)].split(" / ")
    assert 0 not in found["department"] and len(found["department"]) <= 63


@pytest.mark.slow
def test_the_command_shows_levels_postings_and_departments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    world = rw.make(tmp_path, versions=2)
    snapshot(world.config, {"department": [f"D{n}" for n in range(200)]})
    old, new = (pair.generation for pair in world.pairs)
    command = ["index", "diff", str(old), str(new), "--set", f"paths.home={tmp_path}"]
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["common"] == len(rw.ITEMS) and sum(found["moved"].values()) > 0
    assert set(found["postings"]) == {"sids", "changed", "emptied", "opened"}
    assert set(found["groups"]) == {"department", "brand"}
    assert sum(group["common"] for group in found["groups"]["department"]) == found["common"]
    assert any(group["value"].startswith("D") for group in found["groups"]["department"])
    assert all(group["value"].startswith("bucket ") for group in found["groups"]["brand"])

    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    for expected in (
        "moved at level 1",
        "postings",
        "emptied",
        "by department (10 of",
        "by brand",
        found["groups"]["department"][0]["value"],
    ):
        assert expected in shown, expected
    assert cli.main([*command, "--by", "category", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["groups"]) == {"category"}
    assert cli.main([*command, "--by", "colour"]) == 2
    assert "'colour' is no categorical item field" in capsys.readouterr().err
