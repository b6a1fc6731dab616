"""``dig_refresh``: once an hour new items come into the index that serves and withdrawn ones leave it, without a training."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, CronTriggerTimetable, Param
from pendulum import UTC

from dags.common import DATE_PARAM, PROMOTION_POOL, SPARK_POOL, as_date, asked, asked_at, asked_by, default_args, settings
from dags.operators import JobOperator, followers

DOC = """
### New items, withdrawn items

`arrivals → fresh`, once an hour. `arrivals` brings the day's items snapshot into the lake, if the raw items have changed. `fresh` gives
SIDs to items that are new, from the champion's encoder, leaves out those that were withdrawn, and publishes that as a small delta
generation: the SIDs of all other items stay, and so do model, user state and crosses. Champion and `CURRENT` move under the same lock as
in a promotion; `rollback` goes back past the refreshes to what was promoted before. If nothing is new, nothing happens;
only copies that lag behind are brought along.

If more items are missing from the snapshot than `index.max_withdrawn` (a share of the index) allows, `fresh` fails and what serves
stays: look whether the snapshot is whole. If they were withdrawn on purpose, trigger the run with `{"past_limit": true}`.

The date is the local day of the data set at the time of the run, at most its last one, or `{"date": "YYYY-MM-DD"}` of the conf.
"""


def day_of(context: Any) -> date:
    """Day whose items snapshot a run reads.

    Raises:
        AirflowFailException: ``date`` of the conf is no date.
    """
    if wanted := asked(context).get("date"):
        return as_date("date of the conf", wanted)
    dataset = settings().dataset
    local = datetime.fromisoformat(asked_at(context)).astimezone(UTC) + timedelta(hours=dataset.source.utc_offset_hours)
    return min(local.date(), dataset.last_date)


def dated(context: Any) -> list[str]:
    """The date, as an option."""
    return ["--date", day_of(context).isoformat()]


def signed(context: Any) -> list[str]:
    """The date, who asks for the move and when, and whether more may be withdrawn than the settings allow."""
    past_limit = ["--past-limit"] if asked(context).get("past_limit") else []
    return [*dated(context), "--who", asked_by(context), "--at", asked_at(context), *past_limit]


with DAG(
    dag_id="dig_refresh",
    description="New items into the index that serves, withdrawn ones out of it, every hour",
    doc_md=DOC,
    schedule=CronTriggerTimetable("10 * * * *", timezone="UTC"),
    start_date=datetime(2017, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args=default_args(),
    params={
        "date": DATE_PARAM,
        "past_limit": Param(
            False, type="boolean", title="Past the limit", description="Withdraw more items than index.max_withdrawn allows."
        ),
    },
    tags=["dig", "index"],
) as dag:
    arrivals = JobOperator(
        task_id="arrivals",
        job="arrivals",
        arguments=dated,
        pool=SPARK_POOL,
        execution_timeout=timedelta(hours=1),
        doc_md="The day's items snapshot in the lake, past its gate; nothing is done if the raw items are the same.",
    )
    fresh = JobOperator(
        task_id="fresh",
        job="fresh",
        arguments=signed,
        pool=PROMOTION_POOL,
        execution_timeout=timedelta(minutes=30),
        doc_md="A delta generation with the new items and without the withdrawn ones, verified and made current.",
    )
    arrivals >> fresh
    fresh >> followers(only_behind=True)
