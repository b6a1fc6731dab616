"""Which days the feature jobs build for a run, and what they are told of them."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from dags.lineage import UNDATED, of_features, of_model
from dags.spans import Span, feature_span
from jobs.config import CONF_DIR, Config, load
from jobs.dates import days_between
from jobs.lake import Lake
from jobs.reach import Reach
from jobs.train_inputs import lake_inputs
from tests.dags.contexts import Run, context
from tests.jobs import affinity_world as aw
from tests.jobs import train_world as tw

D = date(2017, 11, 15)


@pytest.fixture(scope="module")
def config() -> Config:
    return load(CONF_DIR / "local.yaml", environ={})


def test_a_daily_run_builds_its_own_day_alone_and_anew(config: Config) -> None:
    span = feature_span(context(Run("2017-11-15")), config)
    assert span == Span(events=D, catalogue=D, examples=D, last=D, missing=False)
    assert span.single


def test_a_run_that_wants_no_training_exports_no_arrays(dags: dict[str, Any], config: Config) -> None:
    span = feature_span(context(Run("2017-11-15", run_id="backfill__2017-11-15")), config)
    assert not span.arrays
    assert dags["dig_features"].get_task("u2i_crosses").arguments(span)[-1] == "--no-arrays"
    assert "cross_arrays" not in of_features("u2i_crosses", span, config).lines()[1]


def test_filling_covers_the_window_and_all_that_its_features_reach(config: Config) -> None:
    span = feature_span(context(Run(conf={"date": "2017-11-15", "fill": True})), config)
    window = config.run_window(D)
    assert span.examples == window.train_first
    assert span.catalogue == window.train_first - timedelta(days=1)
    assert span.events == window.events_first
    assert (span.last, span.missing) == (D, True)


def test_filling_from_a_day_reaches_back_from_that_day(config: Config) -> None:
    span = feature_span(context(Run(conf={"date": "2017-11-15", "from": "2017-11-10"})), config)
    assert span.examples == date(2017, 11, 10)
    assert span.events == date(2017, 11, 10) - timedelta(days=config.dataset.lookback_days)
    assert span.missing


def test_filling_stops_at_the_first_day_with_data(config: Config) -> None:
    span = feature_span(context(Run(conf={"date": "2017-02-10", "from": "2017-01-01"})), config)
    assert (span.events, span.catalogue, span.examples) == (date(2017, 1, 1), date(2017, 1, 1), date(2017, 1, 2))


def test_from_after_the_date_fails_at_once(config: Config) -> None:
    with pytest.raises(AirflowFailException, match="'from' 2017-11-16 lies after the run's date 2017-11-15"):
        feature_span(context(Run(conf={"date": "2017-11-15", "from": "2017-11-16"})), config)


def test_params_of_the_trigger_form_count_like_conf(config: Config) -> None:
    span = feature_span(context(Run("2017-11-15"), params={"fill": True, "from": None}), config)
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
    span = feature_span(context(Run(conf={"date": "2017-11-15", "fill": True})), config)
    days = {name: str(getattr(span, name)) for name in ("events", "catalogue", "examples", "last")}
    assert dags["dig_features"].get_task(task_id).arguments(span) == expected.format(**days).split()


@pytest.mark.slow
def test_the_options_of_the_spark_tasks_are_understood_by_their_jobs(dags: dict[str, Any], config: Config) -> None:
    span = feature_span(context(Run(conf={"date": "2017-11-15", "fill": True})), config)
    for task in [task for task in dags["dig_features"].tasks if task.task_id != "sweep"]:
        usage = subprocess.run([sys.executable, "-m", f"jobs.{task.job}", "--help"], capture_output=True, text=True, check=True).stdout
        for option in (*task.arguments(span), "--missing"):
            assert not option.startswith("--") or option in usage


def test_a_feature_task_says_which_days_it_reads_and_writes(config: Config) -> None:
    span = feature_span(context(Run("2017-11-15")), config)
    reads, writes = of_features("u2i_crosses", span, config).lines()
    assert reads.startswith("reads: lake/interactions (2017-11-15), lake/items (2017-11-15), lake/u2i_daily (2017-08-17..2017-11-15)")
    assert writes == "writes: lake/u2i_daily (2017-11-15), lake/u2i_crosses (2017-11-15), lake/cross_arrays (2017-11-15)"


def test_every_other_task_says_what_it_reads_and_writes(dags: dict[str, Any], config: Config) -> None:
    jobs = {task.job: task.arguments is None for dag in dags.values() for task in dag.tasks if type(task).__name__ == "JobOperator"}
    for job, dated in jobs.items():
        lineage = of_model(job, D, config) if dated else UNDATED[job]
        assert lineage.reads or lineage.writes, job
    assert "runs/2017-11-15/gate.json" in of_model("gate", D, config).lines()[1]


@pytest.mark.parametrize("affinity", [False, True])
def test_the_log_of_a_training_names_the_days_that_it_reads(tmp_path: Path, affinity: bool) -> None:
    config = aw.build(tmp_path) if affinity else tw.build(tmp_path)
    read = lake_inputs(config, aw.DAY).inputs
    found = {thing.name: thing.what.split("..") for thing in of_model("launch", aw.DAY, config).reads if thing.place == "lake"}
    assert found == {table: sorted({min(days), max(days)}) for table, days in read.items()}
    assert ("u2i_daily" in found) == affinity


WRITTEN = {
    "item_features": ("item_daily", "item_features"),
    "u2i_crosses": ("u2i_daily", "u2i_crosses", "cross_arrays"),
    "examples": ("examples", "user_state"),
}


@pytest.mark.parametrize("conf", [{}, {"fill": True}, {"from": "2017-11-10"}])
@pytest.mark.parametrize("job", WRITTEN)
def test_the_days_that_a_log_names_are_those_that_the_tables_are_made_from(
    config: Config, tmp_path: Path, job: str, conf: dict[str, Any]
) -> None:
    span = feature_span(context(Run(conf={"date": "2017-11-15", **conf})), config)
    lineage = of_features(job, span, config)
    written = {thing.name: thing.what for thing in lineage.writes}
    named = defaultdict(set)
    for thing in lineage.reads:
        named[thing.name].update(ends(thing.what))
    reach, needed = Reach(config, Lake(str(tmp_path))), defaultdict(set)
    for table in WRITTEN[job]:
        for day in days_between(*ends(written[table])):
            for source, days in reach.of(table, day).items():
                needed[source].update(days)
    assert bounds(needed) == bounds(named)


def bounds(days: dict[str, set[date]]) -> dict[str, tuple[date, date]]:
    return {name: (min(some), max(some)) for name, some in days.items()}


def ends(what: str) -> tuple[date, date]:
    first, _, last = what.partition("..")
    return date.fromisoformat(first), date.fromisoformat(last or first)
