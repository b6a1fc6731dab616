"""The embedded run: order of the DAGs, logs a task, reasons of failures, exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dags import run
from dags.recorder import reason_of
from jobs.config import CONF_DIR, load
from jobs.files import exclusive
from tests.dags.conftest import DAGS


def test_the_dags_are_run_in_the_order_of_their_assets(dags: dict[str, Any]) -> None:
    shuffled = {name: dags[name] for name in ("dig_publish", "dig_features", "dig_retrain")}
    assert [dag.dag_id for dag in run.in_order(shuffled)] == ["dig_features", "dig_retrain", "dig_publish"]


def test_a_dag_that_only_people_start_is_no_part_of_a_run(dags: dict[str, Any]) -> None:
    assert "dig_backfill" in dags
    assert [dag.dag_id for dag in run.in_order(dags)] == ["dig_features", "dig_retrain", "dig_publish"]


def test_a_dag_whose_asset_nobody_emits_is_left_out(dags: dict[str, Any]) -> None:
    assert [dag.dag_id for dag in run.in_order({"dig_publish": dags["dig_publish"]})] == []


def test_a_dag_waits_for_all_of_its_assets() -> None:
    both = SimpleNamespace(objects=[SimpleNamespace(uri="dig://a"), SimpleNamespace(uri="dig://b")])
    assert run.awaited(SimpleNamespace(timetable=SimpleNamespace(asset_condition=both))) == {"dig://a", "dig://b"}
    assert run.awaited(SimpleNamespace(timetable=SimpleNamespace())) == set()


AT = "2026-11-22T02:33:49.081733Z INFO "


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], ""),
        ([f"{AT}2026-11-22 02:33:49,081 INFO jobs.ingest: fine"], ""),
        ([f"{AT}2026-11-22 02:33:49,081 ERROR jobs.ingest: no rows", f"{AT}Command exited with return code 2"], "no rows"),
        (
            [f"{AT}2026-11-22 02:33:49,081 ERROR jobs.x: a gate failed", f"{AT}ds 2017-11-15", f"{AT}::endgroup::"],
            "a gate failed\nds 2017-11-15",
        ),
        (
            [f"{AT}2026-11-22 02:33:49,081 ERROR jobs.x: a gate failed", f"{AT}Updating Fields field_count=15 correlation_id=1 ti_id=2"],
            "a gate failed",
        ),
        (
            [f"{AT}2026-11-22 02:33:49,081 ERROR jobs.x: one", f"{AT}2026-11-22 02:33:50,081 INFO jobs.x: two", f"{AT}three"],
            "one",
        ),
        ([f"{AT}Traceback (most recent call last):", f"{AT}  File x", f"{AT}KeyError: 'a'"], "KeyError: 'a'"),
        (
            [f"{AT}[rank1]: ValueError: bad", f"{AT}torch.distributed.elastic.multiprocessing.errors.ChildFailedError:"],
            "[rank1]: ValueError: bad",
        ),
        ([f"{AT}pyspark.errors.exceptions.captured.AnalysisException: no column", f"{AT}at org.apache"], None),
        (["airflow.sdk.exceptions.AirflowFailException: jobs.x ended"], ""),
    ],
)
def test_the_reason_of_a_failure_is_what_the_job_said_last(tmp_path: Path, lines: list[str], reason: str | None) -> None:
    log = tmp_path / "x.log"
    log.write_text("\n".join(lines))
    assert reason_of(log) == ("pyspark.errors.exceptions.captured.AnalysisException: no column" if reason is None else reason)


def test_a_log_that_is_not_there_gives_no_reason(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "none.log") == ""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DIG_", "AIRFLOW"))}
    return kept | {"PYTHONPATH": str(DAGS.parent)}


def started(tmp_path: Path, environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dags.run", "--set", f"paths.home={tmp_path}/home", *options]
    return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)


def test_settings_and_dates_that_cannot_be_used_are_one_line_and_status_2(tmp_path: Path, environment: dict[str, str]) -> None:
    done = started(tmp_path, environment, "--date", "2018-01-01")
    assert done.returncode == 2
    assert done.stderr == "date 2018-01-01 is outside data set 'complete_journey', whose days run from 2017-01-01 to 2017-12-31\n"
    done = started(tmp_path, environment, "--set", "train.lrr=1")
    assert (done.returncode, done.stderr) == (2, "--set train.lrr: train.lrr: unknown key; did you mean 'lr'?\n")
    assert not (tmp_path / "home").exists()


def test_a_second_run_in_the_same_home_is_refused(tmp_path: Path, environment: dict[str, str]) -> None:
    with exclusive(tmp_path / "home" / "airflow" / "run.lock"):
        done = started(tmp_path, environment, "--date", "2017-11-15")
    assert done.returncode == 2
    assert "run.lock: held by another run" in done.stderr
    assert not (tmp_path / "home" / "runs").exists()


def test_overrides_reach_the_jobs_as_they_were_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = f"paths.home={tmp_path}"
    sets = [
        home,
        "dataset.sample_users=0.25",
        "train.lr=2e-3",
        "mlflow.tracking_uri=http://m?a=b",
        "spark.conf={spark.sql.adaptive.enabled: 'false'}",
    ]
    before = dict(os.environ)
    config = load(CONF_DIR / "local.yaml", sets, {})
    try:
        run.set_environment(config, config.dataset.default_date, CONF_DIR / "local.yaml", sets)
        assert load() == config
        assert json.loads(os.environ["DIG_SET"]) == sets
        connection = json.loads(os.environ["AIRFLOW_CONN_SPARK_DEFAULT"])
        assert connection == {"conn_type": "spark", "host": "local[*]"}
        assert (tmp_path / "airflow").is_dir()
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.slow
def test_a_failed_task_stops_the_run_and_is_named_with_reason_and_log(tmp_path: Path, environment: dict[str, str]) -> None:
    broken = tmp_path / "raw"
    broken.mkdir()
    done = started(
        tmp_path, environment, "--date", "2017-11-15", "--set", f"dataset.source.path={broken}", "--set", "spark.driver_memory=1g"
    )
    folder = tmp_path / "home" / "runs" / "2017-11-15"
    assert done.returncode == 1
    assert done.stdout == ""
    first, last = done.stderr.splitlines()[0], done.stderr.splitlines()[-1]
    assert first.startswith("task ingest of dig_features failed: ")
    assert str(broken) in done.stderr
    assert last == f"log: {folder / 'logs' / 'ingest.log'}"
    events = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    # The sweep runs all the same.
    assert [event["event"] for event in events if event.get("event")] == ["plan", "start", "fail", "start", "finish", "fail"]
    stages = json.loads((folder / "stages.json").read_text())
    assert set(stages["seconds"]) == {"ingest", "sweep", "airflow"}
    assert stages["peak_rss_bytes"] > 100 << 20
