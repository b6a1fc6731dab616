"""``dig_features``: one day of source data becomes features and examples, with Spark."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import DAG, CronPartitionTimetable, Param
from pendulum.tz.timezone import FixedTimezone

from dags.common import DATE_PARAM, EXAMPLES, default_args, settings
from dags.operators import SparkJobOperator, sweep
from dags.spans import days

DOC = """
### Features and examples of a day

`ingest → item_features → u2i_crosses → examples`, each one Spark application. The data gates are inside the jobs: a day that fails
one is not committed, and the task is not tried again.

| to build | trigger with conf |
|---|---|
| one day, anew | `{"date": "2017-11-15"}` |
| every day of the training window that is not up to date | `{"date": "2017-11-15", "fill": true}` |
| every day since one | `{"date": "2017-11-15", "from": "2017-11-01"}` |

Emits the asset `dig://examples` for the date, which sets `dig_retrain` off; with `{"retrain": false}` that run skips. A backfill
(`airflow backfill create --dag-id dig_features --max-active-runs 1 …`) retrains only with `--dag-run-conf '{"retrain": true}'`. A run that
wants no training leaves out the cross arrays, which need the whole window of a run.
"""

config = settings()
zone = FixedTimezone(int(config.dataset.source.utc_offset_hours * 3600))
first, last = config.dataset.first_date, config.dataset.last_date

with DAG(
    dag_id="dig_features",
    description="Source data of a day to features and examples (Spark)",
    doc_md=DOC,
    # At 03:00 of the next day on the data set's own clock; the key is the day that has closed.
    schedule=CronPartitionTimetable("0 3 * * *", timezone=zone, run_offset=-1, key_format="%Y-%m-%d"),
    start_date=datetime(first.year, first.month, first.day, tzinfo=zone),
    # A data set that has ended is not asked for more days: its last one is due on the morning after.
    end_date=datetime(last.year, last.month, last.day, 23, 59, tzinfo=zone) + timedelta(days=1),
    catchup=False,
    max_active_runs=1,
    default_args=default_args(),
    params={
        "date": DATE_PARAM,
        "from": Param(None, type=["null", "string"], format="date", title="From", description="Also every day since this one."),
        "retrain": Param(
            None, type=["null", "boolean"], title="Retrain", description="Train on what was built; by default yes, in a backfill no."
        ),
        "fill": Param(False, type="boolean", title="Fill", description="Also every day of the run's window that is not up to date."),
    },
    tags=["dig", "spark"],
) as dag:
    ingest = SparkJobOperator(
        task_id="ingest",
        job="ingest",
        config=config,
        arguments=lambda s: [*days(s.events, s.last), "--offers-from", s.examples.isoformat()],
        execution_timeout=timedelta(hours=2),
        doc_md="Source tables to `interactions`, `requests`, `offers`, `items`, `users`, behind the gate of raw input.",
    )
    item_features = SparkJobOperator(
        task_id="item_features",
        job="item_features",
        config=config,
        arguments=lambda s: [*days(s.catalogue, s.last), "--events-from", s.events.isoformat()],
        execution_timeout=timedelta(hours=2),
        doc_md="Daily item aggregates and the catalogue with its features, as of the end of the day.",
    )
    u2i_crosses = SparkJobOperator(
        task_id="u2i_crosses",
        job="u2i_crosses",
        config=config,
        arguments=lambda s: [*days(s.examples, s.last), "--events-from", s.events.isoformat(), *([] if s.arrays else ["--no-arrays"])],
        execution_timeout=timedelta(hours=4),
        doc_md="User-to-item crosses as of the start of the day, and, if a training follows, the arrays that answer for any pair.",
    )
    examples = SparkJobOperator(
        task_id="examples",
        job="examples",
        config=config,
        arguments=lambda s: days(s.examples, s.last),
        outlets=[EXAMPLES],
        execution_timeout=timedelta(hours=4),
        doc_md="Requests with what was known before each of them; emits `dig://examples`.",
    )
    ingest >> item_features >> u2i_crosses >> examples >> sweep()
