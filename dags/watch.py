"""``dig_watch``: an alert when what serves is older than the settings allow."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import DAG, CronTriggerTimetable
from pendulum import UTC

from dags.common import asked_at, default_args
from dags.operators import JobOperator

DOC = """
### Is the index fresh?

Once an hour: fails, and so notifies (`airflow.notify`), when `CURRENT` serves a day that is too old
(`airflow.max_index_age_hours`). It looks at what serves and not at runs, so it also speaks up when no run was started at all.
"""

with DAG(
    dag_id="dig_watch",
    description="Alert when CURRENT is older than a limit",
    doc_md=DOC,
    schedule=CronTriggerTimetable("30 * * * *", timezone="UTC"),
    start_date=datetime(2017, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args=default_args(),
    tags=["dig", "index"],
) as dag:
    JobOperator(
        task_id="watch",
        job="watch",
        arguments=lambda context: ["--at", asked_at(context)],
        execution_timeout=timedelta(minutes=5),
        doc_md="Compares the day that `CURRENT` serves with the day that is due at the time of the run.",
    )
