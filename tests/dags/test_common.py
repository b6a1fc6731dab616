"""Which date a run is for, which days the feature jobs build, and what a task makes of a job's exit status."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from dags import common
from jobs.config import CONF_DIR, Config, load

D = date(2017, 11, 15)


@dataclass
class Run:
    """What a task is told of its run."""

    partition_key: str | None = None
    conf: Mapping[str, Any] = field(default_factory=dict)


def context(run: Run | None = None, **more: Any) -> dict[str, Any]:
    return {"dag_run": run or Run(), "params": {}, **more}


@pytest.fixture(scope="module")
def config() -> Config:
    return load(CONF_DIR / "local.yaml", environ={})


def test_the_partition_key_wins_over_conf_over_params_over_the_logical_date() -> None:
    run = Run("2017-11-01", {"date": "2017-11-02"})
    told = context(run, params={"date": "2017-11-03"}, logical_date=datetime(2017, 11, 4, tzinfo=UTC))
    assert common.run_date(told) == date(2017, 11, 1)
    run.partition_key = None
    assert common.run_date(told) == date(2017, 11, 2)
    run.conf = {}
    assert common.run_date(told) == date(2017, 11, 3)
    told["params"] = {"date": None}
    assert common.run_date(told) == date(2017, 11, 4)


def test_a_run_without_any_date_says_how_to_give_one() -> None:
    with pytest.raises(AirflowFailException, match="this run has no date: trigger it with --conf"):
        common.run_date(context())


@pytest.mark.parametrize("wrong", ["15.11.2017", "2017-13-01", "today", "2017-11-15T00:00:00"])
def test_a_key_that_is_no_date_fails_at_once(wrong: str) -> None:
    with pytest.raises(AirflowFailException, match="expected a date, YYYY-MM-DD"):
        common.run_date(context(Run(wrong)))


def test_a_daily_run_builds_its_own_day_alone_and_anew(config: Config) -> None:
    span = common.feature_span(context(Run("2017-11-15")), config)
    assert span == common.Span(events=D, catalogue=D, examples=D, last=D, missing=False)


def test_filling_covers_the_window_and_all_that_its_features_reach(config: Config) -> None:
    span = common.feature_span(context(Run(conf={"date": "2017-11-15", "fill": True})), config)
    window = config.run_window(D)
    assert span.examples == window.train_first
    assert span.catalogue == window.train_first - timedelta(days=1)
    assert span.events == window.events_first
    assert (span.last, span.missing) == (D, True)


def test_filling_from_a_day_reaches_back_from_that_day(config: Config) -> None:
    span = common.feature_span(context(Run(conf={"date": "2017-11-15", "from": "2017-11-10"})), config)
    assert span.examples == date(2017, 11, 10)
    assert span.events == date(2017, 11, 10) - timedelta(days=config.dataset.lookback_days)
    assert span.missing


def test_filling_stops_at_the_first_day_with_data(config: Config) -> None:
    span = common.feature_span(context(Run(conf={"date": "2017-02-10", "from": "2017-01-01"})), config)
    assert (span.events, span.catalogue, span.examples) == (date(2017, 1, 1), date(2017, 1, 1), date(2017, 1, 2))


def test_from_after_the_date_fails_at_once(config: Config) -> None:
    with pytest.raises(AirflowFailException, match="'from' 2017-11-16 lies after the run's date 2017-11-15"):
        common.feature_span(context(Run(conf={"date": "2017-11-15", "from": "2017-11-16"})), config)


def test_params_of_the_trigger_form_count_like_conf(config: Config) -> None:
    span = common.feature_span(context(Run("2017-11-15"), params={"fill": True, "from": None}), config)
    assert span.missing


@pytest.mark.parametrize(
    ("task_id", "expected"),
    [
        ("ingest", "--from {events} --to {last} --offers-from {examples}"),
        ("item_features", "--from {catalogue} --to {last} --events-from {events}"),
        ("u2i_crosses", "--from {examples} --to {last} --events-from {events}"),
        ("examples", "--from {examples} --to {last}"),
    ],
)
def test_each_spark_job_is_given_its_own_days(dags: dict[str, Any], config: Config, task_id: str, expected: str) -> None:
    span = common.feature_span(context(Run(conf={"date": "2017-11-15", "fill": True})), config)
    days = {name: str(getattr(span, name)) for name in ("events", "catalogue", "examples", "last")}
    assert dags["dig_features"].get_task(task_id).arguments(span) == expected.format(**days).split()


@pytest.mark.slow
def test_the_options_of_the_spark_tasks_are_understood_by_their_jobs(dags: dict[str, Any], config: Config) -> None:
    span = common.feature_span(context(Run(conf={"date": "2017-11-15", "fill": True})), config)
    for task in dags["dig_features"].tasks:
        usage = subprocess.run([sys.executable, "-m", f"jobs.{task.job}", "--help"], capture_output=True, text=True, check=True).stdout
        for option in (*task.arguments(span), "--missing"):
            assert not option.startswith("--") or option in usage


def event(run_id: str | None) -> Any:
    return SimpleNamespace(source_run_id=run_id)


def test_a_run_that_a_backfill_set_off_is_known_as_one() -> None:
    assert common.is_backfill(context(triggering_asset_events={common.EXAMPLES: [event("backfill__2017-11-15__x")]}))
    assert not common.is_backfill(context(triggering_asset_events={common.EXAMPLES: [event("scheduled__2017-11-15"), event(None)]}))
    assert not common.is_backfill(context())


def test_training_is_skipped_after_a_backfill_so_that_the_champion_stays(dags: dict[str, Any]) -> None:
    train = dags["dig_retrain"].get_task("train")
    with pytest.raises(AirflowSkipException, match="a backfill set this run off"):
        train.execute(context(Run("2017-11-15"), triggering_asset_events={common.EXAMPLES: [event("backfill__x")]}))


class Outlets(dict[Any, Any]):
    """Asset events that a task announces."""

    def __missing__(self, asset: Any) -> Any:
        self[asset] = SimpleNamespace(keys=[])
        self[asset].add_partitions = self[asset].keys.append
        return self[asset]


def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> common.JobOperator:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").touch()
    (tmp_path / "jobs" / "some.py").write_text(body)
    monkeypatch.setattr(common, "PROJECT", tmp_path)
    monkeypatch.chdir(tmp_path)
    return common.JobOperator(task_id="some", job="some", outlets=[common.INDEX])


def test_a_job_is_given_the_date_and_its_asset_is_announced_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = job(tmp_path, monkeypatch, "import sys, pathlib; pathlib.Path('told').write_text(' '.join(sys.argv[1:]))")
    outlets = Outlets()
    operator.execute(context(Run("2017-11-15"), outlet_events=outlets))
    assert (tmp_path / "told").read_text() == "--date 2017-11-15"
    assert outlets[common.INDEX].keys == ["2017-11-15"]


def test_an_explained_failure_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = job(tmp_path, monkeypatch, "import sys; print('no rows'); sys.exit(2)")
    outlets = Outlets()
    with pytest.raises(AirflowFailException, match="ended with exit status 2: no rows"):
        operator.execute(context(Run("2017-11-15"), outlet_events=outlets))
    assert not outlets


def test_another_failure_may_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = job(tmp_path, monkeypatch, "raise SystemExit(1)")
    with pytest.raises(AirflowException) as caught:
        operator.execute(context(Run("2017-11-15"), outlet_events=Outlets()))
    assert not isinstance(caught.value, AirflowFailException)
