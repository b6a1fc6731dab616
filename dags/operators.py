"""The two kinds of task: a job in a process of its own, and a Spark job through the Airflow connection.

Each starts a job's command line, so that no DAG imports torch, pyspark or the jobs; each log begins with what will be read and written.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from dags.common import PROJECT, SPARK_POOL, job_environment, run_date, settings
from dags.guard import RETRAIN, skip_unwanted, wants_retrain
from dags.lineage import UNDATED, Lineage, of_features, of_model
from dags.spans import Span, feature_span, just_the_day
from jobs.config import Config, ConfigError

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

#: Exit status of a job that failed for a reason its message explains: trying again cannot help.
EXPLAINED = 2
JAVA_OPTIONS = "spark.driver.extraJavaOptions"


def announce(operator: BaseOperator, context: Any, day: str) -> None:
    """Say for which date the outlets are emitted, and whether their run wants a training.

    A run triggered by hand has no partition key, and its consumers would not hear of it.
    """
    for asset in operator.outlets:
        event = context["outlet_events"][asset]
        event.add_partitions(day)
        event.extra[RETRAIN] = wants_retrain(context)


@contextmanager
def failing_at_once() -> Iterator[None]:
    """Turn settings or a date that cannot be used into a failure that is not tried again.

    Raises:
        AirflowFailException: with the message of the ``ConfigError``.
    """
    try:
        yield
    except ConfigError as error:
        raise AirflowFailException(str(error)) from None


class Traced(BaseOperator):  # type: ignore[misc]  # Airflow's classes are Any to mypy here
    """Tells log and OpenLineage what a task reads and writes."""

    _lineage: Lineage | None = None

    def begin(self, lineage: Lineage) -> None:
        """Log what will be read and written, and keep it for the OpenLineage events."""
        self._lineage = lineage
        for line in lineage.lines():
            self.log.info("%s", line)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage | None:
        """Inputs and outputs of the task, as the OpenLineage provider asks for them."""
        from airflow.providers.openlineage.extractors import OperatorLineage
        from openlineage.client.event_v2 import Dataset

        if self._lineage is None:
            return None
        inputs, outputs = (
            [Dataset(namespace=f"dig://{thing.place}", name=thing.name) for thing in things]
            for things in (self._lineage.reads, self._lineage.writes)
        )
        return OperatorLineage(inputs=inputs, outputs=outputs)

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage | None:
        """The same for a task that failed."""
        return self.get_openlineage_facets_on_complete(task_instance)


class JobOperator(Traced):
    """Runs ``python -m jobs.<job>`` and logs what it prints; the last line that it prints is the task's result.

    Args:
        job: name of the module in ``jobs``.
        arguments: options that follow from the run; by default ``--date D``.
        more: further options that follow from the run.
        guarded: skip when the events that set the run off want no training.
    """

    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        job: str,
        arguments: Callable[[Any], list[str]] | None = None,
        more: Callable[[Any], list[str]] | None = None,
        guarded: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.job = job
        self.arguments, self.more = arguments, more
        self.guarded = guarded
        self._hook: SubprocessHook | None = None

    def execute(self, context: Any) -> str:
        """Run the job; an explained failure (exit status 2) is not tried again."""
        if self.arguments is None:
            day = run_date(context)
            with failing_at_once():
                self.begin(of_model(self.job, day, settings()))
            arguments = ["--date", day.isoformat()]
        else:
            self.begin(UNDATED[self.job])
            arguments = self.arguments(context)
        if self.guarded:
            skip_unwanted(context)
        arguments += self.more(context) if self.more else []
        self._hook = SubprocessHook()
        result = self._hook.run_command([sys.executable, "-m", f"jobs.{self.job}", *arguments], env=job_environment(), cwd=str(Path.cwd()))
        if result.exit_code:
            kind = AirflowFailException if result.exit_code == EXPLAINED else AirflowException
            raise kind(f"jobs.{self.job} {' '.join(arguments)} ended with exit status {result.exit_code}: {result.output}")
        if self.outlets:
            announce(self, context, run_date(context).isoformat())
        return str(result.output)

    def on_kill(self) -> None:
        """Stop the job and what it started."""
        if self._hook:
            self._hook.send_sigterm()


class SparkJobOperator(SparkSubmitOperator, Traced):  # type: ignore[misc]
    """Submits ``jobs/<job>.py`` to the Spark of the Airflow connection, with the days of the run.

    Args:
        job: name of the module in ``jobs``.
        arguments: options of the job that follow from the days of the run.
        span: the days of a run.
    """

    # The arguments follow from the run's date: show in the UI what was submitted, not what was templated.
    overwrite_rtif_after_execution = True

    def __init__(
        self,
        *,
        job: str,
        arguments: Callable[[Span], list[str]],
        config: Config,
        span: Callable[[Any, Config], Span] = feature_span,
        **kwargs: Any,
    ) -> None:
        self.properties = {"spark.log.level": "WARN", **config.spark.conf}
        super().__init__(
            application=str(PROJECT / "jobs" / f"{job}.py"),
            name=f"dig_{job}",
            conn_id=config.spark.connection_id,
            driver_memory=config.spark.driver_memory,
            conf=self.properties,
            pool=SPARK_POOL,
            **kwargs,
        )
        self.job = job
        self.arguments = arguments
        self.span = span

    def execute(self, context: Any) -> None:
        """Submit the job; an explained failure (exit status 2) is not tried again."""
        config = settings()
        with failing_at_once():
            span = self.span(context, config)
            self.begin(of_features(self.job, span, config))
        self.application_args = self.arguments(span) + (["--missing"] if span.missing else [])
        if span.single and config.spark.one_day_java_options:
            self.conf = {JAVA_OPTIONS: config.spark.one_day_java_options, **self.properties}
        self.env_vars = {"PYTHONPATH": job_environment()["PYTHONPATH"]}
        try:
            super().execute(context)
        except AirflowException as error:
            if f"Error code is: {EXPLAINED}." in str(error):
                raise AirflowFailException(f"jobs.{self.job} ended with exit status {EXPLAINED}; its log says why") from error
            raise
        announce(self, context, span.last.isoformat())


def mirrors(*, only_behind: bool = False) -> JobOperator:
    """The task that brings the mirrors of the index to what serves; it holds no slot of the promotions.

    Args:
        only_behind: leave those alone that serve the same already; else all that they hold is read and compared.
    """
    return JobOperator(
        task_id="mirrors",
        job="mirrors",
        arguments=lambda context: ["--behind"] if only_behind else [],
        execution_timeout=timedelta(hours=2),
        doc_md="Copies what `CURRENT` names to every store of `index.mirrors`; tried again until it is there.",
    )


def redis() -> JobOperator:
    """The task that brings the item maps in Redis to what serves."""
    return JobOperator(
        task_id="redis",
        job="redis_sink",
        arguments=lambda context: [],
        execution_timeout=timedelta(hours=1),
        doc_md="Item to SID and SID to items of what `CURRENT` names, into `serve.redis`; one pointer key is the switch.",
    )


def followers(*, only_behind: bool = False) -> list[JobOperator]:
    """What follows every promotion, rollback and refresh, as the settings have it: mirrors of the index, the maps in Redis.

    Args:
        only_behind: leave mirrors alone that serve the same already, for what runs by the clock and mostly finds nothing new.
    """
    config = settings()
    return [*([mirrors(only_behind=only_behind)] if config.index.mirrors else []), *([redis()] if config.serve.redis.url else [])]


def recommendations() -> SparkJobOperator:
    """The task that makes a list for every user from the generation of the run's date."""
    return SparkJobOperator(
        task_id="recommend",
        job="recommend",
        config=settings(),
        span=just_the_day,
        arguments=lambda s: ["--date", s.last.isoformat()],
        execution_timeout=timedelta(hours=6),
        doc_md="The lists of all users, as `recommendations` of the date in the lake, behind a data gate (`serve.batch`).",
    )


def sweep() -> JobOperator:
    """The teardown that clears staging: it runs whatever became of the run, and cannot save a failed one."""
    task = JobOperator(
        task_id="sweep",
        job="sweep",
        arguments=lambda context: [],
        retries=1,
        execution_timeout=timedelta(minutes=10),
        doc_md="Teardown: removes what killed jobs left under the lake's `_staging`; what a running job holds stays.",
    )
    task.as_teardown()
    return task
