from __future__ import annotations

from datetime import date

import pytest

from jobs.build import event_days
from jobs.config import ConfigError
from jobs.reach import window_before


def test_a_window_ends_with_its_day_and_is_cut_at_the_first_day_of_the_data() -> None:
    first = date(2017, 1, 1)
    assert window_before(date(2017, 1, 10), 3, first) == [date(2017, 1, 8), date(2017, 1, 9), date(2017, 1, 10)]
    assert window_before(date(2017, 1, 2), 90, first) == [date(2017, 1, 1), date(2017, 1, 2)]
    assert window_before(date(2016, 12, 31), 90, first) == []


def test_daily_aggregates_are_built_of_the_days_asked_for_or_from_an_earlier_day_on() -> None:
    days = [date(2017, 1, 5), date(2017, 1, 6)]
    assert event_days(None, days) == days
    assert event_days(date(2017, 1, 4), days) == [date(2017, 1, 4), *days]


def test_events_from_a_day_after_the_first_one_asked_for_are_refused() -> None:
    with pytest.raises(ConfigError, match="--events-from 2017-01-06: lies after the first day asked for, 2017-01-05"):
        event_days(date(2017, 1, 6), [date(2017, 1, 5), date(2017, 1, 6)])
