"""Which day ``dig_refresh`` reads, and who it says asks."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from dags import refresh
from tests.dags.contexts import Run, context


def at(moment: datetime, **conf: Any) -> dict[str, Any]:
    return context(Run(conf=conf, run_id="scheduled__1", start_date=moment))


def test_the_day_is_the_local_one_of_the_data_set() -> None:
    assert refresh.dated(at(datetime(2017, 6, 2, 4, 10, tzinfo=UTC))) == ["--date", "2017-06-01"]  # five hours behind
    assert refresh.dated(at(datetime(2017, 6, 2, 5, 10, tzinfo=UTC))) == ["--date", "2017-06-02"]


def test_a_data_set_that_has_ended_stays_at_its_last_day() -> None:
    assert refresh.dated(at(datetime(2031, 1, 1, tzinfo=UTC))) == ["--date", "2017-12-31"]


def test_a_day_can_be_asked_for() -> None:
    moment = datetime(2017, 6, 2, 12, tzinfo=UTC)
    assert refresh.dated(at(moment, date="2017-05-01")) == ["--date", "2017-05-01"]
    with pytest.raises(AirflowFailException, match="expected a date"):
        refresh.dated(at(moment, date="soon"))


def test_a_person_may_withdraw_more_than_the_settings_allow() -> None:
    moment = datetime(2017, 6, 2, 12, tzinfo=UTC)
    assert refresh.signed(at(moment, past_limit=True)) == [*refresh.signed(at(moment)), "--past-limit"]
    assert "--past-limit" not in refresh.signed(at(moment, past_limit=False))


def test_every_attempt_of_a_run_asks_the_same() -> None:
    told = at(datetime(2017, 6, 2, 12, tzinfo=UTC))
    assert refresh.signed(told) == refresh.signed(told)
    assert refresh.signed(told) == ["--date", "2017-06-02", "--who", "airflow scheduled__1", "--at", "2017-06-02T12:00:00+00:00"]
