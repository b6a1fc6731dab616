"""``dig_retrain``: new examples become a model that is trained, evaluated, registered and judged by the gate."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, PartitionedAssetTimetable

from dags.common import CANDIDATE, DATE_PARAM, EXAMPLES, TRAIN_POOL, default_args, settings
from dags.operators import JobOperator

DOC = """
### A model for a date

`train → evaluate → register → gate`, set off by the asset `dig://examples` and keyed on its partition date. If a figure is beyond
its limit, `gate` fails at once and is not tried again: its log names figure and limit. Nothing that serves has moved by then.
Where the setting `tokenizer` names another one than `dig`, `tokenize` comes first and makes the SIDs that the ranker is
trained on: the tasks of this DAG follow the setting from its next parse on.

A backfill of `dig_features` emits assets too; runs that it sets off are skipped, and the XCom `skipped` of the first task (`train`, or
`tokenize` where there is one) says why.
To train for a date by hand: `airflow dags trigger dig_retrain --conf '{"date": "2017-11-15"}'`.

Emits `dig://candidate` for the date, which sets `dig_publish` off.
"""

with DAG(
    dag_id="dig_retrain",
    description="Train with torchrun, evaluate, register in MLflow, judge",
    doc_md=DOC,
    schedule=PartitionedAssetTimetable(assets=EXAMPLES),
    catchup=False,
    max_active_runs=1,
    default_args=default_args(),
    params={"date": DATE_PARAM},
    tags=["dig", "torch", "mlflow"],
) as dag:
    train = JobOperator(
        task_id="train",
        job="launch",
        guarded=True,
        pool=TRAIN_POOL,
        execution_timeout=timedelta(hours=12),
        doc_md="`torchrun -m jobs.train`, ranks, hosts and backend from the settings; another attempt goes on from the last checkpoint.",
    )
    evaluate = JobOperator(
        task_id="evaluate",
        job="evaluate",
        pool=TRAIN_POOL,
        execution_timeout=timedelta(hours=3),
        doc_md="Challenger, champion and baselines on the same rows of the evaluation days.",
    )
    register = JobOperator(
        task_id="register",
        job="register",
        execution_timeout=timedelta(hours=1),
        doc_md="An MLflow version with its lineage; the same lineage gives the version that is there.",
    )
    gate = JobOperator(
        task_id="gate",
        job="gate",
        outlets=[CANDIDATE],
        execution_timeout=timedelta(minutes=30),
        doc_md="The gate. Passed: `dig://candidate` is emitted. Failed: not tried again, the champion and the index stay.",
    )
    train >> evaluate >> register >> gate
    if settings().tokenizer != "dig":
        tokenize = JobOperator(
            task_id="tokenize",
            job="sids",
            guarded=True,
            pool=TRAIN_POOL,
            execution_timeout=timedelta(hours=12),
            doc_md="SIDs made beforehand by the tokenizer of the settings, fitted now or kept from the version promoted before.",
        )
        tokenize >> train
