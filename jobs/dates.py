"""Dates of a run: the windows that follow from one logical date."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta


def days_between(first: date, last: date) -> list[date]:
    """All days from ``first`` to ``last``, both included; empty if ``last`` is before ``first``."""
    return [first + timedelta(days=i) for i in range((last - first).days + 1)]


@dataclass(frozen=True, kw_only=True)
class Window:
    """The days that a run for ``run_date`` uses; all bounds are included."""

    run_date: date
    train_first: date
    train_last: date
    validation_first: date
    eval_first: date
    eval_last: date
    events_first: date

    @classmethod
    def of(cls, run_date: date, *, eval_days: int, train_days: int, validation_days: int, lookback_days: int, first_date: date) -> Window:
        """Window of ``run_date``: the last E days evaluate, the T days before them train, their last V days validate.

        Args:
            run_date: the logical date.
            eval_days: E.
            train_days: T.
            validation_days: V.
            lookback_days: longest history that a feature of the first example day reaches back.
            first_date: first day with data; the training window and the lookback are cut there.

        Raises:
            ValueError: not a single training day is left.
        """
        eval_first = run_date - timedelta(days=eval_days - 1)
        train_last = eval_first - timedelta(days=1)
        # The first day has no closed day before it, hence no catalogue: examples start one day later.
        train_first = max(eval_first - timedelta(days=train_days), first_date + timedelta(days=1))
        validation_first = train_last - timedelta(days=validation_days - 1)
        if validation_first <= train_first:
            earliest = first_date + timedelta(days=eval_days + validation_days + 1)
            raise ValueError(
                f"date {run_date}: data start on {first_date}, which leaves no training day before the {validation_days} "
                f"validation and {eval_days} evaluation days (window.validation_days, "
                f"window.eval_days); the earliest date possible is {earliest}"
            )
        return cls(
            run_date=run_date,
            train_first=train_first,
            train_last=train_last,
            validation_first=validation_first,
            eval_first=eval_first,
            eval_last=run_date,
            events_first=max(train_first - timedelta(days=lookback_days), first_date),
        )

    @property
    def fit_last(self) -> date:
        """Last day whose examples move weights (the day before validation)."""
        return self.validation_first - timedelta(days=1)

    def examples(self) -> list[date]:
        """Every day that needs examples: training, validation and evaluation."""
        return days_between(self.train_first, self.eval_last)

    def events(self) -> list[date]:
        """Every day whose events a feature may use."""
        return days_between(self.events_first, self.eval_last)

    def __iter__(self) -> Iterator[date]:
        return iter(self.examples())
