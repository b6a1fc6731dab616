"""``dig_retrain``: new examples become a model that is trained, judged, registered and, if it passes the gate, champion."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, PartitionedAssetTimetable

from dags.common import CHAMPION, DATE_PARAM, DEFAULT_ARGS, EXAMPLES, JobOperator

DOC = """
### A model for a date

`train → evaluate → register → promote`, set off by the asset `dig://examples` and keyed on its partition date. `promote` is the gate:
if a figure is beyond its limit the task fails at once, its log names figure and limit, and the champion stays.

A backfill of `dig_features` emits assets too; runs that it sets off are skipped, so that history never moves the champion.
To train for a date by hand: `airflow dags trigger dig_retrain --conf '{"date": "2017-11-15"}'`.

Emits `dig://champion` for the date, which sets `dig_publish` off.
"""

with DAG(
    dag_id="dig_retrain",
    description="Train with torchrun, evaluate, register in MLflow, promote through the gate",
    doc_md=DOC,
    schedule=PartitionedAssetTimetable(assets=EXAMPLES),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    params={"date": DATE_PARAM},
    tags=["dig", "torch", "mlflow"],
) as dag:
    train = JobOperator(
        task_id="train",
        job="launch",
        skip_backfills=True,
        retries=1,  # a second attempt goes on from the last checkpoint
        execution_timeout=timedelta(hours=12),
        doc_md="`torchrun -m jobs.train`, with ranks, hosts and backend from the settings; resumes from its last checkpoint.",
    )
    evaluate = JobOperator(
        task_id="evaluate",
        job="evaluate",
        execution_timeout=timedelta(hours=3),
        doc_md="Challenger, champion and baselines on the same rows of the evaluation days.",
    )
    register = JobOperator(
        task_id="register",
        job="register",
        execution_timeout=timedelta(hours=1),
        doc_md="An MLflow version with its lineage; the same lineage gives the version that is there.",
    )
    promote = JobOperator(
        task_id="promote",
        job="promote",
        outlets=[CHAMPION],
        retries=0,
        execution_timeout=timedelta(minutes=30),
        doc_md="The gate. Passed: alias `champion` moves and `dig://champion` is emitted. Failed: nothing moves; not tried again.",
    )
    train >> evaluate >> register >> promote
