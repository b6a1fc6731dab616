"""The DAGs: they parse fast and lightly, and have the tasks, links, retries, pools and limits that they should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dags.notify import Notifier
from tests.dags.conftest import DAGS

CHAINS = {
    "dig_features": ["ingest", "item_features", "u2i_crosses", "examples", "sweep"],
    "dig_retrain": ["train", "evaluate", "register", "gate"],
    "dig_publish": ["index", "promote", "summary", "report"],
    "dig_promote": ["request", "promote"],
    "dig_refresh": ["arrivals", "fresh"],
    "dig_watch": ["watch"],
}
ALL = {*CHAINS, "dig_backfill"}
DAILY = ("dig_features", "dig_retrain", "dig_publish")
POOLS = {
    "dig_spark": {"arrivals", "ingest", "item_features", "u2i_crosses", "examples", "features"},
    "dig_train": {"train", "evaluate"},
    "dig_promotion": {"promote", "fresh"},
}
TASKS = [
    *((dag_id, task_id) for dag_id, chain in CHAINS.items() for task_id in chain),
    *(("dig_backfill", task_id) for task_id in ("features", "retrain", "stale", "sweep")),
]
HEAVY = ("torch", "pyspark", "mlflow", "great_expectations", "pandas", "pyarrow", "sklearn")


def test_the_folder_holds_just_these_dags(dags: dict[str, Any]) -> None:
    assert set(dags) == ALL


@pytest.mark.parametrize("dag_id", CHAINS)
def test_the_tasks_of_a_dag_follow_each_other(dags: dict[str, Any], dag_id: str) -> None:
    dag = dags[dag_id]
    assert [task.task_id for task in dag.topological_sort()] == CHAINS[dag_id]
    for before, after in zip(CHAINS[dag_id], CHAINS[dag_id][1:], strict=False):
        assert dag.get_task(before).downstream_task_ids == {after}


def test_after_a_backfill_a_training_is_announced_and_what_is_stale_is_told(dags: dict[str, Any]) -> None:
    backfill = dags["dig_backfill"]
    assert backfill.get_task("features").downstream_task_ids == {"retrain", "stale"}
    assert backfill.get_task("retrain").downstream_task_ids == backfill.get_task("stale").downstream_task_ids == {"sweep"}


def test_what_only_people_start_is_not_paused_and_waits_for_nobody(dags: dict[str, Any]) -> None:
    unpaused = {dag_id for dag_id, dag in dags.items() if dag.is_paused_upon_creation is False}
    assert unpaused == {"dig_promote", "dig_backfill"}


@pytest.mark.parametrize("dag_id", sorted(ALL))
def test_a_dag_is_described_and_does_not_catch_up(dags: dict[str, Any], dag_id: str) -> None:
    dag = dags[dag_id]
    assert dag.catchup is False
    assert dag.doc_md
    assert dag.description
    if dag_id in DAILY:
        assert dag.max_active_runs == 1
        assert "date" in dag.params


@pytest.mark.parametrize(("dag_id", "task_id"), TASKS)
def test_a_task_has_an_owner_a_doc_a_time_limit_and_someone_who_hears_of_its_failure(
    dags: dict[str, Any], dag_id: str, task_id: str
) -> None:
    task = dags[dag_id].get_task(task_id)
    assert task.owner == "dig"
    assert task.doc_md
    assert timedelta() < task.execution_timeout <= timedelta(hours=12)
    assert [type(callback) for callback in task.on_failure_callback] == [Notifier]


@pytest.mark.parametrize(("dag_id", "task_id"), TASKS)
def test_a_task_backs_off_before_it_is_tried_again(dags: dict[str, Any], dag_id: str, task_id: str) -> None:
    task = dags[dag_id].get_task(task_id)
    assert task.retries >= 1
    assert task.retry_exponential_backoff > 1
    assert task.retry_delay >= timedelta(minutes=1)
    assert task.max_retry_delay <= timedelta(hours=1)


@pytest.mark.parametrize(("dag_id", "task_id"), TASKS)
def test_spark_training_and_promotion_have_pools_of_their_own(dags: dict[str, Any], dag_id: str, task_id: str) -> None:
    expected = [pool for pool, tasks in POOLS.items() if task_id in tasks] or ["default_pool"]
    assert [dags[dag_id].get_task(task_id).pool] == expected


def test_staging_is_swept_by_a_teardown_that_cannot_save_a_failed_run(dags: dict[str, Any]) -> None:
    for dag_id in ("dig_features", "dig_backfill"):
        sweep = dags[dag_id].get_task("sweep")
        assert sweep.is_teardown
        assert not sweep.on_failure_fail_dagrun


def test_features_are_keyed_on_the_day_that_has_closed(dags: dict[str, Any]) -> None:
    timetable = dags["dig_features"].timetable
    assert type(timetable).__name__ == "CronPartitionTimetable"
    assert (timetable.key_format, timetable.run_offset) == ("%Y-%m-%d", -1)


def test_a_data_set_that_has_ended_is_not_asked_for_more_days(dags: dict[str, Any]) -> None:
    assert dags["dig_features"].end_date.isoformat() == "2018-01-02T04:59:00+00:00"


@pytest.mark.parametrize(
    ("producer", "task_id", "uri", "consumer"),
    [
        ("dig_features", "examples", "dig://examples/", "dig_retrain"),
        ("dig_retrain", "gate", "dig://candidate/", "dig_publish"),
    ],
)
def test_a_dag_waits_for_the_partitioned_asset_of_the_one_before(
    dags: dict[str, Any], producer: str, task_id: str, uri: str, consumer: str
) -> None:
    assert [asset.uri for asset in dags[producer].get_task(task_id).outlets] == [uri]
    timetable = dags[consumer].timetable
    assert type(timetable).__name__ == "PartitionedAssetTimetable"
    assert timetable.asset_condition.uri == uri


def test_only_the_last_word_of_each_dag_emits_assets(dags: dict[str, Any]) -> None:
    emitting = {task.task_id: [asset.uri for asset in task.outlets] for dag in dags.values() for task in dag.tasks if task.outlets}
    asked_for = {"retrain": ["dig://examples/"]}
    assert emitting == {
        **asked_for,
        "examples": ["dig://examples/"],
        "gate": ["dig://candidate/"],
        "promote": ["dig://champion/", "dig://index/"],
    }


def test_every_job_of_a_task_is_a_module(dags: dict[str, Any]) -> None:
    for dag in dags.values():
        for task in dag.tasks:
            if hasattr(task, "job"):
                assert (DAGS.parent / "jobs" / f"{task.job}.py").is_file()


def test_spark_tasks_submit_the_file_of_the_job_through_the_connection(dags: dict[str, Any]) -> None:
    for name in ("ingest", "item_features", "u2i_crosses", "examples"):
        task = dags["dig_features"].get_task(name)
        assert type(task).__name__ == "SparkJobOperator"
        assert Path(task.application) == DAGS.parent / "jobs" / f"{task.job}.py"
        assert task._conn_id == "spark_default"
        assert task._driver_memory == "3g"


@pytest.mark.slow
def test_a_tokenizer_of_the_settings_is_a_task_before_the_training(tmp_path: Path) -> None:
    script = f"""
