"""``dig_backfill``: the features of a range of past days in one Spark application, and on request a training on them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

from airflow.sdk import DAG, Param
from airflow.sdk.exceptions import AirflowFailException

from dags.common import EXAMPLES, as_date, asked, default_args, settings
from dags.guard import KEPT, RETRAIN, skip
from dags.lineage import UNDATED
from dags.operators import JobOperator, SparkJobOperator, Traced, sweep
from dags.spans import Span, days
from jobs.config import Config, ConfigError

DOC = """
### Features of past days

`features → retrain, stale`, teardown `sweep`. `features` takes the days `from` … `to` through ingest, item_features, u2i_crosses and
examples in one Spark application, in chunks of `backfill.chunk_days` days, with the earlier days that their features reach. Days that
are up to date stay, so a run that was cut short goes on where it was; with `anew` all days of the range are built, and another attempt
begins with the first one.

| param | |
|---|---|
| `from`, `to` | the days, both included |
| `anew` | also days that are up to date |
| `retrain` | emit `dig://examples` for `to`, which sets `dig_retrain` off; without it the champion and the index stay as they are |

`stale` logs which days from `from` on are out of date by now (later days that were made from the old rows) and the command that rebuilds
just those.
"""
NOT_ASKED = f"retrain was not asked for: {KEPT}"


def bound(context: Mapping[str, Any], name: str) -> date:
    """One end of the range.

    Raises:
        AirflowFailException: it is missing, or no date.
    """
    return as_date(repr(name), asked(context).get(name))


def range_of(context: Mapping[str, Any], config: Config) -> Span:
    """The days of a run.

    Raises:
        AirflowFailException: a date is missing, or the range is empty or reaches outside the data set.
    """
    first, last = bound(context, "from"), bound(context, "to")
    try:
        reached = config.feature_days(first, last)
    except ConfigError as error:
        raise AirflowFailException(str(error)) from None
    missing = not asked(context).get("anew")
    return Span(events=reached.events, catalogue=reached.catalogue, examples=first, last=last, missing=missing)


class AnnounceExamples(Traced):
    """Emits ``dig://examples`` for the last day of the range, if a training on it was asked for."""

    ui_color = "#e8f0fe"

    def execute(self, context: Any) -> None:
        """Say with the asset event which day it is about; its consumers run for that day."""
        self.begin(UNDATED["retrain"])
        if not asked(context).get(RETRAIN):
            skip(context, NOT_ASKED)
        event = context["outlet_events"][EXAMPLES]
        event.add_partitions(bound(context, "to").isoformat())
        event.extra[RETRAIN] = True


config = settings()

with DAG(
    dag_id="dig_backfill",
    description="Features of a range of past days in one Spark application; trains only on request",
    doc_md=DOC,
    schedule=None,
    is_paused_upon_creation=False,  # nothing sets it off but a person
    catchup=False,
    max_active_runs=1,
    default_args=default_args(),
    params={
        "from": Param(type="string", format="date", title="From", description="First day, YYYY-MM-DD."),
        "to": Param(type="string", format="date", title="To", description="Last day, YYYY-MM-DD."),
        "retrain": Param(False, type="boolean", title="Retrain", description="Train for the last day afterwards."),
        "anew": Param(False, type="boolean", title="Anew", description="Also build days that are up to date."),
    },
    tags=["dig", "spark"],
) as dag:
    features = SparkJobOperator(
        task_id="features",
        job="backfill",
        config=config,
        span=range_of,
        arguments=lambda s: [*days(s.examples, s.last), *([] if s.missing else ["--anew"])],
        execution_timeout=timedelta(hours=12),
        doc_md="All four feature jobs for the range; a retry goes on at the first day that is missing.",
    )
    retrain = AnnounceExamples(
        task_id="retrain",
        outlets=[EXAMPLES],
        execution_timeout=timedelta(minutes=5),
        doc_md="Skipped unless `retrain` is set (XCom `skipped` says so). Emits `dig://examples` for the last day.",
    )
    stale = JobOperator(
        task_id="stale",
        job="stale",
        arguments=lambda context: ["--date", bound(context, "from").isoformat()],
        execution_timeout=timedelta(minutes=30),
        doc_md="Which days are out of date by now, and the command that refreshes them.",
    )
    features >> [retrain, stale] >> sweep()
