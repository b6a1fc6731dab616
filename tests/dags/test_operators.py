"""What a task makes of a job's exit status and output, and what it announces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from dags import common, operators
from tests.dags.contexts import Run, context


def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, **more: Any) -> operators.JobOperator:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").touch()
    (tmp_path / "jobs" / "gate.py").write_text(body)
    monkeypatch.setattr(common, "PROJECT", tmp_path)
    monkeypatch.chdir(tmp_path)
    return operators.JobOperator(task_id="some", job="gate", outlets=[common.INDEX], **more)


ARGUMENTS = "import sys, pathlib; pathlib.Path('told').write_text(' '.join(sys.argv[1:])); print('a'); print('b')"


def test_a_job_is_given_the_date_and_its_asset_is_announced_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = job(tmp_path, monkeypatch, ARGUMENTS, more=lambda context: ["--who", "ann"])
    told = context(Run("2017-11-15"))
    assert operator.execute(told) == "b"
    assert (tmp_path / "told").read_text() == "--date 2017-11-15 --who ann"
    event = told["outlet_events"][common.INDEX]
    assert (event.keys, event.extra) == (["2017-11-15"], {"retrain": True})


def test_the_log_begins_with_what_is_read_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    operator = job(tmp_path, monkeypatch, "")
    operator.execute(context(Run("2017-11-15")))
    told = [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines() if "[info" in line]
    assert told[0].startswith("reads: runs/2017-11-15/register.json")
    assert told[1].startswith("writes: ")


def test_openlineage_is_told_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = job(tmp_path, monkeypatch, "")
    operator.execute(context(Run("2017-11-15")))
    told = operator.get_openlineage_facets_on_complete(None)
    assert told is not None
    assert ("dig://runs", "2017-11-15/evaluate.json") in [(data.namespace, data.name) for data in told.inputs]
    assert ("dig://models", "dig") in [(data.namespace, data.name) for data in told.outputs]


def test_an_explained_failure_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = job(tmp_path, monkeypatch, "import sys; print('no rows'); sys.exit(2)")
    told = context(Run("2017-11-15"))
    with pytest.raises(AirflowFailException, match="ended with exit status 2: no rows"):
        operator.execute(told)
    assert not told["outlet_events"]


@pytest.mark.parametrize("status", [1, 137])
def test_another_failure_may_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    operator = job(tmp_path, monkeypatch, f"raise SystemExit({status})")
    with pytest.raises(AirflowException) as caught:
        operator.execute(context(Run("2017-11-15")))
    assert not isinstance(caught.value, AirflowFailException)


def test_a_date_that_cannot_be_used_fails_at_once_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dags: dict[str, Any]
) -> None:
    operator = job(tmp_path, monkeypatch, ARGUMENTS)
    for task, day in ((operator, "2017-01-05"), (dags["dig_features"].get_task("ingest"), "2018-01-01")):
        with pytest.raises(AirflowFailException, match=day):
            task.execute(context(Run(day)))
    assert not (tmp_path / "told").exists()


def test_a_guarded_task_starts_nothing_after_a_backfill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    operator = job(tmp_path, monkeypatch, ARGUMENTS, guarded=True)
    event = SimpleNamespace(source_run_id="backfill__x", extra={"retrain": False})
    with pytest.raises(AirflowSkipException):
        operator.execute(context(Run("2017-11-15"), triggering_asset_events={common.EXAMPLES: [event]}))
    assert not (tmp_path / "told").exists()


@pytest.mark.parametrize(("conf", "quick"), [({}, True), ({"from": "2017-11-10"}, False)])
def test_a_single_day_is_submitted_to_a_jvm_that_compiles_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dags: dict[str, Any], conf: dict[str, str], quick: bool
) -> None:
    (tmp_path / "spark-submit").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/told\n')
    (tmp_path / "spark-submit").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", '{"conn_type": "spark", "host": "local[2]"}')
    task = dags["dig_features"].get_task("ingest").prepare_for_execution()
    task.execute(context(Run("2017-11-15", conf=conf)))
    told = (tmp_path / "told").read_text()
    assert "--master local[2]" in told and "ingest.py --from " in told
    assert (f"--conf {operators.JAVA_OPTIONS}=-XX:TieredStopAtLevel=1" in told) == quick