import json
from datetime import date
from airflow.dag_processing.dagbag import DagBag
from dags.common import settings
from dags.lineage import of_model
bag = DagBag({str(DAGS)!r})
dag = bag.dags["dig_retrain"]
task = dag.get_task("tokenize")
day = date(2017, 11, 15)
lines = {{job: of_model(job, day, settings()).lines() for job in ("sids", "launch")}}
told = [[t.task_id for t in dag.topological_sort()], sorted(task.downstream_task_ids), task.job, task.guarded, task.pool, lines]
print(json.dumps([bag.import_errors, *told]))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DIG_")}
    environment |= {"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "DIG_TOKENIZER": "rkmeans"}
    environment["PYTHONPATH"] = str(DAGS.parent)
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=DAGS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    errors, chain, after, job, guarded, pool, lines = json.loads(done.stdout.splitlines()[-1])
    assert errors == {}
    assert chain == ["tokenize", *CHAINS["dig_retrain"]]
    assert (after, job, guarded, pool) == (["train"], "sids", True, "dig_train")
    assert "checkpoints/2017-11-15/tokenizer" in lines["sids"][1]
    assert "checkpoints/2017-11-15/tokenizer" in lines["launch"][0], "the training reads what the task wrote"


def test_training_goes_through_torchrun(dags: dict[str, Any]) -> None:
    assert dags["dig_retrain"].get_task("train").job == "launch"


@pytest.mark.slow
def test_parsing_is_quick_and_loads_neither_torch_nor_spark(tmp_path: Path) -> None:
    script = f"""
import json, sys, time
from pathlib import Path
from airflow.dag_processing.dagbag import DagBag
ignored = Path({str(DAGS)!r}, ".airflowignore").read_text().split()
seconds, errors = {{}}, {{}}
for file in sorted(Path({str(DAGS)!r}).glob("*.py")):
    if file.name in ignored:
        continue
    started = time.process_time()
    errors |= DagBag(file).import_errors
    seconds[file.name] = time.process_time() - started
print(json.dumps({{"errors": errors, "seconds": seconds, "heavy": [name for name in {HEAVY!r} if name in sys.modules]}}))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DIG_")}
    environment |= {"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, cwd=DAGS.parent)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["errors"] == {}
    assert len(found["seconds"]) == len(ALL)
    assert max(found["seconds"].values()) < 1.0
    assert found["heavy"] == []


@pytest.mark.slow
def test_settings_that_cannot_be_used_are_the_import_error_of_the_dag(tmp_path: Path) -> None:
    script = f"""
from airflow.dag_processing.dagbag import DagBag
bag = DagBag({str(DAGS)!r})
print([error.splitlines()[-1] for error in bag.import_errors.values()])
"""
    environment = os.environ | {"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "DIG_TRAIN__EPOCHS": "many"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, cwd=DAGS.parent)
    assert "environment DIG_TRAIN__EPOCHS: train.epochs: Input should be a valid integer" in done.stdout


APPROVED = {"dig_publish": ["index", "approve", "promote", "summary", "report"], "dig_promote": ["request", "approve", "promote"]}


@pytest.mark.slow
def test_with_approval_a_person_is_asked_before_each_promotion(tmp_path: Path) -> None:
    script = f"""
import json
from airflow.dag_processing.dagbag import DagBag
bag = DagBag({str(DAGS)!r})
assert not bag.import_errors, bag.import_errors
found = {{dag_id: [task.task_id for task in bag.dags[dag_id].topological_sort()] for dag_id in {list(APPROVED)!r}}}
ask = bag.dags["dig_publish"].get_task("approve")
hours = ask.response_timeout.total_seconds() / 3600
print(json.dumps({{"tasks": found, "retries": ask.retries, "hours": hours, "reject": ask.fail_on_reject}}))
"""
    environment = os.environ | {
        **{"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"},
        **{"DIG_AIRFLOW__APPROVAL": "true", "DIG_AIRFLOW__APPROVAL_HOURS": "6"},
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, cwd=DAGS.parent)
    assert json.loads(done.stdout.splitlines()[-1]) == {"tasks": APPROVED, "retries": 0, "hours": 6.0, "reject": True}


@pytest.mark.slow
def test_mirrors_are_brought_along_by_a_task_that_holds_no_slot_of_the_promotions(tmp_path: Path) -> None:
    script = f"""
import json
from airflow.dag_processing.dagbag import DagBag
bag = DagBag({str(DAGS)!r})
tasks = [bag.dags[dag_id].get_task("mirrors") for dag_id in ("dig_publish", "dig_promote", "dig_refresh")]
print(json.dumps([[sorted(task.upstream_task_ids), task.pool, task.retries > 0, task.arguments(None)] for task in tasks]))
"""
    environment = os.environ | {
        **{"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"},
        "DIG_INDEX__MIRRORS": '["memory://bucket/index"]',
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, cwd=DAGS.parent)
    moved, refreshed = [["promote"], "default_pool", True, []], [["fresh"], "default_pool", True, ["--behind"]]
    assert json.loads(done.stdout.splitlines()[-1]) == [moved, moved, refreshed], "what is damaged in a mirror is mended once a day"


@pytest.mark.slow
def test_redis_follows_every_move_and_the_lists_of_all_users_a_publication(tmp_path: Path) -> None:
    script = f"""
import json
from airflow.dag_processing.dagbag import DagBag
bag = DagBag({str(DAGS)!r})
assert not bag.import_errors, bag.import_errors
tasks = [bag.dags[dag_id].get_task("redis") for dag_id in ("dig_publish", "dig_promote", "dig_refresh")]
lists = bag.dags["dig_publish"].get_task("recommend")
found = [[sorted(task.upstream_task_ids), task.pool] for task in (*tasks, lists)]
print(json.dumps([found, bag.dags["dig_promote"].has_task("recommend")]))
"""
    environment = os.environ | {
        **{"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"},
        **{"DIG_SERVE__REDIS__URL": "redis://127.0.0.1:6379/0", "DIG_SERVE__BATCH__ENABLED": "true"},
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, cwd=DAGS.parent)
    follows = [["promote"], "default_pool"]
    assert json.loads(done.stdout.splitlines()[-1]) == [[follows, follows, [["fresh"], "default_pool"], [["promote"], "dig_spark"]], False]
