"""Which date a run is for, who asked for it and when."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest
from airflow.sdk.exceptions import AirflowFailException

from dags import common
from tests.dags.contexts import Run, context


def test_the_partition_key_wins_over_conf_over_params_over_the_logical_date() -> None:
    run = Run("2017-11-01", {"date": "2017-11-02"})
    told = context(run, params={"date": "2017-11-03"}, logical_date=datetime(2017, 11, 4, tzinfo=UTC))
    assert common.run_date(told) == date(2017, 11, 1)
    run.partition_key = None
    assert common.run_date(told) == date(2017, 11, 2)
    run.conf = {}
    assert common.run_date(told) == date(2017, 11, 3)
    told["params"] = {"date": None}
    assert common.run_date(told) == date(2017, 11, 4)


def test_a_run_without_any_date_says_how_to_give_one() -> None:
    with pytest.raises(AirflowFailException, match="this run has no date: trigger it with --conf"):
        common.run_date(context())


@pytest.mark.parametrize("wrong", ["15.11.2017", "2017-13-01", "today", "2017-11-15T00:00:00"])
def test_a_key_that_is_no_date_fails_at_once(wrong: str) -> None:
    with pytest.raises(AirflowFailException, match="expected a date, YYYY-MM-DD"):
        common.run_date(context(Run(wrong)))


def test_who_asked_is_the_user_that_triggered_or_the_run_itself() -> None:
    assert common.asked_by(context(Run(triggering_user_name="ann"))) == "ann"
    assert common.asked_by(context(Run(run_id="asset__7"))) == "airflow asset__7"


def test_when_it_was_asked_is_the_same_for_every_attempt() -> None:
    told = context(Run(start_date=datetime(2017, 11, 16, 8, tzinfo=UTC)))
    assert common.asked_at(told) == "2017-11-16T08:00:00+00:00"
    told = context(Run(start_date=datetime(2017, 11, 15, tzinfo=UTC), run_after=datetime(2017, 11, 20, 9, tzinfo=UTC)))
    assert common.asked_at(told) == "2017-11-20T09:00:00+00:00"
    assert common.asked_at(context()) == ""


def test_conf_goes_over_params() -> None:
    assert common.asked(context(Run(conf={"a": 1}), params={"a": 2, "b": 3})) == {"a": 1, "b": 3}
