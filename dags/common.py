"""What the DAGs share: settings, assets, pools, the manners of every task, and the one place that decides a run's date."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from airflow.sdk import Asset, Param
from airflow.sdk.exceptions import AirflowFailException

from dags.notify import Notifier
from jobs.config import Config, load

PROJECT = Path(__file__).resolve().parent.parent

EXAMPLES = Asset(name="dig_examples", uri="dig://examples", group="dig")
CANDIDATE = Asset(name="dig_candidate", uri="dig://candidate", group="dig")
CHAMPION = Asset(name="dig_champion", uri="dig://champion", group="dig")
INDEX = Asset(name="dig_index", uri="dig://index", group="dig")

#: Pools: Spark applications and trainings at once follow the settings; promotions go one by one.
SPARK_POOL, TRAIN_POOL, PROMOTION_POOL = "dig_spark", "dig_train", "dig_promotion"

DATE_PARAM = Param(
    None, type=["null", "string"], format="date", title="Date", description="Logical date, YYYY-MM-DD; the partition key wins."
)


@cache
def settings() -> Config:
    """The settings in force (``$DIG_CONFIG``, ``DIG_…`` variables), read once a process.

    Raises:
        ConfigError: the settings cannot be used; Airflow shows it as the DAG's import error.
    """
    return load()


def default_args() -> dict[str, Any]:
    """Manners of every task: owner, retries that back off, and who hears of a failure."""
    airflow = settings().airflow
    return {
        "owner": airflow.owner,
        "retries": airflow.retries,
        "retry_delay": timedelta(minutes=airflow.retry_minutes),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(minutes=30),
        "on_failure_callback": [notifier("failed")],
    }


def notifier(event: str) -> Notifier:
    """Who hears of an event, as the settings have it."""
    notify = settings().airflow.notify
    return Notifier(webhook=notify.webhook, timeout_seconds=notify.timeout_seconds, event=event)


def run_date(context: Mapping[str, Any]) -> date:
    """Date of a run: the partition key, else ``date`` of the conf or the params, else the logical date.

    Raises:
        AirflowFailException: none of the three is there, or what is there is no date.
    """
    dag_run = context["dag_run"]
    found = (
        ("partition key", getattr(dag_run, "partition_key", None)),
        ("date of the conf", (dag_run.conf or {}).get("date")),
        ("param 'date'", context.get("params", {}).get("date")),
        ("logical date", context.get("logical_date")),
    )
    for what, value in found:
        if value:
            return as_date(what, value)
    raise AirflowFailException('this run has no date: trigger it with --conf \'{"date": "YYYY-MM-DD"}\'')


def as_date(what: str, value: Any) -> date:
    """A date as text.

    Raises:
        AirflowFailException: it is none; the message names ``what``.
    """
    try:
        return date.fromisoformat(str(value)[:10]) if what == "logical date" else date.fromisoformat(str(value))
    except ValueError:
        raise AirflowFailException(f"{what} {value!r}: expected a date, YYYY-MM-DD") from None


def asked(context: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was asked for: its params, and its conf over them."""
    return {**context.get("params", {}), **(context["dag_run"].conf or {})}


def asked_by(context: Mapping[str, Any]) -> str:
    """Who set a run off: the user that triggered it, else the run itself."""
    dag_run = context["dag_run"]
    return str(getattr(dag_run, "triggering_user_name", None) or f"airflow {dag_run.run_id}")


def asked_at(context: Mapping[str, Any]) -> str:
    """When a run began, ISO 8601: the same for every attempt of its tasks.

    The later of its start and of the moment from which it may run: a run without a server is given its logical date as start.
    """
    dag_run = context["dag_run"]
    known = [at for at in (getattr(dag_run, "start_date", None), getattr(dag_run, "run_after", None)) if at]
    return max(known).isoformat(timespec="seconds") if known else ""


def job_environment() -> dict[str, str]:
    """Environment of a job: this one, with the project importable and its own programs found first."""
    paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    programs = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PATH": os.pathsep.join(programs)}
