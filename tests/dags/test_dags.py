"""The three DAGs: they parse fast and lightly, and have the tasks, links, retries and limits that they should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.dags.conftest import DAGS

CHAINS = {
    "dig_features": ["ingest", "item_features", "u2i_crosses", "examples"],
    "dig_retrain": ["train", "evaluate", "register", "promote"],
    "dig_publish": ["publish", "summary", "report"],
}
HEAVY = ("torch", "pyspark", "mlflow", "great_expectations", "pandas", "pyarrow", "sklearn")


def test_the_folder_holds_just_these_dags(dags: dict[str, Any]) -> None:
    assert set(dags) == set(CHAINS)


@pytest.mark.parametrize("dag_id", CHAINS)
def test_the_tasks_of_a_dag_follow_each_other(dags: dict[str, Any], dag_id: str) -> None:
    dag = dags[dag_id]
    assert [task.task_id for task in dag.topological_sort()] == CHAINS[dag_id]
    for before, after in zip(CHAINS[dag_id], CHAINS[dag_id][1:], strict=False):
        assert dag.get_task(before).downstream_task_ids == {after}


@pytest.mark.parametrize("dag_id", CHAINS)
def test_a_dag_runs_once_at_a_time_and_does_not_catch_up(dags: dict[str, Any], dag_id: str) -> None:
    dag = dags[dag_id]
    assert dag.max_active_runs == 1
    assert dag.catchup is False
    assert dag.doc_md
    assert dag.description
    assert "date" in dag.params


@pytest.mark.parametrize(("dag_id", "task_id"), [(dag_id, task_id) for dag_id, chain in CHAINS.items() for task_id in chain])
def test_a_task_has_an_owner_a_doc_and_a_time_limit(dags: dict[str, Any], dag_id: str, task_id: str) -> None:
    task = dags[dag_id].get_task(task_id)
    assert task.owner == "dig"
    assert task.doc_md
    assert timedelta() < task.execution_timeout <= timedelta(hours=12)


@pytest.mark.parametrize(("dag_id", "task_id"), [(dag_id, task_id) for dag_id, chain in CHAINS.items() for task_id in chain])
def test_a_task_backs_off_before_it_is_tried_again_and_the_gate_never_is(dags: dict[str, Any], dag_id: str, task_id: str) -> None:
    task = dags[dag_id].get_task(task_id)
    if task_id == "promote":
        assert task.retries == 0
    else:
        assert task.retries >= 1
        assert task.retry_exponential_backoff > 1
        assert task.retry_delay >= timedelta(minutes=1)
        assert task.max_retry_delay <= timedelta(hours=1)


def test_features_are_keyed_on_the_day_that_has_closed(dags: dict[str, Any]) -> None:
    timetable = dags["dig_features"].timetable
    assert type(timetable).__name__ == "CronPartitionTimetable"
    assert (timetable.key_format, timetable.run_offset) == ("%Y-%m-%d", -1)


@pytest.mark.parametrize(
    ("producer", "task_id", "uri", "consumer"),
    [
        ("dig_features", "examples", "dig://examples/", "dig_retrain"),
        ("dig_retrain", "promote", "dig://champion/", "dig_publish"),
    ],
)
def test_a_dag_waits_for_the_partitioned_asset_of_the_one_before(
    dags: dict[str, Any], producer: str, task_id: str, uri: str, consumer: str
) -> None:
    assert [asset.uri for asset in dags[producer].get_task(task_id).outlets] == [uri]
    timetable = dags[consumer].timetable
    assert type(timetable).__name__ == "PartitionedAssetTimetable"
    assert timetable.asset_condition.uri == uri


def test_only_the_last_word_of_each_dag_emits_an_asset(dags: dict[str, Any]) -> None:
    emitting = {task.task_id: [asset.uri for asset in task.outlets] for dag in dags.values() for task in dag.tasks if task.outlets}
    assert emitting == {"examples": ["dig://examples/"], "promote": ["dig://champion/"], "publish": ["dig://index/"]}


def test_every_task_starts_a_module_of_jobs(dags: dict[str, Any]) -> None:
    for dag in dags.values():
        for task in dag.tasks:
            assert (DAGS.parent / "jobs" / f"{task.job}.py").is_file()


def test_spark_tasks_submit_the_file_of_the_job_through_the_connection(dags: dict[str, Any]) -> None:
    for task in dags["dig_features"].tasks:
        assert type(task).__name__ == "SparkJobOperator"
        assert Path(task.application) == DAGS.parent / "jobs" / f"{task.job}.py"
        assert task._conn_id == "spark_default"
        assert task._driver_memory == "3g"


def test_training_goes_through_torchrun(dags: dict[str, Any]) -> None:
    assert dags["dig_retrain"].get_task("train").job == "launch"


def test_parsing_is_quick_and_loads_neither_torch_nor_spark(tmp_path: Path) -> None:
    script = f"""
import json, sys, time
from airflow.dag_processing.dagbag import DagBag
started = time.process_time()
bag = DagBag({str(DAGS)!r})
print(json.dumps({{
    "errors": bag.import_errors,
    "files": len(bag.dagbag_stats),
    "seconds": time.process_time() - started,
    "heavy": [name for name in {HEAVY!r} if name in sys.modules],
}}))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DIG_")}
    environment |= {"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, cwd=DAGS.parent)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["errors"] == {}
    assert found["files"] == 3
    assert found["seconds"] < 1.0
    assert found["heavy"] == []


def test_settings_that_cannot_be_used_are_the_import_error_of_the_dag(tmp_path: Path) -> None:
    script = f"""
from airflow.dag_processing.dagbag import DagBag
bag = DagBag({str(DAGS)!r})
print([error.splitlines()[-1] for error in bag.import_errors.values()])
"""
    environment = os.environ | {"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "DIG_TRAIN__EPOCHS": "many"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, cwd=DAGS.parent)
    assert "environment DIG_TRAIN__EPOCHS: train.epochs: Input should be a valid integer" in done.stdout
