"""Which days the feature jobs build for one run of ``dig_features``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from airflow.sdk.exceptions import AirflowFailException

from dags.common import as_date, run_date
from dags.guard import wants_retrain
from jobs.config import Config


@dataclass(frozen=True, kw_only=True)
class Span:
    """Days that the feature jobs build for one run; all bounds are included.

    Attributes:
        events: first day of events and daily aggregates.
        catalogue: first day of ``item_features``: the day before the first examples, which show its items.
        examples: first day of crosses and examples.
        missing: leave days alone whose partition is up to date.
        arrays: export the cross arrays of the last day, which a training needs and which need the whole window of its run.
    """

    events: date
    catalogue: date
    examples: date
    last: date
    missing: bool
    arrays: bool = True

    @property
    def single(self) -> bool:
        """Whether it is one day."""
        return self.events == self.last


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
        first = as_date("'from'", asked["from"])
        if first > last:
            raise AirflowFailException(f"'from' {first} lies after the run's date {last}")
    elif asked.get("fill"):
        first = window.train_first
    else:
        return Span(events=last, catalogue=last, examples=last, last=last, missing=False, arrays=wants_retrain(context))
    reached = config.feature_days(first, last)
    return Span(events=reached.events, catalogue=reached.catalogue, examples=reached.examples, last=last, missing=True)


def just_the_day(context: Mapping[str, Any], config: Config) -> Span:
    """The run's date alone, whatever else the run was asked to build.

    Raises:
        ConfigError: the date lies outside the data set.
    """
    day = run_date(context)
    config.run_window(day)
    return Span(events=day, catalogue=day, examples=day, last=day, missing=False)


def days(first: date, last: date) -> list[str]:
    """Options of a range."""
    return ["--from", first.isoformat(), "--to", last.isoformat()]
