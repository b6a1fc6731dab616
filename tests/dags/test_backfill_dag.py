"""``dig_backfill``: which days it builds, what it refuses before Spark starts, and that it trains only when asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from dags import backfill, common, operators
from jobs.config import CONF_DIR, Config, load
from tests.dags import contexts
from tests.dags.conftest import DAGS

DAYS = {"from": "2017-11-01", "to": "2017-11-14"}


def context(conf: Mapping[str, Any] | None = None, params: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return contexts.context(contexts.Run(conf=conf or {}), params=params or {}, **more)


@pytest.fixture(scope="module")
def config() -> Config:
    return load(CONF_DIR / "local.yaml", environ={})


@pytest.mark.parametrize("told", [{"conf": DAYS}, {"params": DAYS}, {"conf": DAYS, "params": {"from": "2017-01-01", "to": "2017-01-02"}}])
def test_the_days_are_those_of_the_conf_over_those_of_the_params(config: Config, told: dict[str, Any]) -> None:
    span = backfill.range_of(context(**told), config)
    assert (span.examples, span.last, span.missing) == (date(2017, 11, 1), date(2017, 11, 14), True)


def test_the_job_is_given_the_range_and_whether_to_build_it_anew(dags: dict[str, Any], config: Config) -> None:
    task = dags["dig_backfill"].get_task("features")
    assert (task.job, Path(task.application)) == ("backfill", DAGS.parent / "jobs" / "backfill.py")
    span = backfill.range_of(context(DAYS), config)
    assert task.arguments(span) == ["--from", "2017-11-01", "--to", "2017-11-14"]
    span = backfill.range_of(context(DAYS | {"anew": True}), config)
    assert task.arguments(span) == ["--from", "2017-11-01", "--to", "2017-11-14", "--anew"]
    assert not span.missing


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        ({"from": "2017-11-15", "to": "2017-11-14"}, "from 2017-11-15 to 2017-11-14: the range is empty"),
        (
            {"from": "2016-12-31", "to": "2017-01-05"},
            "date 2016-12-31 is outside data set 'complete_journey', whose days run from 2017-01-01",
        ),
        ({"from": "2017-12-30", "to": "2018-01-01"}, "date 2018-01-01 is outside data set"),
        ({"from": "2017-01-01", "to": "2017-01-01"}, "the earliest day possible is 2017-01-02"),
        ({"from": "1.11.2017", "to": "2017-11-14"}, "'from' '1.11.2017': expected a date, YYYY-MM-DD"),
        ({"from": "2017-11-01"}, "'to' None: expected a date, YYYY-MM-DD"),
    ],
)
def test_days_that_cannot_be_built_fail_at_once_and_before_spark_starts(
    dags: dict[str, Any], monkeypatch: pytest.MonkeyPatch, conf: dict[str, str], said: str
) -> None:
    task = dags["dig_backfill"].get_task("features")
    submitted: list[Any] = []
    monkeypatch.setattr(type(task).__mro__[1], "execute", lambda self, told: submitted.append(told))
    monkeypatch.setattr(operators, "settings", lambda: load(CONF_DIR / "local.yaml", environ={}))
    with pytest.raises(AirflowFailException) as caught:
        task.execute(context(conf))
    assert said in str(caught.value)
    assert submitted == []
    task.execute(context(DAYS))
    assert len(submitted) == 1, "days that can be built are submitted"


def test_without_retrain_nothing_is_emitted_and_the_reason_says_so(dags: dict[str, Any]) -> None:
    task = dags["dig_backfill"].get_task("retrain")
    assert [asset.uri for asset in task.outlets] == ["dig://examples/"]
    for conf in (DAYS, DAYS | {"retrain": False}):
        with pytest.raises(AirflowSkipException, match="retrain was not asked for: the champion and the index stay as they are"):
            task.execute(told := context(conf))
        assert told["ti"].pushed == {"skipped": backfill.NOT_ASKED}


def test_with_retrain_the_examples_of_the_last_day_are_announced(dags: dict[str, Any]) -> None:
    told = context(DAYS | {"retrain": True})
    dags["dig_backfill"].get_task("retrain").execute(told)
    event = told["outlet_events"][common.EXAMPLES]
    assert (event.keys, event.extra) == (["2017-11-14"], {"retrain": True})


def test_the_report_is_about_the_days_from_the_first_one_on_and_does_not_wait_for_a_training(dags: dict[str, Any]) -> None:
    dag = dags["dig_backfill"]
    assert dag.get_task("features").downstream_task_ids == {"retrain", "stale"}
    task = dag.get_task("stale")
    assert (task.job, task.arguments(context(DAYS))) == ("stale", ["--date", "2017-11-01"])


def test_the_dag_is_started_by_people_alone_one_run_at_a_time(dags: dict[str, Any]) -> None:
    dag = dags["dig_backfill"]
    assert not dag.timetable.can_be_scheduled
    assert (dag.max_active_runs, dag.catchup) == (1, False)
    assert set(dag.params) == {"from", "to", "retrain", "anew"}
    assert all(task.doc_md and task.execution_timeout and task.owner == "dig" for task in dag.tasks)


RUN = """
import json, sys
from datetime import UTC, datetime
from airflow.utils.db import upgradedb
upgradedb()
from dags.run import load_dags
dag = load_dags()["dig_backfill"]
for task in dag.tasks:
    task.retries = 0
run = dag.test(logical_date=datetime(2024, 3, 20, tzinfo=UTC), run_conf=json.loads(sys.argv[1]))
from airflow.models.asset import AssetEvent
from airflow.utils.session import create_session
with create_session() as session:
    events = [(event.asset.uri, event.partition_key) for event in session.query(AssetEvent).all()]
states = {one.task_id: str(one.state) for one in run.get_task_instances()}
print("FOUND " + json.dumps({"states": states, "events": events}))
"""


@pytest.mark.slow
def test_a_real_run_builds_the_range_emits_nothing_unless_asked_and_reports(tiny_conf: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DIG_", "AIRFLOW_"))} | {
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path}/airflow.db",
        "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": "local[2]"}),
        "DIG_CONFIG": str(tiny_conf),
        "DIG_CHECKS__ENABLED": "false",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(DAGS.parent),
    }

    def run(conf: dict[str, Any]) -> tuple[dict[str, Any], str]:
        command = [sys.executable, "-c", RUN, json.dumps(conf)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        line = next((line for line in done.stdout.splitlines() if line.startswith("FOUND ")), None)
        assert line, done.stdout + done.stderr
        return json.loads(line.removeprefix("FOUND ")), done.stdout + done.stderr

    found, told = run({"from": "2024-03-09", "to": "2024-03-10"})
    assert found == {"states": {"features": "success", "retrain": "skipped", "stale": "success", "sweep": "success"}, "events": []}
    assert backfill.NOT_ASKED in told
    assert "nothing is out of date from 2024-03-09 on" in told
    found, told = run({"from": "2024-03-09", "to": "2024-03-10", "retrain": True})
    assert found["states"] == dict.fromkeys(("features", "retrain", "stale", "sweep"), "success")
    assert found["events"] == [["dig://examples/", "2024-03-10"]]
    assert "everything was up to date" in told
    found, told = run({"from": "2024-03-10", "to": "2024-03-31"})
    assert found["states"]["features"] == "failed"
    assert "date 2024-03-31 is outside data set 'tiny'" in told
