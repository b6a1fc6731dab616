"""The whole path through the real DAGs on a small data set: refused, promoted, run again, and the day after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from tiny_shop import write_tiny_place

from jobs import registry
from jobs.config import Config, load
from jobs.lake import Lake

PROJECT = Path(__file__).resolve().parents[2]
D = date(2024, 3, 28)
NEXT = D + timedelta(days=1)
TABLES = ("interactions", "requests", "offers", "items", "users", "item_daily", "item_features", "u2i_daily", "u2i_crosses", "examples")
STAGES = [
    *("ingest", "item_features", "u2i_crosses", "examples", "sweep"),
    *("train", "evaluate", "register", "gate"),
    *("index", "promote", "summary", "report"),
]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Outcome:
    """A finished run and the state it left."""

    status: int
    told: str
    records: dict[str, Any]
    markers: dict[tuple[str, str], str]
    champion: registry.ModelRef | None
    generation: str | None


@dataclass(frozen=True)
class World:
    conf: Path
    config: Config

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DIG_", "AIRFLOW"))}
        environment = kept | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
        full = [sys.executable, "-m", *command, "--config", str(self.conf)]
        return subprocess.run(full, cwd=self.conf.parent, env=environment, capture_output=True, text=True, check=False)

    def run(self, day: date, *options: str) -> Outcome:
        done = self.call("dags.run", "--date", day.isoformat(), *options)
        folder = Path(self.config.paths.at("runs")) / day.isoformat()
        lake = Lake(self.config.paths.at("lake"))
        current = Path(self.config.paths.at("index")) / "CURRENT"
        return Outcome(
            status=done.returncode,
            told=done.stderr,
            records={path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")},
            markers={(table, ds.isoformat()): lake.require(table, [ds])[0].content for table in TABLES for ds in lake.days(table)},
            champion=registry.find(self.config, registry.CHAMPION),
            generation=current.read_text().strip() if current.is_file() else None,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> World:
    folder = tmp_path_factory.mktemp("retrain")
    conf = write_tiny_place(folder, tiny_data)
    return World(conf, load(conf, environ={}))


@pytest.fixture(scope="module")
def refused(world: World) -> Outcome:
    """The first run ever, against a gate that nothing passes."""
    return world.run(D, "--set", "gate.min_auc=1.01")


@pytest.fixture(scope="module")
def first(world: World, refused: Outcome) -> Outcome:
    """The same date, with a gate that can be passed."""
    return world.run(D)


@pytest.fixture(scope="module")
def again(world: World, first: Outcome) -> Outcome:
    return world.run(D)


@pytest.fixture(scope="module")
def next_day(world: World, again: Outcome) -> Outcome:
    return world.run(NEXT)


def test_a_refused_model_fails_the_run_and_moves_nothing(refused: Outcome) -> None:
    assert refused.status == 1
    assert refused.told.startswith("task gate of dig_retrain failed: ")
    assert "1.01" in refused.told
    assert refused.told.rstrip().endswith("gate.log")
    assert refused.champion is None
    assert refused.generation is None
    assert not {"index", "promote", "summary"} & set(refused.records)


def test_the_first_run_fills_the_window_of_the_date(world: World, refused: Outcome) -> None:
    window = world.config.run_window(D)
    built = {table: [ds for name, ds in refused.markers if name == table] for table in TABLES}
    assert built["examples"] == [day.isoformat() for day in window.examples()]
    assert set(built["interactions"]) == {day.isoformat() for day in window.events()}


def test_the_run_ends_with_champion_index_and_report(world: World, first: Outcome) -> None:
    assert (first.status, first.told) == (0, "")
    assert first.champion is not None
    assert first.champion.date == D
    assert first.generation is not None
    assert first.generation.startswith(f"{D}-v{first.champion.version}-")
    folder = Path(world.config.paths.at("runs")) / D.isoformat()
    assert (folder / "report.html").stat().st_size > 10_000
    assert sorted(path.stem for path in (folder / "logs").glob("*.log")) == sorted([*STAGES, "airflow"])


def test_the_summary_holds_the_keys_that_were_promised(first: Outcome) -> None:
    summary = first.records["summary"]
    keys = ("date", "dataset", "examples", "ranking", "retrieval", "sid", "model", "index", "seconds", "peak_rss_bytes")
    assert set(keys) <= set(summary)
    assert set(summary["ranking"]) >= {"auc", "auc_ci", "gauc", "logloss", "calibration"}
    for variant in ("all", "new"):
        assert set(summary["retrieval"][variant]) >= {"recall@10", "recall@50", "ndcg@10", "popularity", "own_frequency"}
    assert set(summary["sid"]) >= {"collision_rate", "levels", "churn"}
    assert summary["index"]["generation"] == first.generation
    assert summary["examples"] > 0


def test_the_stages_and_their_share_of_airflow_are_recorded(first: Outcome) -> None:
    seconds = first.records["stages"]["seconds"]
    assert set(seconds) == {*STAGES, "airflow"}
    assert all(value > 0 for value in seconds.values())
    assert first.records["stages"]["peak_rss_bytes"] > 500 << 20


def test_progress_was_told_for_every_stage(world: World, first: Outcome) -> None:
    lines = (Path(world.config.paths.at("runs")) / D.isoformat() / "progress.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["stage"] for event in events if event.get("event") == "finish"] == [*STAGES, "airflow"]


def test_the_same_date_again_changes_nothing(first: Outcome, again: Outcome) -> None:
    assert (again.status, again.told) == (0, "")
    assert again.markers == first.markers
    assert again.champion is not None
    assert first.champion is not None
    assert again.champion.version == first.champion.version
    assert again.generation == first.generation
    for figure in ("ranking", "retrieval", "sid"):
        assert again.records["summary"][figure] == first.records["summary"][figure]


def test_the_next_date_starts_from_the_champion_and_replaces_it(world: World, again: Outcome, next_day: Outcome) -> None:
    assert (next_day.status, next_day.told) == (0, "")
    assert again.champion is not None
    assert next_day.champion is not None
    assert next_day.records["train"]["ancestor"] == again.champion.version
    assert next_day.champion.version != again.champion.version
    previous = registry.find(world.config, registry.PREVIOUS)
    assert previous is not None
    assert previous.version == again.champion.version
    assert next_day.records["summary"]["sid"]["churn"] == 0.0, "known items keep their SIDs"
    assert next_day.generation != again.generation


def test_the_next_date_leaves_the_days_before_it_alone(again: Outcome, next_day: Outcome) -> None:
    assert {key: content for key, content in next_day.markers.items() if key in again.markers} == again.markers
    assert {ds for _, ds in set(next_day.markers) - set(again.markers)} == {NEXT.isoformat()}


def test_the_index_is_sound_and_answers(world: World, next_day: Outcome) -> None:
    assert next_day.generation is not None
    verified = world.call("jobs.cli", "index", "verify")
    assert verified.returncode == 0, verified.stderr
    assert next_day.generation in verified.stdout
    answered = world.call("jobs.cli", "recommend", "--user", "u1", "-k", "3")
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout.count("Item ") >= 3
    ranked = world.call("jobs.cli", "rank", "--user", "u1", "--items", "i2,i4,i6")
    assert ranked.returncode == 0, ranked.stderr
    assert all(f"i{i}" in ranked.stdout for i in (2, 4, 6))


def test_an_unknown_user_is_answered_and_an_unknown_item_is_refused(world: World, next_day: Outcome) -> None:
    answered = world.call("jobs.cli", "recommend", "--user", "nobody", "-k", "3")
    assert answered.returncode == 0, answered.stderr
    assert "no history of this user" in answered.stdout
    refused = world.call("jobs.cli", "rank", "--user", "u1", "--items", "i2,nothing")
    assert refused.returncode == 2
    assert "not in the catalogue" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_two_generations_can_be_compared(world: World, again: Outcome, next_day: Outcome) -> None:
    done = world.call("jobs.cli", "index", "diff", str(again.generation), str(next_day.generation), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["common"] > 0
