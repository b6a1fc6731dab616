"""What the DAGs share: assets, the one place that decides a run's date, and the two kinds of task.

A task starts a job's command line in a process of its own, so that no DAG imports torch, pyspark or the jobs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import Asset, BaseOperator, Param
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from jobs.config import Config, load

PROJECT = Path(__file__).resolve().parent.parent

EXAMPLES = Asset(name="dig_examples", uri="dig://examples", group="dig")
CHAMPION = Asset(name="dig_champion", uri="dig://champion", group="dig")
INDEX = Asset(name="dig_index", uri="dig://index", group="dig")

#: Exit status of a job that failed for a reason its message explains: trying again cannot help.
EXPLAINED = 2

DEFAULT_ARGS: dict[str, Any] = {
    "owner": "dig",
    "retries": 2,
    "retry_delay": timedelta(minutes=2),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=30),
}

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
            return _as_date(what, value)
    raise AirflowFailException('this run has no date: trigger it with --conf \'{"date": "YYYY-MM-DD"}\'')


def _as_date(what: str, value: Any) -> date:
    try:
        return date.fromisoformat(str(value)[:10]) if what == "logical date" else date.fromisoformat(str(value))
    except ValueError:
        raise AirflowFailException(f"{what} {value!r}: expected a date, YYYY-MM-DD") from None


@dataclass(frozen=True, kw_only=True)
class Span:
    """Days that the feature jobs build for one run; all bounds are included.

    Attributes:
        events: first day of events and daily aggregates.
        catalogue: first day of ``item_features``: the day before the first examples, which show its items.
        examples: first day of crosses and examples.
        missing: leave days alone whose partition is up to date.
    """

    events: date
    catalogue: date
    examples: date
    last: date
    missing: bool


def feature_span(context: Mapping[str, Any], config: Config) -> Span:
    """Days that a run of ``dig_features`` builds.

    By default its own date alone, anew. With ``fill`` every day of the run's window, with ``from`` every day since then, each with
    the days before it that its features reach; days that are up to date stay.

    Raises:
        AirflowFailException: ``from`` is no date or lies after the run's date.
        ConfigError: the date lies outside the data set.
    """
    last = run_date(context)
    asked = {**context.get("params", {}), **(context["dag_run"].conf or {})}
    window = config.run_window(last)
    if asked.get("from"):
        first = _as_date("'from'", asked["from"])
        if first > last:
            raise AirflowFailException(f"'from' {first} lies after the run's date {last}")
    elif asked.get("fill"):
        first = window.train_first
    else:
        return Span(events=last, catalogue=last, examples=last, last=last, missing=False)
    start = config.dataset.first_date
    return Span(
        events=max(first - timedelta(days=config.dataset.lookback_days), start),
        catalogue=max(first - timedelta(days=1), start),
        examples=max(first, start + timedelta(days=1)),
        last=last,
        missing=True,
    )


def is_backfill(context: Mapping[str, Any]) -> bool:
    """Whether a backfill of an upstream DAG set this run off; those must not move the champion."""
    events = context.get("triggering_asset_events") or {}
    return any(event.source_run_id.startswith("backfill__") for of_asset in events.values() for event in of_asset if event.source_run_id)


def _announce(operator: BaseOperator, context: Any, day: date) -> None:
    # A run triggered by hand has no partition key, and its consumers would not hear of it: say it with the event.
    for asset in operator.outlets:
        context["outlet_events"][asset].add_partitions(day.isoformat())


class JobOperator(BaseOperator):  # type: ignore[misc]  # Airflow's classes are Any to mypy here
    """Runs ``python -m jobs.<job> --date D`` and logs what it prints.

    Args:
        job: name of the module in ``jobs``.
        skip_backfills: skip when a backfill of the upstream DAG set the run off.
    """

    ui_color = "#e8f0fe"

    def __init__(self, *, job: str, skip_backfills: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.job = job
        self.skip_backfills = skip_backfills
        self._hook: SubprocessHook | None = None

    def execute(self, context: Any) -> None:
        """Run the job; an explained failure (exit status 2) is not tried again."""
        if self.skip_backfills and is_backfill(context):
            raise AirflowSkipException("a backfill set this run off: the champion and the index stay")
        day = run_date(context)
        self._hook = SubprocessHook()
        command = [sys.executable, "-m", f"jobs.{self.job}", "--date", day.isoformat()]
        result = self._hook.run_command(command, env=job_environment(), cwd=str(Path.cwd()))
        if result.exit_code:
            kind = AirflowFailException if result.exit_code == EXPLAINED else AirflowException
            raise kind(f"jobs.{self.job} --date {day} ended with exit status {result.exit_code}: {result.output}")
        _announce(self, context, day)

    def on_kill(self) -> None:
        """Stop the job and what it started."""
        if self._hook:
            self._hook.send_sigterm()


class SparkJobOperator(SparkSubmitOperator):  # type: ignore[misc]
    """Submits ``jobs/<job>.py`` to the Spark of the Airflow connection, with the days of the run.

    Args:
        job: name of the module in ``jobs``.
        arguments: options of the job that follow from the days of the run.
    """

    # The arguments follow from the run's date: show in the UI what was submitted, not what was templated.
    overwrite_rtif_after_execution = True

    def __init__(self, *, job: str, arguments: Callable[[Span], list[str]], config: Config, **kwargs: Any) -> None:
        super().__init__(
            application=str(PROJECT / "jobs" / f"{job}.py"),
            name=f"dig_{job}",
            conn_id=config.spark.connection_id,
            driver_memory=config.spark.driver_memory,
            conf={"spark.log.level": "WARN", **config.spark.conf},
            **kwargs,
        )
        self.job = job
        self.arguments = arguments

    def execute(self, context: Any) -> None:
        """Submit the job; an explained failure (exit status 2) is not tried again."""
        span = feature_span(context, settings())
        self.application_args = self.arguments(span) + (["--missing"] if span.missing else [])
        self.env_vars = {"PYTHONPATH": job_environment()["PYTHONPATH"]}
        try:
            super().execute(context)
        except AirflowException as error:
            if f"Error code is: {EXPLAINED}." in str(error):
                raise AirflowFailException(f"jobs.{self.job} ended with exit status {EXPLAINED}; its log says why") from error
            raise
        _announce(self, context, span.last)


def job_environment() -> dict[str, str]:
    """Environment of a job: this one, with the project importable and its own programs found first."""
    paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    programs = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PATH": os.pathsep.join(programs)}


def days(first: date, last: date) -> list[str]:
    """Options of a range."""
    return ["--from", first.isoformat(), "--to", last.isoformat()]
